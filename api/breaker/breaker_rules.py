"""The circuit breaker's rules as pure functions: state in, state and verdict out.

The scripts in `redis_store/stores/breaker.lua` apply the same rules atomically in Redis; a stateful test drives both
side by side. A worker without Redis applies these to a local state.

- CLOSED admits all calls. It opens on failures in a row, or on the window's failure or slow rate over enough calls.
- OPEN rejects until its wait has passed; the next call makes it HALF_OPEN.
- HALF_OPEN grants permits. One failure reopens it with a doubled wait; as many successes as permits close it, unless
  too many of them were slow. A permit whose lease ends is lost and granted again.
- Every change of state starts a new epoch. A result of an older epoch changes nothing.

`recovery` computes statistics of a backend's outages from its breaker's transitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Final

from api.breaker.state import (
    WINDOW_KINDS,
    BreakerPolicy,
    BreakerReading,
    BreakerState,
    CallOutcome,
    Permission,
    Position,
    Recorded,
    State,
    Transition,
)

HALF_OPEN_RETRY_MS: Final = 250
"""The longest `Retry-After` for a caller that got no permit."""

INIT: Final = "init"
"""The reason of a new state (first use, FLUSHALL): CLOSED, and results of the previous epoch count."""

_FAILURES = (CallOutcome.FAILED, CallOutcome.SLOW_FAILED)
_SLOW = (CallOutcome.SLOW, CallOutcome.SLOW_FAILED)

Step = tuple[BreakerState, Transition]
Counts = tuple[int, int, int, int]
"""The counts that led to a transition: calls in the window, failed, slow, and failures in a row."""

NO_COUNTS: Final[Counts] = (0, 0, 0, 0)


def admit(
    state: BreakerState, policy: BreakerPolicy, now_ms: int, token: str, by: str
) -> tuple[BreakerState, Permission]:
    """Decides whether one call may go to Ollama now."""
    if state.forced == "OPEN":
        return state, _verdict(state, granted=False, wait_ms=policy.timeout_ms)
    if state.state is State.CLOSED:
        return state, _verdict(state, granted=True)
    if state.state is State.OPEN:
        if now_ms < state.until_ms:
            return state, _verdict(state, granted=False, wait_ms=state.until_ms - now_ms)
        state, _ = _move(state, State.HALF_OPEN, "wait_elapsed", by, now_ms)
        state = replace(state, half_open_at_ms=now_ms)
    state, lost = _drop_lost_permits(state, now_ms)
    if len(state.permits) < policy.half_open_max_calls:
        permits = {**state.permits, token: now_ms + policy.lease_ms}
        state = replace(state, permits=permits, half_open_probes=state.half_open_probes + 1)
        return state, replace(_verdict(state, granted=True, probe=True), lost=lost)
    wait = min(HALF_OPEN_RETRY_MS, min(state.permits.values()) - now_ms)
    return state, replace(_verdict(state, granted=False, wait_ms=wait), lost=lost)


def record(
    state: BreakerState,
    policy: BreakerPolicy,
    now_ms: int,
    epoch: int,
    token: str,
    outcomes: Sequence[CallOutcome],
    by: str,
    rejected: int = 0,
) -> tuple[BreakerState, Recorded]:
    """Records results of calls admitted in `epoch`, oldest first, and the number of calls rejected meanwhile."""
    held = token in state.permits
    permits = {key: end for key, end in state.permits.items() if key != token}
    totals = replace(state.totals, rejected=state.totals.rejected + rejected)
    state = replace(state, permits=permits, totals=totals)
    if not outcomes:
        return state, Recorded(_position(state, now_ms))
    if (epoch != state.epoch and state.reason != INIT) or (state.state is State.HALF_OPEN and not held):
        totals = replace(state.totals, stale=state.totals.stale + len(outcomes))
        state = replace(state, totals=totals)
        return state, Recorded(_position(state, now_ms), stale=True)
    state = _count(state, outcomes, now_ms)
    before = state.epoch
    if state.state is State.HALF_OPEN:
        state = _judge_probe(state, policy, outcomes[-1], by, now_ms)
    elif state.state is State.CLOSED:
        state = _judge_window(state, policy, outcomes, by, now_ms)
    return state, Recorded(_position(state, now_ms), changed=state.epoch != before)


def renew(state: BreakerState, policy: BreakerPolicy, now_ms: int, token: str) -> tuple[BreakerState, bool]:
    """Renews a running probe's permit. False if it belongs to another call."""
    if state.permits.get(token, 0) <= now_ms:
        return state, False
    return replace(state, permits={**state.permits, token: now_ms + policy.lease_ms}), True


def force(state: BreakerState, to: State, by: str, now_ms: int) -> Step:
    """Starts an operator's override, which stays until `reset`."""
    reason = "forced_open" if to is State.OPEN else "forced_close"
    state, transition = _move(state, to, reason, by, now_ms)
    return replace(state, forced="OPEN" if to is State.OPEN else "CLOSED"), transition


def reset(state: BreakerState, by: str, now_ms: int) -> Step:
    """Resets to CLOSED with all counts at zero and no override."""
    moved, transition = _move(state, State.CLOSED, "reset", by, now_ms)
    fresh = BreakerState(
        state=moved.state, epoch=moved.epoch, since_ms=now_ms, until_ms=now_ms, reason=moved.reason, by=moved.by
    )
    return fresh, transition


def read(state: BreakerState, policy: BreakerPolicy, now_ms: int) -> BreakerReading:
    """The state with the sums of its window."""
    total, failed, slow = _window_sums(state, policy, now_ms)
    in_use = sum(1 for end in state.permits.values() if end > now_ms)
    return BreakerReading(state, now_ms, total, failed, slow, in_use)


def _verdict(state: BreakerState, *, granted: bool, probe: bool = False, wait_ms: int = 0) -> Permission:
    return Permission(granted, probe, Position(state.state, state.epoch, max(0, wait_ms), state.forced))


def _position(state: BreakerState, now_ms: int) -> Position:
    wait = max(0, state.until_ms - now_ms) if state.state is State.OPEN else 0
    return Position(state.state, state.epoch, wait, state.forced)


def _move(
    state: BreakerState, to: State, reason: str, by: str, now_ms: int, wait_ms: int = 0, counts: Counts = NO_COUNTS
) -> tuple[BreakerState, Transition]:
    epoch = max(state.epoch + 1, now_ms)
    transition = Transition(state.state, to, reason, by, epoch, wait_ms, now_ms, *counts, state.half_open_probes)
    moved = replace(
        state,
        state=to,
        epoch=epoch,
        since_ms=now_ms,
        until_ms=now_ms + wait_ms,
        open_ms=wait_ms if to is State.OPEN else state.open_ms,
        consecutive_failures=0,
        half_open_ok=0,
        half_open_slow=0,
        half_open_probes=0,
        reason=reason,
        by=by,
        window={},
        permits={},
    )
    return moved, transition


def _open(
    state: BreakerState, policy: BreakerPolicy, reason: str, by: str, now_ms: int, counts: Counts = NO_COUNTS
) -> BreakerState:
    """The wait doubles each time HALF_OPEN reopens; after a stable CLOSED it starts over."""
    if state.state is State.HALF_OPEN:
        opens = state.opens_in_a_row + 1
    elif now_ms - state.since_ms >= policy.stable_ms:
        opens = 1
    else:
        opens = max(1, state.opens_in_a_row)
    wait = min(max(policy.timeout_max_ms, policy.timeout_ms), policy.timeout_ms * 2 ** min(opens - 1, 30))
    moved, _ = _move(replace(state, opens_in_a_row=opens), State.OPEN, reason, by, now_ms, wait, counts)
    return moved


def _drop_lost_permits(state: BreakerState, now_ms: int) -> tuple[BreakerState, int]:
    permits = {token: end for token, end in state.permits.items() if end > now_ms}
    lost = len(state.permits) - len(permits)
    return replace(state, permits=permits, totals=replace(state.totals, lost=state.totals.lost + lost)), lost


def _count(state: BreakerState, outcomes: Sequence[CallOutcome], now_ms: int) -> BreakerState:
    failed = sum(outcome in _FAILURES for outcome in outcomes)
    ignored = sum(outcome is CallOutcome.IGNORED for outcome in outcomes)
    totals = replace(
        state.totals,
        successful=state.totals.successful + len(outcomes) - failed - ignored,
        failed=state.totals.failed + failed,
        slow=state.totals.slow + sum(outcome in _SLOW for outcome in outcomes),
        ignored=state.totals.ignored + ignored,
    )
    return replace(state, totals=totals, last_failure_ms=now_ms if failed else state.last_failure_ms)


def _judge_probe(
    state: BreakerState, policy: BreakerPolicy, outcome: CallOutcome, by: str, now_ms: int
) -> BreakerState:
    if outcome is CallOutcome.IGNORED:
        return state
    if outcome in _FAILURES:
        return _open(state, policy, "probe_failed", by, now_ms)
    ok = state.half_open_ok + 1
    slow = state.half_open_slow + (outcome is CallOutcome.SLOW)
    state = replace(state, half_open_ok=ok, half_open_slow=slow)
    if ok < policy.half_open_max_calls:
        return state
    if slow * 100 >= policy.slow_rate * ok:
        return _open(state, policy, "probes_slow", by, now_ms)
    moved, _ = _move(state, State.CLOSED, "probes_succeeded", by, now_ms)
    return moved


def _judge_window(
    state: BreakerState, policy: BreakerPolicy, outcomes: Sequence[CallOutcome], by: str, now_ms: int
) -> BreakerState:
    second = now_ms // 1000
    window = {key: count for key, count in state.window.items() if key[0] > second - policy.window_s}
    consecutive = peak = state.consecutive_failures
    for outcome in outcomes:
        if outcome not in WINDOW_KINDS:
            continue
        window[second, outcome] = window.get((second, outcome), 0) + 1
        consecutive = consecutive + 1 if outcome in _FAILURES else 0
        peak = max(peak, consecutive)
    state = replace(state, window=window, consecutive_failures=consecutive)
    if not policy.enabled or state.forced:
        return state
    total, failed, slow = counts = _window_sums(state, policy, now_ms)
    if peak >= policy.failure_threshold:
        return _open(state, policy, "consecutive_failures", by, now_ms, (*counts, peak))
    if total >= policy.minimum_calls and failed * 100 >= policy.failure_rate * total:
        return _open(state, policy, "failure_rate", by, now_ms, (*counts, peak))
    if total >= policy.minimum_calls and slow * 100 >= policy.slow_rate * total:
        return _open(state, policy, "slow_call_rate", by, now_ms, (*counts, peak))
    return state


def _window_sums(state: BreakerState, policy: BreakerPolicy, now_ms: int) -> tuple[int, int, int]:
    total = failed = slow = 0
    for (second, outcome), count in state.window.items():
        if second > now_ms // 1000 - policy.window_s:
            total += count
            failed += count if outcome in _FAILURES else 0
            slow += count if outcome in _SLOW else 0
    return total, failed, slow


HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS


@dataclass(frozen=True, slots=True)
class Outage:
    """The time from leaving CLOSED until it returns.

    `ended_ms` is None for a current outage; `probes`: calls that all its HALF_OPENs admitted.
    """

    began_ms: int
    ended_ms: int | None
    probes: int
    reason: str

    def lasted_ms(self, now_ms: int) -> int:
        """The duration, up to now for a current outage."""
        return (self.ended_ms if self.ended_ms is not None else now_ms) - self.began_ms


@dataclass(frozen=True, slots=True)
class Recovery:
    """Statistics over the last 24 hours, as far as the history goes back. Availability is a fraction of time."""

    outages: tuple[Outage, ...]
    outages_per_hour: float
    mean_seconds: float | None
    longest_seconds: float | None
    mean_probes: float | None
    availability_1h: float
    availability_24h: float


def recovery(transitions: Sequence[Transition], now_ms: int) -> Recovery:
    """`transitions`: oldest first, by the same clock as `now_ms`. Means include ended outages only."""
    outages = _outages(transitions)
    recent = tuple(outage for outage in outages if (outage.ended_ms or now_ms) > now_ms - DAY_MS)
    ended = [outage for outage in recent if outage.ended_ms is not None]
    lengths = [outage.lasted_ms(now_ms) / 1000 for outage in ended]
    return Recovery(
        outages=recent,
        outages_per_hour=sum(outage.began_ms > now_ms - DAY_MS for outage in recent) / 24,
        mean_seconds=fmean(lengths) if lengths else None,
        longest_seconds=max(lengths, default=None),
        mean_probes=fmean(outage.probes for outage in ended) if ended else None,
        availability_1h=_availability(recent, now_ms, HOUR_MS),
        availability_24h=_availability(recent, now_ms, DAY_MS),
    )


def _outages(transitions: Sequence[Transition]) -> list[Outage]:
    found: list[Outage] = []
    began: Transition | None = None
    probes = 0
    for transition in transitions:
        if began is None and transition.to_state is not State.CLOSED:
            began, probes = transition, 0
        elif began is not None:
            probes += transition.probes
            if transition.to_state is State.CLOSED:
                found.append(Outage(began.at_ms, transition.at_ms, probes, began.reason))
                began = None
    if began is not None:
        found.append(Outage(began.at_ms, None, probes, began.reason))
    return found


def _availability(outages: Sequence[Outage], now_ms: int, span_ms: int) -> float:
    """The share of the last `span_ms` without rejected calls."""
    start = now_ms - span_ms
    lost = sum(max(0, (o.ended_ms or now_ms) - max(o.began_ms, start)) for o in outages)
    return 1 - lost / span_ms
