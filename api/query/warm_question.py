"""A question that the cache is warmed up with, as it is kept until its turn comes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from api.model import known
from api.query.question import Query


@dataclass(frozen=True, slots=True)
class WarmQuestion:
    """`answer` is None where the language model is to give it. `number` tells it from others of the same warm-up."""

    number: int
    question: str
    tenant: str
    model: str
    top_k: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    answer: str | None = None

    def encoded(self) -> bytes:
        """As JSON, for an operator to read."""
        return orjson.dumps(self)

    @classmethod
    def decoded(cls, text: bytes) -> WarmQuestion:
        """Raises `ValueError` or `TypeError` for what `encoded` did not write. What is said beside is left out."""
        return known(cls, orjson.loads(text))

    def query(self) -> Query:
        """The same as a user's who asks it without more."""
        return Query(self.question, self.tenant, self.model, self.top_k, self.options)
