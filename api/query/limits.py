"""Decides whether a question may go on by the limits of its key and its tenant, and charges the tokens of its answer.

Redis counts for the whole fleet. The exact look-up of the cache sends the charge along. Without Redis each worker
counts for itself and grants its share of the limits.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Literal

from api.cancellation import log_failure
from api.errors import RateLimited, StoreUnavailable
from api.ports.limits import Charge, Decision, Left, LimitStore, LocalCounts
from api.values import Usage

MOST: Final = 10_000
"""Keys and tenants that a worker counts for while Redis is away."""
SECONDS: Final = 1.0
"""Time that a charge may take."""
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
        self._spending: set[asyncio.Task[None]] = set()

    async def settle(self, charge: Charge, *, is_hit: bool = False) -> None:
        """Charges a request that was not charged yet. Raises `RateLimited`. A hit may be free."""
        if charge.decision is None and (charge.counts_hits or not is_hit):
            await self._decide(charge)
        for name in charge.warned:
            self._noted(name, "warned")
        try:
            charge.check()
        except RateLimited as error:
            self._noted(error.limit, "refused")
            raise

    async def _decide(self, charge: Charge) -> None:
        if not charge.is_sent:
            charge.is_sent = True
            try:
                async with asyncio.timeout(SECONDS):
                    await self._store.admit(charge)
            except (StoreUnavailable, TimeoutError):
                pass
            else:
                return
        charge.decision = self._local_decision(charge)

    def _local_decision(self, charge: Charge) -> Decision:
        now, workers = time.time(), max(1, self._live_workers())
        shares = [(self._counts(charge, name), limits.share(workers)) for name, limits in charge.subjects]
        looks = [counts.look(limits, now) for counts, limits in shares]
        wait = max(one for one, _ in looks)
        left: tuple[Left, ...] = tuple(one for _, some in looks for one in some)
        if wait == 0:
            for counts, limits in shares:
                counts.take(limits, now)
        return Decision(wait == 0, wait, left)

    def _counts(self, charge: Charge, name: str) -> LocalCounts:
        counts = self._local.setdefault((charge.owner, name), LocalCounts())
        self._local.move_to_end((charge.owner, name))
        if len(self._local) > MOST:
            self._local.popitem(last=False)
        return counts

    # -- tokens --------------------------------------------------------------------------------------------------------

    def spend(self, charge: Charge, usage: Usage) -> None:
        """Charges the tokens of an answer, in the background: the answer need not wait."""
        generated, tokens = usage.completion_tokens, usage.prompt_tokens + usage.completion_tokens
        if not tokens or not any(one.tokens_per_minute or one.tokens_per_day for _, one in charge.subjects):
            return
        task = asyncio.create_task(self._spend(charge, tokens, generated))
        self._spending.add(task)
        task.add_done_callback(self._spending.discard)
        log_failure(task)

    async def _spend(self, charge: Charge, tokens: int, generated: int) -> None:
        try:
            await self._store.spend(charge, tokens, generated)
        except StoreUnavailable:
            now, workers = time.time(), max(1, self._live_workers())
            for name, limits in charge.subjects:
                self._counts(charge, name).spend(limits.share(workers), now, tokens, generated)

    async def aclose(self) -> None:
        """Waits for the charges of the last answers."""
        if self._spending:
            await asyncio.wait(self._spending, timeout=SECONDS)
