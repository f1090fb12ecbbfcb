"""`ragherd load-test`: asks a running service many questions, and reports latency, hit rate and errors."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import httpx
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ragherd.exits import FAILED, INTERRUPTED, UNREACHABLE, USAGE_ERROR, exit_with
from ragherd.load_options import (
    AnswerModel,
    AnswerTokens,
    AskingTenant,
    Concurrency,
    LoadReport,
    MaxErrorRate,
    MaxP95,
    Paraphrases,
    Questions,
    Ramp,
    Rate,
    Requests,
    Seconds,
    Seed,
    SharedCache,
    Spike,
    SpikeEvery,
    SpikeSeconds,
    Think,
    Timeout,
    Topics,
    TopK,
    Wording,
    Zipf,
    body_of,
    check_plan,
    requests_of,
    users_of,
)
from ragherd.load_plan import TIMEOUT, Plan, Reply, Tally
from ragherd.load_report import print_result, progress_line, write_report
from ragherd.quality import check_drawing
from ragherd.service_client import (
    CONNECT_SECONDS,
    AsJson,
    CallerPriority,
    PriorityOption,
    Url,
    clean,
    connected,
    detail_of,
    print_document,
    priority_header,
    target,
)

Ask = Callable[[str], Awaitable[Reply]]

REFRESH_SECONDS: Final = 0.25
NO_CONNECTION: Final = "no connection"
KEY_ERRORS: Final = frozenset({401, 403})
"""They end the run, because every request would get the same."""


# -- Load --------------------------------------------------------------------------------------------------------------


class LoadTest:
    """One run. Its tally is complete whenever the run ends, also by Ctrl-C."""

    def __init__(self, plan: Plan, questions: Iterator[str], ask: Ask, tally: Tally | None = None) -> None:
        self._plan = plan
        self._questions = questions
        self._ask = ask
        self._began = 0.0
        self._done = asyncio.Event()
        self.tally = Tally() if tally is None else tally
        self.seconds = 0.0
        self.refusal = ""

    async def run(self) -> None:
        """Sends all requests, and returns when the last one has ended."""
        self._began = asyncio.get_running_loop().time()
        try:
            async with asyncio.TaskGroup() as group:
                if self._plan.is_open:
                    arrivals = self._plan.arrivals()
                    for _ in range(self._plan.workers):
                        group.create_task(self._send_arrivals(arrivals))
                else:
                    tickets = iter(range(self._plan.requests)) if self._plan.requests is not None else None
                    for user in range(self._plan.workers):
                        group.create_task(self._be_user(user, tickets))
        finally:
            self.seconds = self.now()

    def now(self) -> float:
        """Seconds since the start."""
        return asyncio.get_running_loop().time() - self._began

    async def _send_arrivals(self, arrivals: Iterator[float]) -> None:
        """Sends one request at a time. One that was due before the last one ended is late, which counts as latency."""
        for start in arrivals:
            if not await self._is_running_at(start):
                return
            await self._request(start)

    async def _be_user(self, user: int, tickets: Iterator[int] | None) -> None:
        pauses, ready = self._plan.thinks(user), 0.0
        while True:
            start = self._plan.user_starts(user, ready)
            if self._plan.seconds is not None and start >= self._plan.seconds:
                return
            if not await self._is_running_at(start):
                return
            if tickets is not None and next(tickets, None) is None:
                self._done.set()  # for the users who think or wait for a spike
                return
            await self._request(self.now())
            ready = self.now() + next(pauses)

    async def _is_running_at(self, at: float) -> bool:
        """Waits until then. Returns at once, and False, if the run ends earlier."""
        if (wait := at - self.now()) > 0 and not self._done.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._done.wait(), wait)
            self.tally.lag.add(max(0.0, 1000 * (self.now() - at)))
        return not self._done.is_set()

    async def _request(self, start: float) -> None:
        question, deadline = next(self._questions), start + self._plan.timeout
        try:
            if self.now() >= deadline:  # it waited for its turn too long to be sent
                raise TimeoutError
            async with asyncio.timeout_at(self._began + deadline):
                reply = await self._ask(question)
        except TimeoutError:
            reply = Reply(error=TIMEOUT, reason=f"not answered within {self._plan.timeout:g} s")
        except asyncio.CancelledError:
            self.tally.unfinished += 1
            raise
        self.tally.add(start, self.now(), reply)
        if reply.http_status in KEY_ERRORS:
            self.refusal = f"{reply.error}: {reply.reason}"
            self._done.set()


def asker(http: httpx.AsyncClient, body: dict[str, Any]) -> Ask:
    """Returns the function that sends a question to the service."""

    async def ask(question: str) -> Reply:
        try:
            response = await http.post("/query", json={**body, "question": question})
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return Reply(error=NO_CONNECTION, reason=clean(str(error)) or type(error).__name__)
        except httpx.TransportError as error:
            return Reply(error="connection lost", reason=clean(str(error)) or type(error).__name__)
        return reply_of(response)

    return ask


def reply_of(response: httpx.Response) -> Reply:
    """Returns how a request ended."""
    code = response.status_code
    if not response.is_success:
        return Reply(error=f"HTTP {code}", reason=detail_of(response), http_status=code)
    try:
        cache = response.json()["cache"]
        return Reply(str(cache["status"]), str(cache["kind"] or ""), http_status=code)
    except (ValueError, KeyError, TypeError):
        return Reply(error="not an answer of Ragherd", reason=clean(response.text[:200]), http_status=code)


async def _drive(test: LoadTest, http: httpx.AsyncClient) -> None:
    """Runs the test, and shows its progress if standard error is a terminal."""
    async with http:
        console = Console(stderr=True)
        if not console.is_terminal:
            await test.run()
            return
        with Live(console=console, auto_refresh=False, transient=True) as live:
            showing = asyncio.create_task(_show(test, live))
            try:
                await test.run()
            finally:
                showing.cancel()


async def _show(test: LoadTest, live: Live) -> None:
    while True:
        live.update(Text(progress_line(test.tally, test.now())), refresh=True)
        await asyncio.sleep(REFRESH_SECONDS)


# -- Command -----------------------------------------------------------------------------------------------------------


def load_test(
    requests: Requests = None,
    seconds: Seconds = None,
    concurrency: Concurrency = None,
    rate: Rate = None,
    think: Think = 0.0,
    ramp: Ramp = 0.0,
    spike: Spike = 1.0,
    spike_every: SpikeEvery = 30.0,
    spike_seconds: SpikeSeconds = 5.0,
    questions: Questions = None,
    topics: Topics = 100,
    zipf: Zipf = None,
    paraphrases: Paraphrases = None,
    shared_cache: SharedCache = False,
    model: AnswerModel = None,
    tenant: AskingTenant = None,
    top_k: TopK = None,
    answer_tokens: AnswerTokens = None,
    priority: PriorityOption = None,
    timeout: Timeout = 60.0,
    max_error_rate: MaxErrorRate = 0.05,
    max_p95: MaxP95 = None,
    seed: Seed = 1,
    out: LoadReport = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Measure a service under load: latency by cache status, hit rate and errors.

    Ctrl-C ends it and prints the result so far.

    With --rate, latency counts from the time at which a request was to start, so a service that stalls cannot hide the
    requests that it delayed. Without --rate, each user waits for an answer, and a slow service gets fewer requests.

    Latency is that of answers and of requests that timed out; other errors do not count. The hit rate is
    hits / (hits + misses), as in the service. Percentiles are within 0.5 %: latencies are counted in a histogram, so
    memory does not grow with the number of requests.
    """
    users, count = users_of(concurrency, rate), requests_of(requests, seconds)
    plan = Plan(count, seconds, users, rate, think, ramp, spike, spike_every, spike_seconds, timeout, seed)
    check_plan(plan)
    _check_folder(out)
    wording = Wording(questions, topics, zipf, paraphrases)
    asked = wording.asked(seed)
    body = body_of(model, tenant, top_k, answer_tokens, None if shared_cache else new_scope())
    found = measured(plan, wording, asked, body, url, priority)
    found["criteria"] = _criteria(found, max_error_rate, max_p95)
    _finish(found, out, as_json=as_json)


def new_scope() -> int:
    """Returns a seed of the model that no other run has."""
    return secrets.randbelow(2**31)


def measured(
    plan: Plan,
    wording: Wording,
    asked: Iterator[str],
    body: dict[str, Any],
    url: str | None,
    priority: CallerPriority | None = None,
) -> dict[str, Any]:
    """Runs a load test, and returns its figures."""
    with connected(url) as service:
        version, shown_url = service.health().get("version"), service.url
    test, interrupted = driven(plan, asked, body, url, priority=priority)
    return {
        **test.tally.document(test.seconds),
        "interrupted": interrupted,
        "url": shown_url,
        "version": version,
        "plan": {**asdict(plan), "questions": wording.name, "zipf": wording.exponent},
    }


def driven(
    plan: Plan,
    asked: Iterator[str],
    body: dict[str, Any],
    url: str | None,
    tally: Tally | None = None,
    priority: CallerPriority | None = None,
) -> tuple[LoadTest, bool]:
    """Runs a load, counts it in the tally, and returns whether it was interrupted. Ends the command if no key works."""
    address, headers = target(url)
    http = httpx.AsyncClient(
        base_url=address,
        headers={**headers, **priority_header(priority)},
        timeout=httpx.Timeout(None, connect=min(CONNECT_SECONDS, plan.timeout)),
        limits=httpx.Limits(max_connections=plan.workers, max_keepalive_connections=plan.workers),
        trust_env=False,
    )
    test, interrupted = LoadTest(plan, asked, asker(http, body), tally), False
    try:
        asyncio.run(_drive(test, http))
    except KeyboardInterrupt:
        interrupted = True
    if test.refusal:
        with connected(url) as service:
            service.send("POST", "/query", json={**body, "question": next(asked)})  # ends the command with a hint
        raise exit_with(test.refusal)
    return test, interrupted


def _check_folder(out: Path | None) -> None:
    """Ends the command if no report could be written."""
    if out is not None:
        check_drawing()
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise exit_with(f"--out {out}: {error.strerror or error}", USAGE_ERROR) from None


def _criteria(found: dict[str, Any], max_error_rate: float, max_p95: float | None) -> list[dict[str, Any]]:
    """Returns each criterion, in the shape of `ragherd report`. `met` is None if it could not be measured."""
    p95 = found["latency_ms"]["p95"]
    rate = found["failed"] / found["requests"] if found["requests"] else None
    limits = [("error_rate", max_error_rate, rate), *([("p95_ms", max_p95, p95)] if max_p95 is not None else [])]
    return [
        {"name": name, "target": limit, "measured": value, "met": None if value is None else value <= limit}
        for name, limit, value in limits
    ]


def _finish(found: dict[str, Any], out: Path | None, *, as_json: bool) -> None:
    """Prints and writes the result. Ends the command with the exit code."""
    if out is not None:
        try:
            written = write_report(found, out)
        except OSError as error:
            raise exit_with(f"--out {out}: {error.strerror or error}", USAGE_ERROR) from None
    if as_json:
        print_document(found)
    else:
        print_result(found)
        if out is not None:
            typer.echo(f"Wrote {', '.join(map(str, written))}")
    if found["interrupted"]:
        raise exit_with("interrupted", INTERRUPTED)
    if found["requests"] and found["errors"].get(NO_CONNECTION) == found["requests"]:
        raise exit_with(f"{found['url']}: cannot be reached: {found['error_examples'][NO_CONNECTION]}", UNREACHABLE)
    unmet = [one for one in found["criteria"] if not one["met"]]
    if unmet:
        said = (f"{one['name']} is {_figure(one['measured'])}, the limit is {_figure(one['target'])}" for one in unmet)
        raise exit_with("; ".join(said), FAILED)


def _figure(value: float | None) -> str:
    return "not known" if value is None else f"{value:.6g}"
