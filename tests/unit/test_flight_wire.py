"""Messages of a leader to its followers survive encoding and decoding."""

from __future__ import annotations

import pytest

from api.errors import (
    BreakerOpen,
    BulkheadFull,
    InternalError,
    NotFound,
    RagherdError,
    UpstreamError,
    UpstreamFault,
    UpstreamResponse,
)
from api.single_flight.wire import LeaderLeft, TextMessage, decode, encode
from api.values import CompletedAnswer, Source, Usage


@pytest.mark.parametrize(
    "said",
    [
        TextMessage(1, 20, 'a "piece"\n \u2028 é'),
        LeaderLeft(),
        CompletedAnswer(
            "text", "llama3.2", Usage(3, 4), "length", (Source("d1", "Title", 2, "text", 0.5),), "rag:cache:x:y"
        ),
        CompletedAnswer("text", "llama3.2", Usage()),
    ],
)
def test_tokens_and_answers_round_trip(said: TextMessage | LeaderLeft | CompletedAnswer) -> None:
    assert decode(encode(said)) == said


@pytest.mark.parametrize(
    "error",
    [
        *(UpstreamError(fault, "why", retry_after=7.5) for fault in UpstreamFault),
        UpstreamError(UpstreamFault.BUSY, "why"),
        BreakerOpen("ollama-2", 12.5, forced=True),
        BreakerOpen("ollama", 1),
        *(BulkheadFull("ollama", reason, 3.5) for reason in ("queue_full", "deadline", "displaced")),
        InternalError(),
    ],
    ids=repr,
)
def test_errors_round_trip(error: RagherdError) -> None:
    found = decode(encode(error))
    assert isinstance(found, RagherdError)
    assert (type(found), found.detail, found.status, found.headers, found.members) == (
        type(error),
        error.detail,
        error.status,
        error.headers,
        error.members,
    )


def test_ollama_s_own_refusal_reaches_followers_in_its_words() -> None:
    error = UpstreamError(UpstreamFault.REQUEST_REJECTED, "why")
    error.response = UpstreamResponse(500, "application/json", b'{"error":"\xff\x00 too long"}')
    found = decode(encode(error))
    assert isinstance(found, UpstreamError)
    assert found.verbatim == error.verbatim


def test_an_unknown_error_becomes_an_internal_error() -> None:
    assert isinstance(decode(encode(NotFound("secret detail"))), InternalError)


@pytest.mark.parametrize("body", ["", "{}", '{"is": "news"}', '{"is": "piece"}', '{"is": "error", "kind": "upstream"}'])
def test_unknown_messages_raise(body: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        decode(body)
