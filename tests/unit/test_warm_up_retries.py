"""Which failures a warm-up waits for, retries, or gives up on."""

from __future__ import annotations

import pytest

from api.errors import (
    BreakerOpen,
    BulkheadFull,
    EmbeddingUnavailable,
    NotFound,
    StoreUnavailable,
    UpstreamError,
    UpstreamFault,
)
from api.query.warm_up import ATTEMPTS, LONGEST, retry_delay


def upstream(fault: UpstreamFault, retry_after: float | None = None) -> UpstreamError:
    return UpstreamError(fault, "no", retry_after=retry_after)


def embedding(cause: BaseException | None) -> EmbeddingUnavailable:
    error = EmbeddingUnavailable("no")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (StoreUnavailable("gone"), 1.0),
        (BreakerOpen("ollama", 3.0), 3.0),
        (BreakerOpen("ollama", 300.0), LONGEST),
        (BreakerOpen("ollama", 0.0), 0.1),
        (BulkheadFull("ollama", "queue_full", 2.5), 2.5),
        (upstream(UpstreamFault.BUSY, 7), 7.0),
        (upstream(UpstreamFault.CONNECT_FAILED), 1.0),
        (embedding(upstream(UpstreamFault.CONNECT_FAILED)), 1.0),
        (embedding(BreakerOpen("ollama-embed", 4.0)), 4.0),
    ],
)
def test_failures_of_the_service_are_waited_out(error: Exception, seconds: float) -> None:
    assert retry_delay(error, 1) == retry_delay(error, 1000) == seconds


@pytest.mark.parametrize(
    "error", [upstream(UpstreamFault.SERVER_ERROR), upstream(UpstreamFault.FIRST_TOKEN_TIMEOUT), embedding(None)]
)
def test_failures_that_the_question_may_cause_are_retried_a_few_times(error: Exception) -> None:
    assert [retry_delay(error, attempt) for attempt in range(1, ATTEMPTS + 1)] == [1.0, 2.0, None]


@pytest.mark.parametrize(
    "error",
    [
        upstream(UpstreamFault.MODEL_NOT_FOUND),
        upstream(UpstreamFault.REQUEST_REJECTED),
        upstream(UpstreamFault.UNAUTHORIZED),
        embedding(upstream(UpstreamFault.MODEL_NOT_FOUND)),
        NotFound("no"),
    ],
)
def test_permanent_failures_are_given_up_immediately(error: Exception) -> None:
    assert retry_delay(error, 1) is None
