"""One worker's view of the fleet's bulkhead: a limit on concurrent calls, and a bounded queue.

Taking a permit costs one round trip; returning it costs the caller nothing. A queued caller is woken by a message that
brings its permit. Without Redis the same rules apply locally to this worker's share (`LocalBulkhead`). Returned tickets
are sent at once, in the background, and those that arrive meanwhile together. Messages wake callers; lease renewal and
a slow poll with jitter back them up.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from api.bulkhead.bulkhead_rules import (
    AcquireResult,
    BulkheadPolicy,
    BulkheadReading,
    BulkheadStore,
    LocalBulkhead,
    PermitReturn,
    RenewedLeases,
    Taken,
    Wake,
    estimated_seconds,
    promoted,
    waiting_by_priority,
)
from api.cancellation import Background, cancel_and_wait
from api.errors import BulkheadFull, StoreUnavailable, without_frames
from api.ports.telemetry import BulkheadReason, Telemetry
from api.values import Priority, QueuePlace

MAX_ENTRIES: Final = 1000
"""Tickets kept while Redis is lost. Older ones return by themselves when their leases end."""

Send = Callable[[Sequence[PermitReturn]], Awaitable[None]]


class PermitReturns:
    """Collects one worker's returned tickets. `sending` is held while a request is in progress."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._pending: deque[PermitReturn] = deque(maxlen=MAX_ENTRIES)
        self._added = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.sending = asyncio.Lock()

    def add(self, returned: PermitReturn) -> None:
        """Queues a ticket to be sent soon; no I/O."""
        self._pending.append(returned)
        self._added.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep_sending(), name="bulkhead-returns")

    async def _keep_sending(self) -> None:
        while True:
            await self._added.wait()
            self._added.clear()
            await self._drain()

    async def _drain(self) -> None:
        with suppress(StoreUnavailable):  # kept, and sent once Redis is back
            while self._pending:
                await self.flush()

    async def flush(self) -> None:
        """Sends all queued tickets. Keeps them and raises `StoreUnavailable` if that fails."""
        async with self.sending:
            await self.send_pending()

    async def send_pending(self) -> None:
        """Sends them; the caller holds `sending`."""
        batch = list(self._pending)
        if not batch:
            return
        self._pending.clear()
        try:
            await self._send(batch)
        except BaseException:  # also on cancellation: returning twice does no harm, never returning would
            self._pending.extendleft(reversed(batch))
            raise

    async def aclose(self) -> None:
        """Sends the rest, if Redis can be reached."""
        async with self.sending:  # returns being sent arrive
            if self._task is not None:
                await cancel_and_wait([self._task])
        await self._drain()


@dataclass(slots=True)
class _QueuedCall:
    """A call of this worker in the queue. Its ticket changes when it is promoted."""

    ticket: str
    place: QueuePlace
    woken: asyncio.Future[BulkheadReason | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class AskedEarly:
    """Implements `values.EarlyPermit`."""

    def __init__(self, owner: FleetBulkhead, taking: asyncio.Future[Taken]) -> None:
        self.owner = owner
        self.taking = taking

    def withdraw(self) -> None:
        """Returns the permit as soon as it is known."""
        self.taking.add_done_callback(self.owner.unwanted)


class FleetBulkhead:
    """One bulkhead, shared by all workers that use the same name."""

    def __init__(
        self,
        name: str,
        policy: BulkheadPolicy,
        store: BulkheadStore,
        worker: str,
        *,
        telemetry: Telemetry | None = None,
        live_workers: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.policy = policy
        self.store = store
        self._worker = worker
        self._telemetry = telemetry or Telemetry()
        self._live_workers = live_workers
        self._clock = clock
        self._held: set[str] = set()
        self._held_locally: set[str] = set()
        self._waiting: dict[str, _QueuedCall] = {}
        self._asking = 0
        self._early: dict[str, Wake] = {}
        self._local: LocalBulkhead | None = None
        self._returns = PermitReturns(self._send)
        self.promoted = asyncio.Event()
        """Set when a queued call was promoted: its new ticket joins the queue at the next renewal."""

    @property
    def store_name(self) -> str:
        """`shared`, or `local` while the store is lost."""
        return "local" if self._local else "shared"

    @property
    def in_use(self) -> int:
        """Permits that this worker holds."""
        return len(self._held) + len(self._held_locally)

    @property
    def waiting(self) -> int:
        """Calls of this worker that wait for a permit."""
        return len(self._waiting)

    @property
    def waiting_by_priority(self) -> dict[str, int]:
        """Calls of this worker that wait for a permit, by priority."""
        return waiting_by_priority(self._waiting)

    @property
    def limit(self) -> int:
        """Permits of the fleet, or of this worker while the store is lost."""
        return self._local.limit if self._local else self.policy.limit

    @asynccontextmanager
    async def permit(
        self, tenant: str, *, place: QueuePlace | None = None, within: float | None = None, queues: bool = True
    ) -> AsyncIterator[None]:
        """Holds a permit while the block runs. Raises `BulkheadFull`. A cancelled caller leaves the queue.

        `place` has the call's priority, and is told its position in the queue. Default: a user's call. `within`
        (seconds) can only shorten the wait. Without `queues` the call takes only a permit that is free now. A caller
        whose cancellation was swallowed neither asks for a permit nor keeps one.
        """
        task = asyncio.current_task()
        assert task is not None, "a permit belongs to a task"
        if task.cancelling():
            raise asyncio.CancelledError
        wait = self.policy.max_wait if within is None else min(within, self.policy.max_wait)
        ticket = await self._enter(tenant, place or QueuePlace(), wait, queues)
        began = self._clock()
        try:
            if task.cancelling():
                raise asyncio.CancelledError
            yield
        finally:
            self._give_back(ticket, round((self._clock() - began) * 1000))

    async def _enter(self, tenant: str, place: QueuePlace, wait: float, queues: bool) -> str:
        began, ticket = self._clock(), ""
        taken = await self._take(tenant, place, queues)
        if taken.verdict is AcquireResult.REJECTED:
            if not queues:
                raise BulkheadFull(self.name, "no_permit", taken.retry_after)
            raise self._full("queue_full", taken.retry_after, place.priority)
        if taken.verdict is AcquireResult.QUEUED:
            if taken.by_share:
                self._telemetry.bulkhead_share_reached(self.name)
            ticket = await self._wait(taken, place, wait)
        self._telemetry.bulkhead_admitted(self.name, place.priority, self._clock() - began)
        return ticket or taken.ticket

    def _full(self, reason: BulkheadReason, retry_after: float, priority: Priority) -> BulkheadFull:
        self._telemetry.bulkhead_rejected(self.name, reason, priority)
        return BulkheadFull(self.name, reason, retry_after)

    # -- asking -------------------------------------------------------------------------------------------------------

    def ask_early(self, tenant: str, place: QueuePlace) -> None:
        """Asks for a permit that is free now, before it is certain that the call is made; no I/O here.

        Does nothing while calls of this worker wait: there is probably none.
        """
        if self._local is None and not self._waiting:
            place.early = AskedEarly(self, asyncio.ensure_future(self._take_shared(tenant, place, queues=False)))

    async def _take(self, tenant: str, place: QueuePlace, queues: bool) -> Taken:
        try:
            early = place.early
            if isinstance(early, AskedEarly) and early.owner is self:
                place.early = None
                taken = await self._end_of(early.taking)
                if taken.verdict is AcquireResult.GRANTED:
                    return taken
            if self._local is None:
                return await self._end_of(asyncio.ensure_future(self._take_shared(tenant, place, queues)))
        except StoreUnavailable as lost:
            without_frames(lost)  # they refer to the task that holds it
        return self._take_locally(self._lost_store(), tenant, place, queues)

    async def _end_of(self, taking: asyncio.Future[Taken]) -> Taken:
        """Interrupting the command would lose the ticket: it is taken in any case, and returned."""
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(self.unwanted)
            raise
        finally:
            del taking  # it holds its error, which refers to this frame

    async def _take_shared(self, tenant: str, place: QueuePlace, queues: bool) -> Taken:
        self._asking += 1
        try:
            taken = await self.store.take(place.priority, tenant, queues=queues)
            self._enlist(taken, place)
        finally:
            self._asking -= 1
            if not self._asking:
                self._early.clear()
        return taken

    def _enlist(self, taken: Taken, place: QueuePlace) -> None:
        if taken.verdict is AcquireResult.GRANTED:
            self._hold(taken.ticket)
        elif taken.verdict is AcquireResult.QUEUED:
            self._waiting[taken.ticket] = _QueuedCall(taken.ticket, place)
            if taken.ticket in self._early:
                self.woken(self._early.pop(taken.ticket))
            elif self._local is not None:
                self._granted_locally(self._local.join(taken.ticket))

    def _take_locally(self, local: LocalBulkhead, tenant: str, place: QueuePlace, queues: bool) -> Taken:
        taken, victim = local.take(place.priority, tenant, queues=queues)
        if victim is not None:
            self.woken(Wake(victim, "displaced"))
        if taken.verdict is AcquireResult.GRANTED:
            self._held_locally.add(taken.ticket)
        elif taken.verdict is AcquireResult.QUEUED:
            self._waiting[taken.ticket] = _QueuedCall(taken.ticket, place)
        return taken

    def unwanted(self, taking: asyncio.Future[Taken]) -> None:
        """Returns a ticket that nobody waits for any more."""
        if not taking.cancelled() and taking.exception() is None and taking.result().ticket:
            self._give_back(taking.result().ticket, -1)

    # -- waiting ------------------------------------------------------------------------------------------------------

    async def _wait(self, taken: Taken, place: QueuePlace, seconds: float) -> str:
        """Waits for a permit. Returns its ticket."""
        # Woken just as it was queued, it is no longer in the queue.
        call = self._waiting.get(taken.ticket) or _QueuedCall(taken.ticket, place)
        reason = None
        self._watch_priority(call)
        try:
            async with asyncio.timeout(seconds):
                reason = await call.woken if call.ticket in self._waiting else None
        except TimeoutError:
            if self._holds(call.ticket):
                return call.ticket
            reason = "deadline"
        except asyncio.CancelledError:
            self._give_back(call.ticket, -1)
            raise
        finally:
            place.on_promotion = None
            place.move(0, None)
        if reason is not None or not self._holds(call.ticket):
            self._give_back(call.ticket, -1, reason)
            raise self._full(reason or "displaced", taken.retry_after, place.priority)
        return call.ticket

    def _watch_priority(self, call: _QueuedCall) -> None:
        """Lets a user who joins the wait promote the call, also if that happened while it took its ticket."""
        call.place.on_promotion = lambda: self._promote(call)
        if call.place.priority is Priority.USER and not call.ticket.startswith(f"{Priority.USER} "):
            self._promote(call)

    def _promote(self, call: _QueuedCall) -> None:
        """Moves a queued call behind the users who asked before it; no I/O. In Redis its old ticket is returned."""
        if self._waiting.pop(call.ticket, None) is None:
            return
        old, call.ticket = call.ticket, promoted(call.ticket)
        self._waiting[call.ticket] = call
        self._returns.add(PermitReturn(old))
        if self._local is not None:
            self._granted_locally(self._local.give(old, -1))
            self._granted_locally(self._local.join(call.ticket))
        self.promoted.set()

    def _hold(self, ticket: str) -> None:
        self._held.add(ticket)
        if self._local is not None:
            self._local.hold(ticket)

    def _holds(self, ticket: str) -> bool:
        return ticket in self._held or ticket in self._held_locally

    def woken(self, wake: Wake) -> None:
        """Handles a message about a queued ticket."""
        waiting = self._waiting.pop(wake.ticket, None)
        if waiting is None:
            if self._asking:
                self._early[wake.ticket] = wake  # the message overtook the reply
            return
        if wake.reason is None:
            self._hold(wake.ticket)
        if not waiting.woken.done():
            waiting.woken.set_result(wake.reason)

    def _granted(self, tickets: Iterable[str]) -> None:
        for ticket in tickets:
            if ticket in self._waiting:
                self.woken(Wake(ticket))

    def _granted_locally(self, tickets: Iterable[str]) -> None:
        for ticket in tickets:
            waiting = self._waiting.pop(ticket, None)
            self._held_locally.add(ticket)
            self._returns.add(PermitReturn(ticket))  # it may still be in the queue in Redis
            if waiting is not None and not waiting.woken.done():
                waiting.woken.set_result(None)

    # -- giving back --------------------------------------------------------------------------------------------------

    def _give_back(self, ticket: str, held_ms: int, reason: BulkheadReason | None = None) -> None:
        """Returns a permit or a place in the queue; no I/O."""
        self._waiting.pop(ticket, None)
        if ticket in self._held_locally:
            self._held_locally.remove(ticket)
        else:
            self._held.discard(ticket)
            self._returns.add(PermitReturn(ticket, held_ms, "deadline" if reason == "deadline" else None))
        if self._local is not None:
            self._granted_locally(self._local.give(ticket, held_ms))

    async def _send(self, returns: Sequence[PermitReturn]) -> None:
        try:
            self._granted(await self.store.give(returns))
        except StoreUnavailable:
            self._lost_store()
            raise

    # -- the store ----------------------------------------------------------------------------------------------------

    def _lost_store(self) -> LocalBulkhead:
        """Continues locally with the tickets that hold a permit or wait; `renew_leases` ends that."""
        if self._local is None:
            held = self._held | self._held_locally
            self._local = LocalBulkhead(self.policy, self._live_workers(), self._worker, held, self._waiting)
            self._telemetry.bulkhead_store_lost(self.name, self._local.limit)
            self._granted_locally(self._local.hand_out())
        return self._local

    async def renew_leases(self) -> None:
        """Renews this worker's leases, serves callers that missed their message, and reconnects to a lost Redis.

        Local permits stay local until they end; waiting callers join the fleet's queue. They learn their positions.
        """
        self.promoted.clear()
        if not (self._held or self._waiting or self._local):
            return
        async with self._returns.sending:  # tickets being returned must not be renewed
            try:
                await self._returns.send_pending()
                renewed = await self.store.renew_leases(self._held, self._waiting)
            except StoreUnavailable:
                local = self._lost_store()
                renewed = local.renewed()
                self._granted_locally(renewed.granted)
                self._show_positions(renewed)
                return
            if self._local is not None:
                self._local = None
                self._telemetry.bulkhead_store_found(self.name)
            self._granted(renewed.granted)
            self._show_positions(renewed)

    def _show_positions(self, renewed: RenewedLeases) -> None:
        for ticket, position in renewed.positions.items():
            if (call := self._waiting.get(ticket)) is not None:
                call.place.move(position, estimated_seconds(renewed.service_ms, position, self.limit))

    async def reading(self) -> BulkheadReading:
        """The bulkhead's current state: the fleet's, or without Redis this worker's."""
        try:
            await self._returns.flush()
            return await self.store.read()
        except StoreUnavailable:
            return self._lost_store().read()

    async def aclose(self) -> None:
        """Sends queued returns."""
        await self._returns.aclose()


RENEWAL_SECONDS: Final = 1.0
RECONNECT_SECONDS: Final = 0.25


@asynccontextmanager
async def kept_alive(bulkhead: FleetBulkhead) -> AsyncIterator[FleetBulkhead]:
    """Follows the bulkhead and renews leases while the block runs; sends queued returns at the end."""
    try:
        async with Background() as background:
            background.start(_follow, bulkhead)
            background.start(_renew_loop, bulkhead)
            yield bulkhead
    finally:
        await bulkhead.aclose()


async def _follow(bulkhead: FleetBulkhead) -> None:
    while True:
        try:
            async for wake in bulkhead.store.follow():
                if wake is None:
                    await bulkhead.renew_leases()  # messages before the (re)connect are lost
                else:
                    bulkhead.woken(wake)
        except StoreUnavailable:
            await asyncio.sleep(RECONNECT_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter


async def _renew_loop(bulkhead: FleetBulkhead) -> None:
    every = min(RENEWAL_SECONDS, bulkhead.policy.lease_ms / 4000)
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(every * random.uniform(0.5, 1.5)):  # noqa: S311 - jitter
                await bulkhead.promoted.wait()
        await bulkhead.renew_leases()
