"""The circuit breaker: workers ask for admission, call, and report, while it is open, half-open and closed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from api.breaker.state import BreakerPolicy, CallOutcome
from api.errors import StoreUnavailable
from api.redis_store.keys import Keys
from api.redis_store.stores.breaker import RedisBreakerStore
from scripts.models.explore import Program, Step, Violation
from scripts.models.hand import Choice, Command, LuaChange, Note, gate, unchanged
from scripts.models.model_redis import Contents

POLICY: Final = BreakerPolicy(
    failure_threshold=2, timeout_ms=1_000, timeout_max_ms=2_000, half_open_max_calls=2, minimum_calls=100, lease_ms=500
)
NAME: Final = "model"
STATE, _, PERMITS, _ = Keys().breaker(NAME)


@dataclass(frozen=True)
class Probe:
    """A permit that was given: in which epoch, and until when it is held (ms)."""

    token: str
    epoch: int
    until_ms: int


@dataclass(frozen=True)
class Ghost:
    """The permits given and not returned, and how many probes of an epoch have succeeded."""

    probes: frozenset[Probe] = frozenset()
    succeeded: tuple[int, int] = (0, 0)


class BreakerModel:
    """At most the permitted probes at a time; no result of an earlier epoch changes the state; no success is lost."""

    moves: Sequence[int] = (POLICY.lease_ms, POLICY.timeout_ms)
    repair_after = POLICY.timeout_max_ms + POLICY.lease_ms

    def __init__(self, workers: int = 3, calls: int = 2, change: LuaChange = unchanged) -> None:
        self.name = f"breaker, {workers} workers"
        self._change = change
        self._calls = calls
        self.programs: Sequence[Program] = (self._caller,) * workers
        self.setup: Sequence[Program] = (self._opened,)
        self.repair: Program | None = self._recovery

    def _store(self, worker: str) -> RedisBreakerStore:
        def no_reader(seconds: float) -> Any:
            raise NotImplementedError

        return RedisBreakerStore(gate(self._change), no_reader, Keys(), NAME, POLICY, worker)

    async def _opened(self, worker: str) -> None:
        """Opens the breaker."""
        store = self._store(worker)
        permission = await store.admit("")
        await store.record(permission.position.epoch, "", [CallOutcome.FAILED] * POLICY.failure_threshold, 0)

    async def _caller(self, worker: str) -> None:
        """Calls a few times."""
        store = self._store(worker)
        for number in range(self._calls):
            token = f"{worker}-{number}"
            with suppress(StoreUnavailable):
                permission = await store.admit(token)
                if not permission.granted:
                    continue
                epoch = permission.position.epoch
                if permission.probe:
                    await Note("probes", (token, epoch))
                outcome = await Choice((CallOutcome.OK, CallOutcome.FAILED))
                await store.record(epoch, token if permission.probe else "", [outcome], 0)

    async def _recovery(self, worker: str) -> None:
        """Calls successfully, as often as closing needs."""
        store = self._store(worker)
        for number in range(POLICY.half_open_max_calls):
            permission = await store.admit(token := f"last-{number}")
            held = token if permission.probe else ""
            await store.record(permission.position.epoch, held, [CallOutcome.OK], 0)

    def begin(self, contents: Contents) -> Ghost:
        """Returns the ghost of an open breaker."""
        if contents.hash(STATE)["state"] != "OPEN":
            raise Violation("The breaker did not open.")
        return Ghost()

    def noted(self, ghost: Ghost, worker: str, note: Note, contents: Contents) -> Ghost:
        """Takes in a permit."""
        token, epoch = note.facts
        live = [one for one in ghost.probes if one.epoch == epoch and one.until_ms > contents.now_ms]
        if len(live) >= POLICY.half_open_max_calls:
            raise Violation(f"{len(live) + 1} probes at a time; {POLICY.half_open_max_calls} are permitted.")
        given = Probe(token, epoch, contents.now_ms + POLICY.lease_ms)
        return replace(ghost, probes=frozenset((*live, given)))

    def stepped(self, ghost: Ghost, step: Step, before: Contents, after: Contents) -> Ghost:
        """Takes in a report, and whatever changed the state."""
        was, now = before.hash(STATE), after.hash(STATE)
        old, new = int(was["epoch"]), int(now["epoch"])
        if new < old or (now["state"] != was["state"] and new == old):
            raise Violation(f"From {was['state']} in epoch {old} to {now['state']} in epoch {new}.")
        if step.command is None or step.command.name != "record":
            return ghost
        epoch, token, _, outcome, *_ = step.command.arguments
        held = token in before.scores(PERMITS)
        counts = int(epoch) == old and (was["state"] != "HALF_OPEN" or held)
        if not counts and (new, now["state"]) != (old, was["state"]):
            raise Violation(f"A late result moved the breaker from {was['state']} to {now['state']}.")
        if counts and was["state"] == "HALF_OPEN" and outcome == CallOutcome.OK:
            at, so_far = ghost.succeeded
            succeeded = so_far + 1 if at == old else 1
            if succeeded >= POLICY.half_open_max_calls and now["state"] != "CLOSED":
                raise Violation(f"{succeeded} probes succeeded, and the breaker is {now['state']}.")
            ghost = replace(ghost, succeeded=(old, succeeded))
        kept = frozenset(one for one in ghost.probes if one.token != token and one.epoch == new)
        return replace(ghost, probes=kept)

    def is_local(self, command: Command) -> bool:
        """Every command of the breaker is seen."""
        return False

    def repaired(self, contents: Contents) -> None:
        """After all permits have ended, successful calls close the breaker."""
        if (state := contents.hash(STATE)["state"]) != "CLOSED":
            raise Violation(f"All calls succeed, and the breaker stays {state}.")
