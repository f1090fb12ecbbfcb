"""The pure rules of the breaker. `tests/integration/test_breaker_equivalence.py` compares the scripts with them."""

from __future__ import annotations

import pytest

from api.breaker import breaker_rules as rules
from api.breaker.state import BreakerPolicy, BreakerState, CallOutcome, State

POLICY = BreakerPolicy(
    failure_threshold=3,
    timeout_ms=1_000,
    timeout_max_ms=5_000,
    half_open_max_calls=2,
    minimum_calls=6,
    failure_rate=50,
    slow_rate=50,
    window_s=10,
    stable_ms=60_000,
    lease_ms=500,
)
NOW = 1_000_000
OK, SLOW, FAILED, IGNORED = CallOutcome.OK, CallOutcome.SLOW, CallOutcome.FAILED, CallOutcome.IGNORED


def closed(**changes: object) -> BreakerState:
    return BreakerState(epoch=NOW, since_ms=NOW, **changes)  # type: ignore[arg-type]


def recorded(state: BreakerState, outcomes: list[CallOutcome], now: int = NOW, token: str = "") -> BreakerState:
    after, result = rules.record(state, POLICY, now, state.epoch, token, outcomes, "w")
    assert not result.stale
    return after


def opened(now: int = NOW) -> BreakerState:
    return recorded(closed(), [FAILED] * 3, now)


def test_consecutive_failures_open() -> None:
    state = recorded(closed(), [FAILED, FAILED, OK, FAILED, FAILED])
    assert state.state is State.CLOSED
    state = recorded(state, [FAILED])
    assert (state.state, state.reason, state.until_ms) == (State.OPEN, "consecutive_failures", NOW + 1_000)


def test_the_failure_rate_opens_only_above_the_minimum_calls() -> None:
    state = recorded(closed(), [FAILED, OK, FAILED, OK, FAILED])
    assert state.state is State.CLOSED
    state = recorded(state, [OK])
    assert (state.state, state.reason) == (State.OPEN, "failure_rate")


def test_slow_calls_open() -> None:
    state = recorded(closed(), [SLOW, OK, SLOW, OK, SLOW, OK])
    assert (state.state, state.reason) == (State.OPEN, "slow_call_rate")


def test_calls_outside_the_window_do_not_count() -> None:
    state = recorded(closed(), [FAILED, OK, FAILED, OK, FAILED])
    state = recorded(state, [OK], NOW + 11_000)
    assert state.state is State.CLOSED


def test_ignored_calls_neither_break_nor_extend_a_run_of_failures() -> None:
    state = recorded(closed(), [FAILED, IGNORED, FAILED, IGNORED])
    assert state.consecutive_failures == 2
    assert recorded(state, [FAILED]).state is State.OPEN


def test_open_rejects_until_its_wait_ends_then_grants_permits() -> None:
    state, admission = rules.admit(opened(), POLICY, NOW + 999, "a", "w")
    assert (admission.granted, admission.position.wait_ms) == (False, 1)
    state, first = rules.admit(state, POLICY, NOW + 1_000, "a", "w")
    state, second = rules.admit(state, POLICY, NOW + 1_000, "b", "w")
    state, third = rules.admit(state, POLICY, NOW + 1_000, "c", "w")
    assert [first.probe, second.probe, third.granted] == [True, True, False]
    assert state.state is State.HALF_OPEN
    assert 0 < third.position.wait_ms <= rules.HALF_OPEN_RETRY_MS


def half_open() -> BreakerState:
    state, _ = rules.admit(opened(), POLICY, NOW + 1_000, "a", "w")
    state, _ = rules.admit(state, POLICY, NOW + 1_000, "b", "w")
    return state


def test_one_success_per_permit_closes() -> None:
    state = recorded(half_open(), [OK], NOW + 1_100, "a")
    assert state.state is State.HALF_OPEN
    state = recorded(state, [OK], NOW + 1_100, "b")
    assert (state.state, state.reason) == (State.CLOSED, "probes_succeeded")


def test_a_failed_probe_reopens_with_a_doubled_wait() -> None:
    state = recorded(half_open(), [FAILED], NOW + 1_100, "a")
    assert (state.state, state.until_ms) == (State.OPEN, NOW + 1_100 + 2_000)


def test_the_wait_grows_up_to_its_maximum_and_starts_over_after_a_stable_time() -> None:
    state, now, waits = opened(), NOW, []
    for _ in range(4):
        now = state.until_ms
        state, _ = rules.admit(state, POLICY, now, "a", "w")
        state = recorded(state, [FAILED], now, "a")
        waits.append(state.open_ms)
    assert waits == [2_000, 4_000, 5_000, 5_000]
    now = state.until_ms
    for token in "ab":
        state, _ = rules.admit(state, POLICY, now, token, "w")
    state = recorded(recorded(state, [OK], now, "a"), [OK], now, "b")
    soon = recorded(state, [FAILED] * 3, now + 1_000)
    assert soon.open_ms == 5_000
    later = recorded(state, [FAILED] * 3, now + 60_000)
    assert later.open_ms == 1_000


def test_slow_probes_do_not_close() -> None:
    state = recorded(half_open(), [SLOW], NOW + 1_100, "a")
    state = recorded(state, [SLOW], NOW + 1_100, "b")
    assert (state.state, state.reason) == (State.OPEN, "probes_slow")


def test_an_ignored_probe_returns_its_permit() -> None:
    state = recorded(half_open(), [IGNORED], NOW + 1_100, "a")
    state, admission = rules.admit(state, POLICY, NOW + 1_100, "c", "w")
    assert admission.probe


def test_a_lost_probe_frees_its_permit_when_its_lease_ends() -> None:
    state, admission = rules.admit(half_open(), POLICY, NOW + 1_499, "c", "w")
    assert not admission.granted
    state, admission = rules.admit(state, POLICY, NOW + 1_500, "c", "w")
    assert admission.probe
    assert state.totals.lost == 2


def test_a_live_holder_keeps_its_permit() -> None:
    state, renewed = rules.renew(half_open(), POLICY, NOW + 1_400, "a")
    assert renewed
    state, _ = rules.admit(state, POLICY, NOW + 1_600, "c", "w")
    assert set(state.permits) == {"a", "c"}


def test_a_result_of_an_older_epoch_only_counts_as_stale() -> None:
    before = half_open()
    after, result = rules.record(before, POLICY, NOW + 1_100, NOW, "", [OK, OK, FAILED], "w")
    assert result.stale
    assert (after.state, after.epoch, after.totals.stale) == (State.HALF_OPEN, before.epoch, 3)


def test_a_result_without_a_permit_does_not_close_a_half_open_breaker() -> None:
    before = half_open()
    _, result = rules.record(before, POLICY, NOW + 1_100, before.epoch, "nobody", [OK], "w")
    assert result.stale


@pytest.mark.parametrize(("to", "granted"), [(State.OPEN, False), (State.CLOSED, True)])
def test_a_forced_state_stays_until_reset(to: State, *, granted: bool) -> None:
    state, _ = rules.force(closed(), to, "operator", NOW)
    state = recorded(state, [FAILED] * 10)
    for later in (NOW, NOW + 10**9):
        assert rules.admit(state, POLICY, later, "a", "w")[1].granted is granted
    state, _ = rules.reset(state, "operator", NOW + 1)
    assert (state.state, state.forced, state.totals.failed) == (State.CLOSED, "", 0)


def test_a_disabled_breaker_counts_and_never_opens() -> None:
    disabled = BreakerPolicy(enabled=False, failure_threshold=1)
    state, _ = rules.record(closed(), disabled, NOW, NOW, "", [FAILED] * 100, "w")
    assert (state.state, state.totals.failed) == (State.CLOSED, 100)


def test_every_transition_starts_a_new_epoch_even_if_the_clock_stops() -> None:
    state = opened()
    state, _ = rules.reset(state, "w", NOW)
    state, _ = rules.force(state, State.OPEN, "w", NOW)
    assert state.epoch == NOW + 3
