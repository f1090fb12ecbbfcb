"""Which answers operators have deleted, for as long as a backup could bring them back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from api.ports.sweep import Selection


class Deletions(Protocol):
    """Every method raises `StoreUnavailable`."""

    async def note(self, marks: Sequence[str]) -> None:
        """Notes that what these marks mean was deleted now."""

    async def noted(self) -> Mapping[str, int]:
        """All marks, and when (ms of Redis's clock)."""

    async def merge(self, marks: Mapping[str, int]) -> None:
        """Takes over marks of another time or place; of two the later holds."""


def marks_of(selection: Selection) -> list[str]:
    """What a deletion is remembered by; where it is not one question's, by more than was meant rather than less.

    Which questions are near one is not kept: all of the tenant's answers count as deleted then.
    """
    if selection.entry is not None:
        return [f"question:{selection.entry.rpartition(':')[2]}"]
    if selection.digest is not None and selection.near is None:
        return [f"question:{selection.digest}"]
    if selection.source is not None:
        return [f"source:{selection.source}"]
    return ["all" if selection.tenant is None else f"tenant:{selection.tenant}"]


def marks_for(marks: Mapping[str, int], tenants: Collection[str]) -> Mapping[str, int]:
    """Without those by which other tenants' answers were deleted, and their names. No tenants: all."""
    others = {mark for mark in marks if mark.startswith("tenant:") and mark.removeprefix("tenant:") not in tenants}
    return {mark: at for mark, at in marks.items() if not tenants or mark not in others}


def marks_about(digest: str, tenant: str, documents: Sequence[str]) -> list[str]:
    """The marks that an answer would be deleted by."""
    return ["all", f"tenant:{tenant}", f"question:{digest}", *(f"source:{document}" for document in documents)]
