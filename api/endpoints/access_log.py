"""The access log: one line for each request, with the outcome of its question.

The line has the route's template, never the path or the query string, which may contain texts and names. The tenant
stands as its digest, the same as in Redis keys. JSON escapes control characters, so no request can forge a line.

The endpoints leave what they know in the state of the request: `request_id`, `tenant`, `query`, `answered`, `error`;
tracing leaves `trace_id`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Final

from api.endpoints.middleware import EndedRequest
from api.ports.question import AnswerFinished, Query
from api.values import CacheStatus, Priority, owner_of

PROBES: Final = frozenset({"/health", "/health/live", "/health/ready", "/metrics"})
"""Routes that are called every few seconds: their successes are not logged."""


class AccessLog:
    """Writes the lines of one worker."""

    def __init__(self, write: Callable[[dict[str, Any]], None], *, hits: float = 1.0, questions: bool = False) -> None:
        """`write` writes a line. `hits`: the share of answers from the cache to log.

        `questions`: the lines may contain questions.
        """
        self._write = write
        self._hits = hits
        self._questions = questions

    def __call__(self, ended: EndedRequest, state: Mapping[str, Any]) -> None:
        """Logs a request, unless it is a successful probe or a hit that is not sampled."""
        method, route, status, seconds, sent = ended
        if route in PROBES and status < 400:
            return
        answered: AnswerFinished | None = state.get("answered")
        is_hit = answered is not None and answered.status is CacheStatus.HIT and status < 400
        if is_hit and self._hits < 1 and random.random() >= self._hits:  # noqa: S311 - a sample, no secret
            return
        facts: dict[str, Any] = {
            "request_id": state.get("request_id"),
            "method": method,
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 3),
            "bytes": sent,
        }
        if (trace_id := state.get("trace_id")) is not None:
            facts["trace_id"] = trace_id
        if (tenant := state.get("tenant")) is not None:
            facts["tenant_hash"] = owner_of(tenant)
        query: Query | None = state.get("query")
        if query is not None:
            facts["model"] = query.model
            facts["priority"] = "interactive" if query.priority is Priority.USER else query.priority.value
            if self._questions:
                facts["question"] = query.question
        if error := state.get("error"):
            facts["error"] = error
        if answered is not None:
            match = answered.match
            facts["cache"] = answered.status
            facts["kind"] = match.kind if match is not None else None
            if answered.variant:
                facts["variant"] = answered.variant
            if answered.completed is not None:
                _add_generation(facts, answered)
        self._write(facts)


def _add_generation(facts: dict[str, Any], answered: AnswerFinished) -> None:
    """Adds the tokens that the answer cost, and the Ollama that generated it if this worker called it."""
    facts["prompt_tokens"] = answered.usage.prompt_tokens
    facts["completion_tokens"] = answered.usage.completion_tokens
    generation = answered.completed.generation if answered.completed is not None else None
    if generation is not None and generation.backend:
        facts["backend"] = generation.backend
