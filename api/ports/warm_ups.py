"""Warm-ups of the cache: their progress, and who carries them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

WarmUpStatus = Literal["running", "done", "failed", "cancelled"]


WarmUpCount = Literal["generated", "stored", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class WarmUpProgress:
    """How far a warm-up of the cache is. `done` is what was stored, skipped and failed; `by` the worker that has it.

    `errors` are the first few. Times are milliseconds of Redis's clock; `ended_ms` is None while it goes on.
    """

    job: str
    status: WarmUpStatus
    total: int
    done: int
    generated: int
    stored: int
    skipped: int
    failed: int
    errors: tuple[str, ...]
    started_ms: int
    ended_ms: int | None
    by: str


class WarmUpJobs(Protocol):
    """Warm-ups of the cache, kept for the whole fleet. Every method raises `StoreUnavailable`.

    Questions are what `create` was given, each different from all others of the job.
    """

    async def create(self, job: str, questions: Sequence[bytes]) -> None:
        """Begins one that nobody holds yet."""

    async def progress(self, job: str) -> WarmUpProgress | None:
        """None where there is none of that name, or none any more."""

    async def cancel(self, job: str) -> None:
        """Ends one that goes on."""

    async def unfinished(self) -> list[str]:
        """Those that go on, the oldest first."""

    async def hold(self, job: str, seconds: float) -> bool:
        """Whether it goes on and is this worker's, now taken or renewed, for so many seconds. 0 gives it up."""

    async def left(self, job: str, count: int) -> list[bytes]:
        """The first `count` questions that are not settled."""

    async def settle(self, job: str, question: bytes, counts: Sequence[WarmUpCount], error: str = "") -> bool:
        """Counts a question, once; without one, only ends what has none left. Whether the warm-up goes on."""
