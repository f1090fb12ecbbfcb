"""What a fleet is asked to carry, and what it is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """`rate`: requests a second; `exact`, `semantic`: shares of them that are hits of that kind.

    `refresh`: the share of hits whose answer is expired and is generated anew meanwhile. `answer_tokens` come at
    `tokens_per_second` from one of the `slots` of a GPU, after `first_token` seconds. Raises `ValueError`.
    """

    rate: float
    exact: float = 0.3
    semantic: float = 0.2
    refresh: float = 0.0
    entries: int = 1000
    chunks: int = 0
    replicas: int = 2
    workers: int = 4
    backends: int = 1
    embeds_on_ollama: bool = False
    answer_tokens: int = 250
    tokens_per_second: float = 40.0
    first_token: float = 0.5
    slots: int = 4

    def __post_init__(self) -> None:
        shares = {"exact": self.exact, "semantic": self.semantic, "refresh": self.refresh}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: a share between 0 and 1, not {share}")
        if self.exact + self.semantic > 1:
            raise ValueError("exact and semantic hits together are more than all requests")
        for name in ("rate", "entries", "chunks", "first_token"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: a number, not below 0")
        for name in ("replicas", "workers", "backends", "answer_tokens", "tokens_per_second", "slots"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: a number above 0")

    @property
    def fleet(self) -> int:
        """Workers of all replicas."""
        return self.replicas * self.workers

    @property
    def guards(self) -> int:
        """Breakers, and as many bulkheads."""
        return self.backends * (2 if self.embeds_on_ollama else 1)

    @property
    def hits(self) -> float:
        """Answers a second from the cache."""
        return self.rate * (self.exact + self.semantic)

    @property
    def misses(self) -> float:
        """Requests a second that wait for Ollama."""
        return max(0.0, self.rate - self.hits)

    @property
    def generations(self) -> float:
        """Answers a second that Ollama writes."""
        return self.misses + self.hits * self.refresh

    @property
    def answer_bytes(self) -> float:
        """English: about four and a half bytes a token."""
        return 4.5 * self.answer_tokens

    @property
    def generation_seconds(self) -> float:
        """How long one answer takes a slot."""
        return self.first_token + self.answer_tokens / self.tokens_per_second
