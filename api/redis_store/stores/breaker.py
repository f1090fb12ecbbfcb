"""The circuit breaker in Redis: one script per step, by Redis's clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import RedisError

from api.breaker.state import (
    BreakerPolicy,
    BreakerReading,
    BreakerState,
    CallOutcome,
    Override,
    Permission,
    Position,
    Recorded,
    State,
    Totals,
    Transition,
)
from api.errors import StoreUnavailable
from api.redis_store.health_gated import HealthGatedClients
from api.redis_store.keys import Keys
from api.redis_store.scripts import script

BLOCK_SECONDS: Final = 5.0


class RedisBreakerStore:
    """One breaker that the fleet shares. Every method raises `StoreUnavailable`.

    `reader` opens a separate client that follows the log of state changes.
    """

    def __init__(
        self,
        redis: HealthGatedClients,
        reader: Callable[[float], AbstractAsyncContextManager[Redis]],
        keys: Keys,
        name: str,
        policy: BreakerPolicy,
        worker: str,
    ) -> None:
        self._keys = keys.breaker(name)
        self._redis = redis.of(self._keys[0])
        self._reader = reader
        self._log = self._keys[3]
        self._policy = policy
        self._worker = worker
        self._last_id = ""
        self._unreadable: set[str] = set()
        self._logger = structlog.get_logger("ragherd.breaker")
        self._admit = self._script("admit")
        self._record = self._script("record")
        self._renew = self._script("renew")
        self._read = self._script("read")
        self._override = self._script("override")
        self._drain = self._script("drain")
        self._record_args = _record_arguments(policy)

    def _script(self, operation: str) -> AsyncScript:
        return script(self._redis.client, "stores/breaker", operation)

    async def _run(self, called: AsyncScript, *arguments: Any) -> Any:
        return await self._redis.run("breaker", lambda client: called(self._keys, arguments, client))

    async def admit(self, token: str) -> Permission:
        """Asks for admission. `token` names the permit if the call is a probe."""
        policy = self._policy
        granted, probe, lost, *position = await self._run(
            self._admit, token, self._worker, policy.lease_ms, policy.half_open_max_calls, policy.timeout_ms
        )
        return Permission(bool(granted), bool(probe), _position(position), int(lost))

    async def record(self, epoch: int, token: str, outcomes: list[CallOutcome], rejected: int) -> Recorded:
        """Reports outcomes, oldest first, of calls admitted in `epoch`. `token` is empty unless the call is a probe.

        Writes even an empty report, which tells whether the store accepts writes.
        """
        stale, changed, *position = await self._run(
            self._record, epoch, token, self._worker, "".join(outcomes), rejected, *self._record_args
        )
        return Recorded(_position(position), bool(stale), bool(changed))

    async def renew(self, token: str) -> bool:
        """Renews the permit of a probe. Returns False if it is gone."""
        return bool(await self._run(self._renew, token, self._policy.lease_ms))

    async def read(self) -> BreakerReading:
        """Reads the breaker's state and counts at one moment."""
        now, total, failed, slow, permits, *pairs = await self._run(self._read, self._policy.window_s)
        fields = _texts(dict(zip(pairs[::2], pairs[1::2], strict=True)))
        return BreakerReading(_state(fields), int(now), total, failed, slow, permits)

    async def override(self, action: Override, by: str) -> Position:
        """Starts or ends an operator's override. `by` is noted in the log."""
        return _position(await self._run(self._override, action, by))

    async def drain(self, address: str, by: str, *, restores: bool = False) -> None:
        """Stores that the backend at `address` is drained; empty: that it is not. `restores`: only if Redis lost it."""
        await self._run(self._drain, address, by, int(restores))

    async def history(self, limit: int, since_ms: int = 0) -> list[Transition]:
        """Returns transitions, newest first, at most `limit` and none older than `since_ms`."""
        entries = await self._redis.run(
            "breaker_history", lambda client: client.xrevrange(self._log, "+", since_ms or "-", count=limit)
        )
        return self._transitions(entries or [])

    async def follow(self) -> AsyncIterator[list[Transition]]:
        """Yields new transitions, oldest first, and an empty list after each (re)connect.

        Continues after the last entry seen, also after a reconnect. Raises `StoreUnavailable` when the connection is
        lost.
        """
        async with self._reader(BLOCK_SECONDS) as client:
            try:
                self._last_id = self._last_id or await self._newest_id(client)
                yield []
                while True:
                    reply = await client.xread({self._log: self._last_id}, block=round(BLOCK_SECONDS * 1000))
                    entries = [entry for _, found in _streams(reply) for entry in found]
                    if entries:
                        self._last_id = entries[-1][0]
                        yield self._transitions(entries)
            except (RedisError, OSError, TimeoutError) as error:
                raise StoreUnavailable(str(error)) from error

    def _transitions(self, entries: Iterable[tuple[Any, Any]]) -> list[Transition]:
        """Parses log entries. Skips entries of other programs or later releases."""
        found = []
        for entry_id, fields in entries:
            try:
                found.append(_transition(_text(entry_id), _texts(fields)))
            except (LookupError, ValueError, AttributeError):  # no fields at all: redis-py gives None
                self._skipped(_text(entry_id))
        return found

    def _skipped(self, entry_id: str) -> None:
        if entry_id not in self._unreadable:
            self._unreadable.add(entry_id)
            self._logger.warning("breaker_log_entry_unreadable", log=self._log, entry=entry_id)

    async def _newest_id(self, client: Redis) -> str:
        newest = await client.xrevrange(self._log, count=1)
        return str(newest[0][0]) if newest else "0-0"


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _texts(fields: Any) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in fields.items()}


def _streams(reply: Any) -> list[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """Reads a reply of XREAD in either protocol: a list of pairs or a mapping."""
    if isinstance(reply, dict):
        return [(name, [entry for group in groups for entry in group]) for name, groups in reply.items()]
    return list(reply or [])


def _record_arguments(policy: BreakerPolicy) -> tuple[Any, ...]:
    return (
        int(policy.enabled),
        policy.failure_threshold,
        policy.timeout_ms,
        policy.timeout_max_ms,
        policy.half_open_max_calls,
        policy.minimum_calls,
        policy.failure_rate,
        policy.slow_rate,
        policy.window_s,
        policy.stable_ms,
    )


def _position(reply: list[Any]) -> Position:
    state, epoch, wait, forced = map(_text, reply)
    return Position(State(state), int(epoch), int(wait), forced)  # type: ignore[arg-type]


def _state(fields: dict[str, str]) -> BreakerState:
    """Parses the breaker's hash. Unreadable fields count as missing, as in the scripts."""

    def number(name: str) -> int:
        with suppress(ValueError):
            return int(fields.get(name) or 0)
        return 0

    state = fields.get("state", "")
    return BreakerState(
        state=State(state) if state in set(State) else State.CLOSED,
        epoch=number("epoch"),
        since_ms=number("since_ms"),
        until_ms=number("until_ms"),
        open_ms=number("open_ms"),
        half_open_at_ms=number("half_open_at_ms"),
        consecutive_failures=number("consecutive_failures"),
        opens_in_a_row=number("opens_in_a_row"),
        half_open_ok=number("half_open_ok"),
        half_open_slow=number("half_open_slow"),
        half_open_probes=number("half_open_probes"),
        forced=fields.get("forced", ""),  # type: ignore[arg-type]
        reason=fields.get("reason", ""),
        by=fields.get("by", ""),
        last_failure_ms=number("last_failure_ms"),
        drained=fields.get("drained"),
        drained_ms=number("drained_ms"),
        totals=Totals(
            successful=number("successful_calls"),
            failed=number("failed_calls"),
            slow=number("slow_calls"),
            ignored=number("ignored_calls"),
            rejected=number("rejected_calls"),
            stale=number("stale_results"),
            lost=number("half_open_lost"),
        ),
    )


def _transition(entry_id: str, fields: dict[str, str]) -> Transition:
    return Transition(
        from_state=State(fields["from"]),
        to_state=State(fields["to"]),
        reason=fields["reason"],
        by=fields["by"],
        epoch=int(fields["epoch"]),
        wait_ms=int(fields["wait_ms"]),
        at_ms=int(fields["at_ms"]),
        total=int(fields.get("total", 0)),
        failed=int(fields.get("failed", 0)),
        slow=int(fields.get("slow", 0)),
        consecutive=int(fields.get("consecutive", 0)),
        probes=int(fields.get("probes", 0)),
        id=entry_id,
    )
