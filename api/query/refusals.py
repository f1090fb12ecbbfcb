"""Remembers for a moment which limits refused a request, so that a client that ignores `Retry-After` costs little.

GCRA and the budgets never free a place earlier than they said. Until then a further request with the same limits can be
refused without Redis, and before its body is read. An operator may reset the counts, and Redis may lose them or come
back. So every second one request asks Redis again, and the others are refused until it has its decision.

If answers from the cache are free, or a stream may be cached, a refusal is not certain before the cache was searched by
meaning, which costs an embedding. `SearchTurns` limits the share of time in which a worker does that for such clients.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from api.ports.limits import Charge, LimitPlan

REMEMBERED_SECONDS: Final = 1.0
"""How long a refusal counts before a request asks again."""
RETRY_SECONDS: Final = 0.1
"""When the next request asks, if the last one has no decision yet."""
SEARCH_SECONDS: Final = 10.0
"""How long a refusal limits the searches of its plan: beyond the search and the rest that delay the next decision."""
MOST: Final = 1024
"""Plans that a worker remembers: those that were refused last."""
SEARCH_SHARE: Final = 0.2
"""Share of the time in which a worker searches by meaning for one plan that is refused."""
MOST_REST: Final = 1.0
"""Seconds. An embedding that takes long is mostly waiting."""
MOST_WAITING: Final = 8
"""Questions of such a plan that wait for their search or run it. A further one is not searched for."""


@dataclass(slots=True)
class _Refusal:
    """When the place is free, when to ask again, and until when searches are limited, by the monotonic clock."""

    charge: Charge
    free_at: float
    ask_at: float
    searches_at: float


class Refusals:
    """What one worker remembers. New limits of a key have a new plan, and a plan of which it knows nothing is asked."""

    def __init__(self, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._known: OrderedDict[LimitPlan, _Refusal] = OrderedDict()

    def note(self, charge: Charge) -> None:
        """Remembers a decision that was just made. One that lets the request go on ends the memory."""
        decision = charge.decision
        if decision is None or charge.is_recalled:
            return
        if decision.wait <= 0:
            if self._known:
                self._known.pop(charge.plan, None)
            return
        free_at, now = charge.asked_at + decision.wait, self._clock()
        ask_at, searches_at = min(free_at, now + REMEMBERED_SECONDS), min(free_at, now + SEARCH_SECONDS)
        self._known[charge.plan] = _Refusal(charge, free_at, ask_at, searches_at)
        self._known.move_to_end(charge.plan)
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def find(self, plan: LimitPlan) -> Charge | None:
        """The refused charge of a further request; None if its limits must be asked."""
        found = self._known.get(plan) if self._known else None
        if found is None or (now := self._clock()) >= found.ask_at:
            return None
        charge = Charge(plan, counts_hits=True)
        charge.refuse_again(found.charge, found.free_at - now)
        return charge

    def limits_searches(self, plan: LimitPlan) -> bool:
        """Whether a request would probably be refused, also while one asks again: it may have to search first."""
        found = self._known.get(plan) if self._known else None
        return found is not None and self._clock() < found.searches_at

    def recall(self, charge: Charge) -> None:
        """Refuses a charge that was not asked for yet, if that is certain. If not, it must be asked for.

        Others are then refused until it has its decision, but for a moment only: the decision may never come.
        """
        if charge.decision is not None or charge.is_sent or charge.must_ask:
            return
        found = self._known.get(charge.plan) if self._known else None
        now = self._clock()
        if found is None or now >= found.ask_at:
            charge.must_ask = True
            if found is not None:
                found.ask_at = min(found.free_at, now + RETRY_SECONDS)
        else:
            charge.refuse_again(found.charge, found.free_at - now)


@dataclass(slots=True)
class _Turns:
    """The searches of one plan. `waiting`: also the one that runs. `rests_until`: when the next may begin."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    rests_until: float = 0.0


class SearchTurns:
    """One worker's searches by meaning for plans that were refused: one at a time, and then a rest."""

    def __init__(self, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._turns: OrderedDict[LimitPlan, _Turns] = OrderedDict()

    @asynccontextmanager
    async def turn(self, plan: LimitPlan) -> AsyncIterator[bool]:
        """Waits for the plan's turn, and runs the block. Yields False at once if too many wait."""
        turns = self._turns.setdefault(plan, _Turns())
        self._turns.move_to_end(plan)
        if len(self._turns) > self._most:
            self._turns.popitem(last=False)
        if turns.waiting >= MOST_WAITING:
            yield False
            return
        turns.waiting += 1
        try:
            async with turns.lock:
                await asyncio.sleep(max(0.0, turns.rests_until - self._clock()))
                began = self._clock()
                try:
                    yield True
                finally:
                    now = self._clock()
                    turns.rests_until = now + min(MOST_REST, (now - began) * (1 / SEARCH_SHARE - 1))
        finally:
            turns.waiting -= 1
