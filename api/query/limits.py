"""Decides whether a request may go on by the limits of its key and its tenant, and charges the tokens that it costs.

Redis counts for the whole fleet. The exact look-up of the cache sends the charge along. Without Redis each worker
counts for itself and grants its share of the limits.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import Any, Final, Literal

from api.cancellation import log_failure
from api.errors import RateLimited, StoreUnavailable
from api.ports.limits import TENANT, Charge, LimitPlan, LimitStore, LocalCounts
from api.query.refusals import MOST as MOST_REFUSED
from api.query.refusals import SEARCH_SECONDS, Refusals, SearchTurns
from api.values import Usage

MOST: Final = 10_000
"""Keys and tenants that a worker counts for while Redis is away."""
SECONDS: Final = 1.0
"""Time that a charge may take."""
RENEW_SECONDS: Final = 4.0
"""How often the leases of open streams are renewed."""
STREAM_WAIT: Final = 1.0
"""Seconds after which a stream that was refused may be tried again."""
LimitOutcome = Literal["refused", "warned"]


class Limiter:
    """The limits of one worker. `live_workers`: how many share them. `noted` counts what happened to which limit."""

    def __init__(
        self,
        store: LimitStore,
        live_workers: Callable[[], int],
        noted: Callable[[str, LimitOutcome], None] = lambda limit, outcome: None,
    ) -> None:
        self._store = store
        self._live_workers = live_workers
        self._noted = noted
        self._local: OrderedDict[tuple[str, str], LocalCounts] = OrderedDict()
        self._streams: dict[tuple[str, str], set[str]] = {}
        """The open streams of this worker, by owner and subject."""
        self.refusals = Refusals()
        self._turns = SearchTurns()
        self._full: OrderedDict[LimitPlan, float] = OrderedDict()
        """Until when it is likely that further streams are refused, by the monotonic clock."""
        self._leasing = asyncio.Lock()
        """Keeps a renewal from overtaking the return of a lease."""
        self._running: set[asyncio.Task[None]] = set()

    async def settle(self, charge: Charge, *, is_hit: bool = False) -> None:
        """Charges a request that was not charged yet. Raises `RateLimited`. A hit may be free."""
        if charge.counts_hits or not is_hit:
            await self.decide(charge)
        for name in charge.warned:
            self._noted(name, "warned")
        try:
            charge.check()
        except RateLimited as error:
            self._noted(error.limit, "refused")
            raise

    async def decide(self, charge: Charge) -> None:
        """Charges a request that was not charged yet. `settle` follows: this neither counts nor raises a refusal."""
        if charge.decision is None and charge.plan.has_rates:
            self.refusals.recall(charge)
            if charge.decision is None:
                await self._ask(charge)
        self.refusals.note(charge)

    async def _ask(self, charge: Charge) -> None:
        if not charge.is_sent:
            charge.is_sent, charge.asked_at = True, time.monotonic()
            try:
                async with asyncio.timeout(SECONDS):
                    await self._store.admit(charge)
            except (StoreUnavailable, TimeoutError):
                pass
            else:
                return
        self._decide_here(charge)

    def _decide_here(self, charge: Charge) -> None:
        charge.asked_at = time.monotonic()
        now, workers, plan = time.time(), max(1, self._live_workers()), charge.plan
        shares = [(self._counts(plan, name), limits.share(workers)) for name, limits in plan.subjects]
        looks = [counts.look(limits, now) for counts, limits in shares]
        wait = max(one for one, _ in looks)
        if wait == 0:
            for counts, limits in shares:
                counts.take(limits, now)
        charge.decide(wait, [one for _, some in looks for one in some])

    def _counts(self, plan: LimitPlan, name: str) -> LocalCounts:
        counts = self._local.setdefault((plan.owner, name), LocalCounts())
        self._local.move_to_end((plan.owner, name))
        if len(self._local) > MOST:
            self._local.popitem(last=False)
        return counts

    # -- tokens --------------------------------------------------------------------------------------------------------

    def spend(self, plan: LimitPlan, usage: Usage) -> None:
        """Charges the tokens of an answer or an embedding, in the background: the answer need not wait."""
        generated, tokens = usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens
        if tokens and plan.has_tokens:
            self._start(self._spend(plan, tokens, generated))

    async def _spend(self, plan: LimitPlan, tokens: int, generated: int) -> None:
        try:
            await self._store.spend(plan, tokens, generated)
        except StoreUnavailable:
            now, workers = time.time(), max(1, self._live_workers())
            for name, limits in plan.subjects:
                self._counts(plan, name).spend(limits.share(workers), now, tokens, generated)

    # -- streams -------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def stream(self, charge: Charge | None) -> AsyncIterator[None]:
        """Counts an open stream while inside. Raises `RateLimited`."""
        if charge is None or not charge.plan.streams:
            yield
            return
        plan, stream = charge.plan, secrets.token_hex(8)
        try:
            full = await self._refused_by(plan, stream)
        except asyncio.CancelledError:  # it may have got its lease
            self._start(self._close(plan, stream))
            raise
        if full is not None:
            self._note_full(plan)
            name = f"{'tenant' if full == TENANT else 'key'}-streams"
            self._noted(name, "refused")
            raise RateLimited(name, STREAM_WAIT)
        self._full.pop(plan, None)
        places = [(plan.owner, subject) for subject, _ in plan.streams]
        for place in places:
            self._streams.setdefault(place, set()).add(stream)
        try:
            yield
        finally:
            for place in places:
                self._streams[place].discard(stream)
                if not self._streams[place]:
                    del self._streams[place]
            self._start(self._close(plan, stream))

    async def _refused_by(self, plan: LimitPlan, stream: str) -> str | None:
        """Asks for a lease. Returns the subject that has too many streams, or None."""
        try:
            async with asyncio.timeout(SECONDS):
                return await self._store.open_stream(plan, stream)
        except (StoreUnavailable, TimeoutError):
            workers = max(1, self._live_workers())
            for subject, most in plan.streams:
                if len(self._streams.get((plan.owner, subject), ())) >= max(1, most // workers):
                    return subject
            return None

    def _note_full(self, plan: LimitPlan) -> None:
        self._full[plan] = time.monotonic() + SEARCH_SECONDS
        self._full.move_to_end(plan)
        if len(self._full) > MOST_REFUSED:
            self._full.popitem(last=False)

    def search_turn(self, charge: Charge, *, streams: bool) -> AbstractAsyncContextManager[bool]:
        """Waits before the cache is searched by meaning for a request that is refused if it has no answer.

        Yields False if too many such requests wait: then the cache shall not be searched.
        """
        is_beyond = charge.decision is None and self.refusals.limits_searches(charge.plan)
        if is_beyond or (streams and self._full.get(charge.plan, 0.0) > time.monotonic()):
            return self._turns.turn(charge.plan)
        return nullcontext(True)

    async def _close(self, plan: LimitPlan, stream: str) -> None:
        with suppress(StoreUnavailable):  # the lease ends by itself
            async with self._leasing:
                await self._store.close_stream(plan, stream)

    async def keep_renewing(self) -> None:
        """Renews the leases of open streams, also of those that began without Redis. Runs as a task of the worker."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            await self.renew()

    async def renew(self) -> None:
        """Renews the leases of all open streams."""
        for (owner, subject), streams in list(self._streams.items()):
            with suppress(StoreUnavailable):
                async with self._leasing:
                    await self._store.renew_streams(owner, subject, sorted(streams))

    # -- in the background ---------------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        log_failure(task)

    async def aclose(self) -> None:
        """Waits for the charges of the last answers."""
        if self._running:
            await asyncio.wait(self._running, timeout=SECONDS)
