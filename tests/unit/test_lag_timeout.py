"""A timeout ignores the loop's lag, reads what has arrived before it fires, and does fire in the end."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Callable, Iterator

import pytest
import uvloop

from api.cancellation import MAX_STRETCH, MIN_TICKS, Countdown, LagTimeout, wait_with_lag
from api.errors import StoreUnavailable
from api.ports.question import Timings
from api.query.cache import BudgetSpent, CacheBudget
from tests.support.garbage import garbage

pytestmark = pytest.mark.slow

LOOPS = pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def busy_rounds(seconds: float) -> Callable[[], None]:
    """Makes every iteration of the loop take this long until the returned function is called."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()

    def busy() -> None:
        time.sleep(seconds)
        if not stopped.is_set():
            loop.call_soon(busy)

    loop.call_soon(busy)
    return stopped.set


def run(loop_factory: LoopFactory, work: Callable[[], object]) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(work())  # type: ignore[arg-type]


@LOOPS
def test_a_reply_already_in_the_socket_is_read_first(
    loop_factory: LoopFactory, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, there = pair

    async def work() -> None:
        reader, writer = await asyncio.open_connection(sock=here)
        with LagTimeout(0.05):
            reading = asyncio.ensure_future(reader.readexactly(5))
            await asyncio.sleep(0)
            there.sendall(b"reply")
            time.sleep(0.2)  # the loop is busy until long after the timeout
            assert await reading == b"reply"
        writer.close()

    run(loop_factory, work)


@LOOPS
@pytest.mark.timed
def test_the_timeout_ends_silence(loop_factory: LoopFactory) -> None:
    async def work() -> None:
        began = time.monotonic()
        with pytest.raises(TimeoutError), LagTimeout(0.1):
            await asyncio.Event().wait()
        assert time.monotonic() - began >= 0.09

    run(loop_factory, work)


@LOOPS
@pytest.mark.timed
def test_a_constantly_lagging_loop_still_times_out(loop_factory: LoopFactory) -> None:
    async def work() -> None:
        def busy() -> None:
            time.sleep(0.02)
            asyncio.get_running_loop().call_later(0, busy)

        asyncio.get_running_loop().call_soon(busy)
        began = time.monotonic()
        with pytest.raises(TimeoutError), LagTimeout(0.05):
            await asyncio.Event().wait()
        assert 0.05 < time.monotonic() - began < MAX_STRETCH * 0.05 + 1

    run(loop_factory, work)


@LOOPS
@pytest.mark.timed
def test_an_operation_of_several_slow_rounds_is_in_time(loop_factory: LoopFactory) -> None:
    async def work() -> None:
        with LagTimeout(0.05):
            for _ in range(6):  # like opening a connection and its handshake
                asyncio.get_running_loop().call_soon(time.sleep, 0.1)
                await asyncio.sleep(0)

    run(loop_factory, work)


@pytest.mark.timed
async def test_a_countdown_that_is_cancelled_counts_the_lag_since_its_last_tick() -> None:
    countdown = Countdown(0.2, lambda: None)
    time.sleep(0.3)
    countdown.cancel()
    assert 0.25 <= countdown.lag < 0.3 + 1


@pytest.mark.timed
async def test_an_ended_countdown_counts_no_lag_twice() -> None:
    stop, ended = busy_rounds(0.1), asyncio.Event()
    began = time.monotonic()
    countdown = Countdown(0.01, ended.set)
    await ended.wait()
    countdown.cancel()
    stop()
    assert countdown.lag <= time.monotonic() - began


@pytest.mark.timed
async def test_a_countdown_is_bounded_however_much_the_loop_lags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.cancellation.MIN_EXTENSION_SECONDS", 0.1)
    stop, ended = busy_rounds(0.1), asyncio.Event()
    began = time.monotonic()
    Countdown(0.05, ended.set)
    await ended.wait()
    stop()
    assert time.monotonic() - began < MIN_TICKS * 0.1


@pytest.mark.timed
async def test_a_countdown_is_extended_by_the_lag() -> None:
    ended = asyncio.Event()
    began = time.monotonic()
    countdown = Countdown(0.2, ended.set)
    time.sleep(0.3)
    await asyncio.wait_for(ended.wait(), 5)
    assert countdown.lag >= 0.25
    assert time.monotonic() - began >= 0.2 + 0.25


async def test_a_restarted_countdown_has_all_of_its_time_again() -> None:
    countdown = Countdown(0.04, lambda: None)
    at_first = countdown._left
    while countdown._left == at_first:
        await asyncio.sleep(0)
    countdown.restart()
    assert countdown._left > at_first
    countdown.cancel()


async def test_a_countdown_that_is_about_to_end_can_be_restarted() -> None:
    ended: list[bool] = []
    countdown = Countdown(0.0, lambda: ended.append(True))
    while countdown._left > 0:
        await asyncio.sleep(0)
    countdown.restart()
    await asyncio.sleep(0)
    countdown.cancel()
    assert not ended


@pytest.mark.timed
async def test_lag_is_not_charged_to_the_budget_of_a_question() -> None:
    budget, timings = CacheBudget(0.1), Timings()

    async def answers() -> str:
        await asyncio.sleep(0.01)
        return "answer"

    for _ in range(3):
        asyncio.get_running_loop().call_soon(time.sleep, 0.15)
        assert await budget.within(timings, answers()) == "answer"
    assert timings.cache > 0.3
    assert timings.lag > 0.2


async def test_a_command_past_its_budget_continues_and_is_awaited_at_shutdown() -> None:
    budget, goes_on = CacheBudget(0.01), asyncio.Event()
    ended: list[str] = []

    async def late() -> str:
        await goes_on.wait()
        return "stored"

    with pytest.raises(BudgetSpent) as spent:
        await budget.within(Timings(), late())
    spent.value.then(lambda task: ended.append(task.result()))
    asyncio.get_running_loop().call_soon(goes_on.set)
    await budget.aclose()
    assert ended == ["stored"]


async def test_a_command_that_never_ends_does_not_block_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.query.cache.CLOSE_SECONDS", 0.01)
    budget = CacheBudget(0.01)
    with pytest.raises(StoreUnavailable):
        await budget.within(Timings(), asyncio.Event().wait())
    async with asyncio.timeout(5):
        await budget.aclose()


@pytest.mark.parametrize("done_first", [True, False])
async def test_asyncio_does_not_log_the_error_of_an_abandoned_command(done_first: bool) -> None:
    unheard: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unheard.append(context))
    budget, fails = CacheBudget(1.0), asyncio.Event()

    async def lost() -> None:
        await fails.wait()
        raise StoreUnavailable("Redis is down")

    caller = asyncio.create_task(budget.within(Timings(), lost()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if done_first:  # it fails at the moment its caller is cancelled
        fails.set()
        await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    fails.set()
    await budget.aclose()
    del caller
    gc.collect()
    await asyncio.sleep(0)
    assert unheard == []


@pytest.mark.timed
async def test_waiting_returns_the_lag_and_does_not_cancel_the_task() -> None:
    task = asyncio.create_task(asyncio.sleep(3600))
    assert await wait_with_lag(task, 0.01) < 1
    assert not task.done()
    task.cancel()


@LOOPS
def test_a_timeout_leaves_nothing_to_the_garbage_collector(loop_factory: LoopFactory) -> None:
    async def wait() -> None:
        with LagTimeout(5.0):
            await asyncio.sleep(0)

    with garbage() as found, asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(wait())
    assert not [one for one in found if isinstance(one, LagTimeout | Countdown)]
