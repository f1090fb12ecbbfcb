"""A question, validated, with everything its answer depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from api.model import ChatMessage
from api.query.cache_control import CacheControl


@dataclass(frozen=True, slots=True)
class Query:
    """A question, validated, with everything its answer depends on. `timeout`: the caller's own, in seconds."""

    question: str
    tenant: str
    model: str
    top_k: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    history: tuple[ChatMessage, ...] = ()
    cache_control: CacheControl = field(default_factory=CacheControl)
    timeout: float | None = None
