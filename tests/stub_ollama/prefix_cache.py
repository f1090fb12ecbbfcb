"""The stub's prefix cache: like llama.cpp, it keeps the last prompts and reads only what is new in the next."""

from __future__ import annotations

import itertools
from typing import Any

from tests.stub_ollama import answers


class PrefixCache:
    """Counts the tokens (words) of prompts that were read, and those that a slot had."""

    def __init__(self) -> None:
        self._slots: list[list[str]] = []
        self.evaluated = 0
        self.cached = 0

    def read(self, request: dict[str, Any], answer: list[str], slots: int) -> None:
        """Reads a prompt into the slot with the longest common beginning that covers it, or the least recently used."""
        prompt = _tokens(request)
        common = [_in_common(prompt, slot) for slot in self._slots]
        best = max(common, default=0)
        self.cached += best
        self.evaluated += len(prompt) - best
        continued = [slot for slot, one in zip(self._slots, common, strict=True) if one == best and one > len(slot) / 2]
        if continued:
            self._slots.remove(continued[0])
        self._slots.append([*prompt, "<assistant>", *(word.strip() for word in answer)])
        del self._slots[:-slots]

    def clear(self) -> None:
        """Forgets all prompts, as an Ollama that was restarted."""
        self._slots.clear()


def _tokens(request: dict[str, Any]) -> list[str]:
    turns = request.get("messages") or [{"role": "user", "content": request.get("prompt", "")}]
    return [token for turn in turns for token in (f"<{turn.get('role')}>", *answers.content(turn).split())]


def _in_common(one: list[str], other: list[str]) -> int:
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
