"""`ragherd ingest --watch`: follows folders until it is stopped, and waits for a service that is away."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from ragherd.document_client import DocumentClient, Refused, SameSource, ServiceGone, connected
from ragherd.follow import Follower
from ragherd.journal import Journal

OUTAGE_SECONDS: Final = 5.0
"""Time that one request waits for a service that is away. Then the loop waits, and looks at the disk again."""
LONGEST_WAIT: Final = 60.0
BUSY: Final = 4.0
"""Waits at least this many times as long as a round takes, so a slow disk is not read all the time."""

Pause = Callable[[float], Awaitable[object]]


class Backoff:
    """The wait before the next round, in seconds, with jitter: longer after each failure in a row. No I/O."""

    def __init__(self, every: float, longest: float = LONGEST_WAIT) -> None:
        self._every = every
        self._longest = longest
        self.failures = 0

    def next(self, took: float = 0.0) -> float:
        """Returns the wait after a round that took this long."""
        wait = max(self._every, BUSY * took)
        if self.failures:
            wait = max(self._every, min(self._longest, 2.0 ** min(self.failures - 1, 10)))
        return wait * random.uniform(0.8, 1.2)  # noqa: S311 - no secret


async def watch(
    url: str,
    key: str | None,
    followers: Sequence[Follower],
    journal: Journal,
    every: float,
    pause: Pause = asyncio.sleep,
) -> None:
    """Follows folders until it is cancelled. Raises `Refused` if the service does not accept the first request."""
    async with connected(url, key, max_outage=OUTAGE_SECONDS) as client:
        watching = _Watching(client, followers, journal, Backoff(every))
        while True:
            began = time.monotonic()
            await watching.round()
            await pause(watching.backoff.next(time.monotonic() - began))


class _Watching:
    def __init__(
        self, client: DocumentClient, followers: Sequence[Follower], journal: Journal, backoff: Backoff
    ) -> None:
        self._client = client
        self._followers = followers
        self._journal = journal
        self.backoff = backoff
        self._reached = False
        self._unreadable: dict[Follower, str] = {}
        self._in_step: int | None = None

    async def round(self) -> None:
        """Looks at each folder once. Reports a service that is away, and that it is back, once."""
        try:
            if not self._reached or self.backoff.failures:
                await self._client.has("ragherd:watch", None)
                for follower in self._followers:
                    follower.forget()  # the service may have lost documents
            looks = [await self._look(follower) for follower in self._followers]
        except Refused as error:
            if not self._reached and not isinstance(error, ServiceGone):
                raise
            if not self.backoff.failures:
                self._journal.tell("waiting", why=str(error))
            self.backoff.failures += 1
            return
        if self.backoff.failures:
            self._journal.tell("back")
            self.backoff.failures = 0
        self._reached = True
        self._tell_in_step(waiting=any(looks))

    async def _look(self, follower: Follower) -> bool:
        """Returns whether a folder is about to change. One that cannot be read keeps its documents."""
        try:
            found = await follower.round(self._client, self._journal)
        except (OSError, SameSource) as error:
            if self._unreadable.get(follower) != str(error):
                self._unreadable[follower] = str(error)
                self._journal.tell("failed", why=f"cannot be read: {error}")
            return False
        self._unreadable.pop(follower, None)
        return found

    def _tell_in_step(self, *, waiting: bool) -> None:
        if not waiting and self._in_step is None:
            self._in_step = sum(follower.in_step for follower in self._followers)
            self._journal.tell("watching", files=self._in_step)
