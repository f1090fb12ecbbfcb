"""What every request of the fleet sends alike: a request that differed would make Ollama load the model anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Pinned:
    """`keep_alive`: how long Ollama keeps a model in memory after its last use, in Ollama's own words (`5m`, `-1` for
    ever); empty: Ollama's default. `num_ctx`: the context in tokens; None: the model's own."""

    keep_alive: str = ""
    num_ctx: int | None = None

    @property
    def options(self) -> Mapping[str, Any]:
        """For the `options` of a generation."""
        return {} if self.num_ctx is None else {"num_ctx": self.num_ctx}

    @property
    def keep_alive_field(self) -> Mapping[str, Any]:
        """The field as Ollama takes it: a duration with a unit, or seconds as a number."""
        if not self.keep_alive:
            return {}
        plain = self.keep_alive.removeprefix("-").isdigit()
        return {"keep_alive": int(self.keep_alive) if plain else self.keep_alive}
