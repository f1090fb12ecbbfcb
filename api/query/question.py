"""A question, validated, with everything its answer depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from api.model import ChatMessage
from api.ports.passages import DocumentFilter
from api.query import prompt
from api.query.cache_control import CacheControl

SEMANTIC_LIMIT: Final = 500
"""Bytes of a question that is compared by meaning. A longer one is mostly material: two that differ in one line of it,
or behind what the embedder reads, are near each other and ask for different answers."""


@dataclass(frozen=True, slots=True)
class Query:
    """A question, validated, with everything its answer depends on. `timeout`: the caller's own, in seconds.

    `documents`: which of the tenant's documents the answer may be grounded in.
    `template` and `system` say how the turns are put to the model, see `prompt`.
    `keeps_history`: it was tried to rewrite the question to stand alone, in vain.
    """

    question: str
    tenant: str
    model: str
    top_k: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    documents: DocumentFilter = field(default_factory=DocumentFilter)
    history: tuple[ChatMessage, ...] = ()
    cache_control: CacheControl = field(default_factory=CacheControl)
    timeout: float | None = None
    template: prompt.Template = prompt.GROUNDED
    system: str | None = None
    keeps_history: bool = False

    @property
    def has_meaning(self) -> bool:
        """Whether it may be compared by meaning: not where that depends on earlier turns, nor where it is long."""
        return not self.history and len(self.question.encode("utf-8", "replace")) <= SEMANTIC_LIMIT
