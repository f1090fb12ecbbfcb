"""Classification of httpx errors and Ollama's responses."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx
import orjson
import pytest

from api.errors import FAULTS, UpstreamFault
from api.ollama.failures import from_exception, from_response, retry_after_from

Fault = UpstreamFault


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (httpx.ConnectError("refused"), Fault.CONNECT_FAILED),
        (httpx.ConnectTimeout(""), Fault.CONNECT_TIMEOUT),
        (httpx.PoolTimeout(""), Fault.POOL_TIMEOUT),
        (httpx.ReadTimeout(""), Fault.TOTAL_TIMEOUT),
        (httpx.WriteTimeout(""), Fault.TOTAL_TIMEOUT),
        (httpx.ReadError(""), Fault.CONNECTION_LOST),
        (httpx.WriteError(""), Fault.CONNECTION_LOST),
        (httpx.RemoteProtocolError("peer closed"), Fault.CONNECTION_LOST),
        (httpx.LocalProtocolError("bad header"), Fault.CONNECTION_LOST),
        (httpx.DecodingError("not gzip"), Fault.INVALID_RESPONSE),
    ],
)
def test_an_exception_maps_to_its_most_specific_class(error: httpx.HTTPError, fault: UpstreamFault) -> None:
    assert from_exception(error).fault is fault


@pytest.mark.parametrize("error", [httpx.RemoteProtocolError("closed"), httpx.ReadError(""), httpx.WriteError("")])
def test_a_reused_connection_that_broke_before_any_byte_is_stale(error: httpx.HTTPError) -> None:
    assert from_exception(error, stale=True).fault is Fault.CONNECTION_STALE


def test_a_timeout_on_a_reused_connection_is_still_a_timeout() -> None:
    assert from_exception(httpx.PoolTimeout(""), stale=True).fault is Fault.POOL_TIMEOUT


@pytest.mark.parametrize(
    ("status", "message", "path", "fault"),
    [
        (302, "", "/api/chat", Fault.INVALID_RESPONSE),
        (400, "bad request", "/api/chat", Fault.REQUEST_REJECTED),
        (400, "EOF", "/api/embed", Fault.EMBED_FAILED),
        (500, "failed to encode response: json: unsupported value: NaN", "/api/embed", Fault.TEXT_NOT_EMBEDDED),
        (400, "json: unsupported value: +Inf", "/api/embed", Fault.TEXT_NOT_EMBEDDED),
        (500, "json: unsupported value: NaN", "/api/chat", Fault.SERVER_ERROR),
        (400, "invalid input type", "/api/embed", Fault.REQUEST_REJECTED),
        (400, "this model does not support embeddings", "/api/embed", Fault.REQUEST_REJECTED),
        (401, "", "/api/chat", Fault.UNAUTHORIZED),
        (403, "", "/api/chat", Fault.UNAUTHORIZED),
        (404, "model not found", "/api/chat", Fault.MODEL_NOT_FOUND),
        (413, "", "/api/chat", Fault.REQUEST_REJECTED),
        (429, "slow down", "/api/chat", Fault.BUSY),
        (500, "llama runner process has terminated", "/api/chat", Fault.SERVER_ERROR),
        (500, 'option "temperature" must be of type float32', "/api/chat", Fault.REQUEST_REJECTED),
        (500, "invalid format: expected a schema", "/api/chat", Fault.REQUEST_REJECTED),
        (502, "", "/api/chat", Fault.SERVER_ERROR),
        (503, "server busy, please try again", "/api/chat", Fault.BUSY),
        (504, "", "/api/chat", Fault.SERVER_ERROR),
    ],
)
def test_an_error_response_is_classified_by_status_and_text(
    status: int, message: str, path: str, fault: UpstreamFault
) -> None:
    error = from_response(status, {}, orjson.dumps({"error": message}), path=path, model="m")
    assert error.fault is fault
    assert error.status == FAULTS[fault].status
    assert message in error.detail or fault is Fault.MODEL_NOT_FOUND


def test_a_missing_model_error_names_the_remedy() -> None:
    error = from_response(404, {}, b"", path="/api/chat", model="phi4")
    assert error.detail == "model 'phi4' not found: run `ollama pull phi4`"


@pytest.mark.parametrize("body", [b"", b"<html>\n bad\ngateway", b"[1]", b'"text"', b'{"error": null}', b"\xff"])
def test_any_error_body_can_be_read(body: bytes) -> None:
    error = from_response(502, {}, body, path="/api/chat", model="m")
    assert error.fault is Fault.SERVER_ERROR
    assert "\n" not in error.detail


def test_a_long_body_is_truncated() -> None:
    assert len(from_response(500, {}, b"x" * 10_000, path="/api/chat", model="m").detail) < 400


def test_the_retry_after_of_a_busy_ollama_is_kept() -> None:
    headers = httpx.Headers({"Retry-After": "7"})
    assert from_response(503, headers, b"", path="/api/chat", model="m").headers == {"Retry-After": "7"}
    assert from_response(503, {}, b"", path="/api/chat", model="m").headers == {"Retry-After": "1"}
    assert from_response(500, headers, b"", path="/api/chat", model="m").headers == {}


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 2026 12:01:30 GMT", 90.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("Thu, 01 Jan 2099 11:00:00 GMT", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("9" * 400, None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_accepts_seconds_or_a_date_and_ignores_the_rest(value: str | None, seconds: float | None) -> None:
    assert retry_after_from(value, now=NOON) == seconds
