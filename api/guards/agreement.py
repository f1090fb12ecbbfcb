"""Whether one question may have the answer to another that is near it: by what an embedding hardly sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from api.guards import asks, names, negation, numbers, opposites, order
from api.guards.reading import Reading, read

__all__ = ["Disagreement", "Reading", "Verdict", "disagreement", "read", "verdicts"]

GUARDS: Final = {
    "numbers": numbers.objection,
    "negation": negation.objection,
    "opposites": opposites.objection,
    "names": names.objection,
    "order": order.objection,
    "asks": asks.objection,
}
"""Every guard by its name, in the order in which they are asked."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """The first guard that objects, and what differs: `2020 / 2021`."""

    guard: str
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one guard says; `detail` is empty where it agrees."""

    guard: str
    agrees: bool
    detail: str


def disagreement(question: Reading, other: Reading) -> Disagreement | None:
    """None where all guards agree. Both questions as `read` gives them."""
    for guard, objection in GUARDS.items():
        detail = objection(question, other)
        if detail:
            return Disagreement(guard, detail)
    return None


def verdicts(question: Reading, other: Reading) -> list[Verdict]:
    """What every guard says, for people."""
    details = {guard: objection(question, other) for guard, objection in GUARDS.items()}
    return [Verdict(guard, not detail, detail) for guard, detail in details.items()]
