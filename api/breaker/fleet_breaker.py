"""One worker's view of the fleet's circuit breaker.

A call on a closed breaker costs no round trip: the local view admits it, and a success is reported with others a moment
later. An open breaker rejects locally. On a half-open one, Redis grants a permit before the call and takes the outcome
afterwards. Failures are reported at once. Without Redis the same rules apply locally (`LocalBreaker`).

Users of pybreaker find `current_state`, `fail_max`, listeners and `CircuitBreakerError`. What pybreaker does
synchronously and per process (`call`, `calling`, its transitions) is replaced. The pushed log of transitions and a poll
with jitter keep the view current.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from itertools import groupby
from operator import itemgetter
from typing import Any, NoReturn

import pybreaker
import structlog

from api.breaker.local_breaker import PYBREAKER_STATES, LocalBreaker, LocalView
from api.breaker.state import (
    NOTES,
    BreakerPolicy,
    BreakerReading,
    BreakerStore,
    CallOutcome,
    Override,
    Permission,
    Position,
    Recorded,
    State,
    Transition,
)
from api.cancellation import Background, log_failure
from api.errors import BreakerOpen, StoreUnavailable

_log = structlog.get_logger("ragherd.breaker")


class CallAttempt:
    """A call admitted in `epoch`; `token` names its permit when it is a probe, and is empty otherwise."""

    def __init__(self, owner: FleetBreaker, epoch: int, token: str) -> None:
        self._owner = owner
        self._epoch = epoch
        self._token = token
        self.reported = False

    async def succeeded(self, seconds: float) -> None:
        """The call worked. `seconds`: to its first token, less the time the model took to load."""
        await self._report(CallOutcome.SLOW if self._is_slow(seconds) else CallOutcome.OK)

    async def failed(self, seconds: float) -> None:
        """The call failed in a way that speaks against Ollama."""
        await self._report(CallOutcome.SLOW_FAILED if self._is_slow(seconds) else CallOutcome.FAILED)

    async def ignored(self) -> None:
        """The call says nothing about Ollama: its permit is returned, nothing else changes."""
        await self._report(CallOutcome.IGNORED)

    def _is_slow(self, seconds: float) -> bool:
        return seconds * 1000 >= self._owner.policy.slow_ms

    async def _report(self, outcome: CallOutcome) -> None:
        if not self.reported:
            self.reported = True
            await self._owner.report(self._epoch, self._token, outcome)

    @asynccontextmanager
    async def renewed(self) -> AsyncIterator[None]:
        """Renews the permit of a probe while the block runs. Any other call has none."""
        if not self._token:
            yield
            return
        renewal = asyncio.create_task(self._keep_renewing())
        try:
            yield
        finally:
            renewal.cancel()

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(self._owner.policy.lease_ms / 3000)
            if not await self._owner.renew(self._token):
                return


COALESCE_SECONDS = 0.25

Send = Callable[[int, str, list[CallOutcome], int], Awaitable[None]]


class OutcomeReports:
    """Collects the outcomes of one worker. Sends a first success at once, and those right after it together."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._outcomes: list[tuple[int, CallOutcome]] = []
        self._rejected = 0
        self._sending = asyncio.Lock()
        self._added = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def add(self, epoch: int, outcome: CallOutcome, *, at_once: bool) -> None:
        """Queues an outcome of a call admitted in `epoch`. With `at_once` it has been sent when this returns."""
        self._outcomes.append((epoch, outcome))
        if at_once:
            await self.flush()
        else:
            self._flush_soon()

    def rejected(self) -> None:
        """Counts a rejected call."""
        self._rejected += 1
        self._flush_soon()

    def _flush_soon(self) -> None:
        self._added.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep_flushing(), name="breaker-reports")
            log_failure(self._task)

    async def _keep_flushing(self) -> None:
        while True:
            await self._added.wait()
            self._added.clear()
            while self._outcomes or self._rejected:
                await self._flush()
                await asyncio.sleep(COALESCE_SECONDS)

    async def flush(self) -> None:
        """Sends everything queued, after what is already being sent. A caller's cancellation loses nothing."""
        if self._outcomes or self._rejected or self._sending.locked():
            task = asyncio.create_task(self._flush())
            log_failure(task, Exception)  # raised here unless the caller is cancelled
            try:
                await asyncio.shield(task)
            finally:
                del task  # it holds its error, which refers to this frame

    async def _flush(self) -> None:
        async with self._sending:
            outcomes, self._outcomes = self._outcomes, []
            rejected, self._rejected = self._rejected, 0
            for epoch, group in groupby(outcomes, key=itemgetter(0)):
                await self._send(epoch, "", [outcome for _, outcome in group], rejected)
                rejected = 0
            if rejected:
                await self._send(0, "", [], rejected)

    async def aclose(self) -> None:
        """Sends the rest and stops."""
        async with self._sending:  # outcomes being sent arrive
            if self._task is not None:
                self._task.cancel()
        await self.flush()


class FleetBreaker(pybreaker.CircuitBreaker):
    """One breaker, shared by all workers that use the same name."""

    def __init__(
        self,
        name: str,
        policy: BreakerPolicy,
        store: BreakerStore,
        worker: str,
        *,
        listeners: tuple[pybreaker.CircuitBreakerListener, ...] = (),
        address: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.drained = False
        """Whether an admin has drained this backend. While Redis is lost, the last known state."""
        self._address = address
        self.view = LocalView(name, clock)
        super().__init__(
            name=name,
            fail_max=policy.failure_threshold,
            reset_timeout=policy.timeout_ms / 1000,
            success_threshold=policy.half_open_max_calls,
            state_storage=self.view,
            listeners=listeners,
        )
        self.policy = policy
        self.store = store
        self._worker = worker
        self._clock = clock
        self._local: LocalBreaker | None = None
        self._reports = OutcomeReports(self._send)
        self._finishing: set[asyncio.Task[None]] = set()

    @property
    def store_name(self) -> str:
        """`shared`, or `local` while the store is lost."""
        return "local" if self._local else "shared"

    @property
    def rejects(self) -> bool:
        """Returns whether a call would be rejected now, as far as this worker knows; no I/O."""
        if not self.policy.enabled:
            return False
        if self._local:
            position = self._local.read().position
            return position.forced == "OPEN" or (position.state is State.OPEN and position.wait_ms > 0)
        position = self.view.position
        return position.forced == "OPEN" or (position.state is not State.CLOSED and self.view.remaining > 0)

    @property
    def wants_probe(self) -> bool:
        """Returns whether the breaker needs calls to close, as far as this worker knows; no I/O."""
        return self.effective_state is not State.CLOSED and not self.rejects

    @property
    def effective_state(self) -> State:
        """The state that applies to this worker's calls: its local one without Redis, CLOSED if disabled."""
        if not self.policy.enabled:
            return State.CLOSED
        return self._local.read().position.state if self._local else self.view.position.state

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[CallAttempt]:
        """Admits one call or raises `BreakerOpen`. Without a report the call counts as ignored."""
        token = uuid.uuid4().hex
        admission = await self._admit(token)
        if not admission.granted:
            raise self._rejected(admission.position)
        attempt = CallAttempt(self, admission.position.epoch, token if admission.probe else "")
        async with attempt.renewed():
            try:
                yield attempt
            finally:
                if not attempt.reported:
                    await asyncio.shield(attempt.ignored())

    def check(self) -> None:
        """Raises `BreakerOpen` if the local view rejects calls, so that nobody waits for a permit without need."""
        if self._local and self.policy.enabled:
            position = self._local.read().position
            if position.wait_ms > 0:
                raise self._rejected(position)
            return
        known = self._known()
        if known is not None and not known.granted:
            raise self._rejected(known.position)

    def _rejected(self, position: Position) -> BreakerOpen:
        self._reports.rejected()
        self._tell("not_permitted")
        wait = max(position.wait_ms / 1000, self.view.remaining)
        return BreakerOpen(str(self.name), wait, forced=position.forced == "OPEN")

    def _known(self) -> Permission | None:
        """Redis's verdict, if it is known locally."""
        position = self.view.position
        if not self.policy.enabled or (position.state is State.CLOSED and position.forced != "OPEN"):
            return Permission(granted=True, probe=False, position=position)
        if position.forced == "OPEN":
            return Permission(False, False, Position(State.OPEN, position.epoch, self.policy.timeout_ms, "OPEN"))
        if self.view.remaining > 0:
            return Permission(granted=False, probe=False, position=position)
        return None

    async def _admit(self, token: str) -> Permission:
        if self._local and self.policy.enabled:
            return self._local.admit(token)
        known = self._known()
        if known is not None:
            return known
        ticket = self.view.sending()
        try:
            admission = await self._ask(token)
        except StoreUnavailable:
            return self._lost_store().admit(token)
        self.view.adopt(admission.position, ticket)
        if admission.lost:
            self._tell("lost_probes", admission.lost)
        return admission

    async def _ask(self, token: str) -> Permission:
        """Asks Redis. A caller that leaves meanwhile returns the permit it gets."""
        asking = asyncio.create_task(self.store.admit(token))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._finish(self._give_back(asking, token))
            raise
        finally:
            del asking  # it holds its error, which refers to this frame

    async def _give_back(self, asking: asyncio.Task[Permission], token: str) -> None:
        try:
            admission = await asking
        except StoreUnavailable:
            return
        finally:
            del asking
        if admission.probe:
            await self._send(admission.position.epoch, token, [CallOutcome.IGNORED], 0)

    def _finish(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `work` to its end even if the caller is cancelled; `aclose` waits for it."""
        task = asyncio.create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)
        return task

    async def report(self, epoch: int, token: str, outcome: CallOutcome) -> None:
        """Records an admitted call's outcome. A probe's outcome and a failure have been sent when this returns."""
        self._tell("outcome", outcome)
        if token:
            await asyncio.shield(self._finish(self._send(epoch, token, [outcome], 0)))
        else:
            await self._reports.add(epoch, outcome, at_once=outcome in (CallOutcome.FAILED, CallOutcome.SLOW_FAILED))

    @property
    def epoch(self) -> int:
        """The current epoch: the fleet's, or without Redis this worker's."""
        return self._local.read().breaker.epoch if self._local else self.view.position.epoch

    async def hangs(self, epoch: int) -> None:
        """Reports as many failures as open the breaker, unless its state has changed since `epoch`."""
        if self.effective_state is State.CLOSED and epoch == self.epoch:
            await self._send(epoch, "", [CallOutcome.FAILED] * self.policy.failure_threshold, 0)

    async def renew(self, token: str) -> bool:
        """Renews a running probe's permit. Losing Redis does not end it."""
        if self._local:
            return self._local.renew(token)
        try:
            return await self.store.renew(token)
        except StoreUnavailable:
            return True

    async def _send(self, epoch: int, token: str, outcomes: list[CallOutcome], rejected: int) -> None:
        if self._local is None:
            ticket = self.view.sending()
            try:
                recorded = await self.store.record(epoch, token, outcomes, rejected)
            except StoreUnavailable:
                epoch = self._lost_store().read().breaker.epoch if epoch == self.view.position.epoch else epoch
            else:
                self._adopt(recorded, ticket, len(outcomes))
                return
        if self._local is not None and outcomes:
            self._record_locally(self._local, epoch, token, outcomes)

    def _record_locally(self, local: LocalBreaker, epoch: int, token: str, outcomes: list[CallOutcome]) -> None:
        before = local.read().breaker
        recorded = local.record(epoch, token, outcomes)
        after = local.read().breaker
        if recorded.changed:
            self.announce(
                Transition(
                    before.state, after.state, after.reason, after.by, after.epoch, after.open_ms, after.since_ms
                )
            )

    def _adopt(self, recorded: Recorded, ticket: int, outcomes: int) -> None:
        self.view.adopt(recorded.position, ticket)
        if recorded.stale:
            self._tell("stale_results", outcomes)

    def _lost_store(self) -> LocalBreaker:
        """Continues locally from the last known state; `refresh` ends that."""
        if self._local is None:
            self._local = LocalBreaker(self.policy, self.view.position, self.view.remaining, self._worker, self._clock)
        return self._local

    async def refresh(self) -> None:
        """Reads Redis: the shared state wins over the local one. Also detects that Redis is lost."""
        ticket = self.view.sending()
        try:
            if (
                self._local is not None
            ):  # a full or read-only Redis answers reads, so only a write proves that it is back
                await self.store.record(0, "", [], 0)
            reading = await self.store.read()
        except StoreUnavailable:
            self._lost_store()
            return
        self._local = None
        self.view.adopt(reading.position, ticket)
        self.view.reading = reading
        if self.drained and reading.breaker.drained is None:  # Redis lost its data (FLUSHALL)
            with suppress(StoreUnavailable):
                await self.store.drain(self._address, self._worker, restores=True)
            return
        self._adopt_drain(reading.breaker.drained or "")

    def _adopt_drain(self, address: str) -> None:
        """A drain counts only for the URL that was drained: a changed OLLAMA_BASE_URL may give the name to another."""
        drained = bool(address) and address == self._address
        if drained != self.drained:
            self.drained = drained
            self._tell("drain_changed", drained)

    async def reading(self) -> BreakerReading:
        """The breaker's current state and counts: the fleet's, or without Redis this worker's."""
        await self._reports.flush()
        await self.refresh()
        if self._local is not None or self.view.reading is None:
            return (self._local or self._lost_store()).read()
        return self.view.reading

    async def override(self, action: Override, by: str) -> None:
        """Forces the breaker open or closed for the fleet, or ends that. Raises `StoreUnavailable`."""
        ticket = self.view.sending()
        self.view.adopt(await self.store.override(action, by), ticket)
        await self.refresh()

    async def drain(self, by: str, *, drained: bool) -> None:
        """Drains the backend for the fleet, or resumes it. Raises `StoreUnavailable`."""
        await self.store.drain(self._address if drained else "", by)
        await self.refresh()

    async def aclose(self) -> None:
        """Sends queued outcomes."""
        await asyncio.gather(*self._finishing, return_exceptions=True)
        await self._reports.aclose()

    def announce(self, transition: Transition) -> None:
        """Notifies all listeners of a transition. An entry that is not a change of state is not one."""
        if transition.reason in NOTES:
            return
        self._tell("transition", transition)
        old = self._create_new_state(PYBREAKER_STATES[transition.from_state])
        new = self._create_new_state(PYBREAKER_STATES[transition.to_state])
        self._tell("state_change", old, new)

    def _tell(self, event: str, *values: Any) -> None:
        """Notifies listeners that handle `event`. One that fails affects neither the call nor the others."""
        for listener in self.listeners:
            heard = getattr(listener, event, None)
            if heard is None:
                continue  # pybreaker's own listeners handle only some events
            try:
                heard(self, *values)
            except Exception:  # noqa: BLE001 - whatever a listener raises is its own affair
                _log.exception("breaker_listener_failed", breaker=self.name, listener=type(listener).__name__)

    # -- pybreaker's own way of calling and moving --------------------------------------------------------------------

    async def call(  # type: ignore[override]
        self, func: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any
    ) -> Any:
        """Awaits `func` through the breaker; an exception that `is_system_error` is a failure."""
        started = self._clock()
        async with self.attempt() as attempt:
            try:
                result = await func(*args, **kwargs)
            except Exception as error:  # as in pybreaker: an exception that is not excluded is a failure and is raised
                if self.is_system_error(error):
                    await attempt.failed(self._clock() - started)
                raise
            await attempt.succeeded(self._clock() - started)
            return result

    def calling(self) -> NoReturn:
        """Synchronous use would block the event loop."""
        raise TypeError("use `async with breaker.attempt()`: a fleet's breaker is asynchronous")

    open = half_open = close = calling


POLL_SECONDS = 1.0
RECONNECT_SECONDS = 0.25


@asynccontextmanager
async def kept_current(breaker: FleetBreaker) -> AsyncIterator[FleetBreaker]:
    """Keeps the breaker current while the block runs, and sends queued outcomes at the end."""
    listening = asyncio.Event()
    try:
        async with Background() as background:
            background.start(_follow, breaker, listening)
            background.start(_poll, breaker)
            await listening.wait()  # connected: no transition is missed from here on
            await breaker.refresh()
            yield breaker
    finally:
        await breaker.aclose()


async def _follow(breaker: FleetBreaker, listening: asyncio.Event) -> None:
    while True:
        try:
            async for transitions in breaker.store.follow():
                listening.set()
                await breaker.refresh()
                for transition in transitions:
                    breaker.announce(transition)
        except StoreUnavailable:
            pass
        finally:
            listening.set()
        await asyncio.sleep(RECONNECT_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter


async def _poll(breaker: FleetBreaker) -> None:
    while True:
        await asyncio.sleep(POLL_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        await breaker.refresh()
