"""`ragherd load-test`: asks a running service many questions, and reports latency, hit rate and errors."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from ragherd.exits import FAILED, INTERRUPTED, UNREACHABLE, USAGE_ERROR, exit_with
from ragherd.load_plan import MOST_TOPICS, TIMEOUT, Plan, Reply, Tally, drawn, generated_topics, topics_of
from ragherd.load_report import print_result, progress_line, write_report
from ragherd.quality import check_drawing
from ragherd.quality_samples import Unreadable, read_samples
from ragherd.service_client import (
    CONNECT_SECONDS,
    AsJson,
    Url,
    clean,
    connected,
    detail_of,
    print_document,
    target,
)

Ask = Callable[[str], Awaitable[Reply]]

REQUESTS: Final = 200
USERS: Final = 10
OPEN_REQUESTS: Final = 200
PARAPHRASES: Final = 0.3
REFRESH_SECONDS: Final = 0.25
NO_CONNECTION: Final = "no connection"
KEY_ERRORS: Final = frozenset({401, 403})
"""They end the run, because every request would get the same."""


# -- Load --------------------------------------------------------------------------------------------------------------


class LoadTest:
    """One run. Its tally is complete whenever the run ends, also by Ctrl-C."""

    def __init__(self, plan: Plan, questions: Iterator[str], ask: Ask) -> None:
        self._plan = plan
        self._questions = questions
        self._ask = ask
        self._began = 0.0
        self._done = asyncio.Event()
        self.tally = Tally()
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
        except httpx.ConnectError as error:
            return Reply(error=NO_CONNECTION, reason=clean(str(error)))
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
    requests: Annotated[
        int | None, typer.Option(min=1, help=f"Requests to send. Default: {REQUESTS}, without --seconds.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Seconds in which to start requests.")] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2000,
            help=f"Users who ask one question after another, {USERS} by default. With --rate: requests that may be "
            f"open at once, {OPEN_REQUESTS} by default.",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.01, max=10_000, help="Requests per second, at random times, however slow the service is."),
    ] = None,
    think: Annotated[
        float, typer.Option(min=0.0, help="Average seconds that a user pauses before the next question.")
    ] = 0.0,
    ramp: Annotated[
        float, typer.Option(min=0.0, help="Seconds in which the load rises from nothing to its full size.")
    ] = 0.0,
    spike: Annotated[float, typer.Option(min=1.0, max=100.0, help="Multiplies the load during spikes.")] = 1.0,
    spike_every: Annotated[float, typer.Option(min=0.1, help="Seconds from one spike to the next.")] = 30.0,
    spike_seconds: Annotated[float, typer.Option(min=0.1, help="Seconds that a spike lasts.")] = 5.0,
    questions: Annotated[
        Path | None,
        typer.Option(
            help="CSV or JSON Lines file with a column question, and intent for paraphrases. Asked in its order, "
            "again and again, unless --zipf is set. Default: built-in questions."
        ),
    ] = None,
    topics: Annotated[
        int, typer.Option(min=1, max=MOST_TOPICS, help="Built-in questions to use, without paraphrases.")
    ] = 100,
    zipf: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=5.0,
            help="Exponent of the popularity: the question of rank r is asked in proportion to 1 / r^ZIPF. 0: all "
            "alike. Default: 1 for built-in questions.",
        ),
    ] = None,
    paraphrases: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help=f"Share of paraphrases. Default: {PARAPHRASES}. A file needs --zipf."),
    ] = None,
    shared_cache: Annotated[
        bool,
        typer.Option(
            "--shared-cache",
            help="Use the answers that are cached for users, and leave new ones. Without it, the run has a cache scope "
            "for itself, which is empty at the start.",
        ),
    ] = False,
    model: Annotated[str | None, typer.Option(help="Model of the answers. Default: LLM_MODEL of the service.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Tenant that asks. A user's key fixes it.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, max=20, help="Most passages to use; 0: no retrieval.")] = None,
    answer_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a request has failed.")] = 60.0,
    max_error_rate: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of failed requests above which the exit status is 1.")
    ] = 0.05,
    max_p95: Annotated[
        float | None, typer.Option(min=0.0, help="Milliseconds of p95 above which the exit status is 1.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the questions, times and pauses.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder for load-test.json, load-test.png and load-test.html (extra `reports`).")
    ] = None,
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
    plan = Plan(
        requests=REQUESTS if requests is None and seconds is None else requests,
        seconds=seconds,
        concurrency=concurrency or (USERS if rate is None else OPEN_REQUESTS),
        rate=rate,
        think=think,
        ramp=ramp,
        spike=spike,
        spike_every=spike_every,
        spike_seconds=spike_seconds,
        timeout=timeout,
        seed=seed,
    )
    _check(plan, out)
    zipf = 1.0 if zipf is None and questions is None else zipf
    asked = _questions(questions, topics, zipf, paraphrases, seed)
    body = _body(model, tenant, top_k, answer_tokens, None if shared_cache else secrets.randbelow(2**31))
    address, headers = target(url)
    with connected(url) as service:
        version = service.health().get("version")
        shown_url = service.url
    http = httpx.AsyncClient(
        base_url=address,
        headers=headers,
        timeout=httpx.Timeout(None, connect=min(CONNECT_SECONDS, timeout)),
        limits=httpx.Limits(max_connections=plan.workers, max_keepalive_connections=plan.workers),
        trust_env=False,
    )
    test, interrupted = LoadTest(plan, asked, asker(http, body)), False
    try:
        asyncio.run(_drive(test, http))
    except KeyboardInterrupt:
        interrupted = True
    if test.refusal:
        with connected(url) as service:
            service.send("POST", "/query", json={**body, "question": next(asked)})  # ends the command with a hint
        raise exit_with(test.refusal)
    found = {
        **test.tally.document(test.seconds),
        "criteria": _criteria(test.tally, max_error_rate, max_p95),
        "interrupted": interrupted,
        "url": shown_url,
        "version": version,
        "plan": {**asdict(plan), "questions": questions.name if questions else f"{topics} built-in", "zipf": zipf},
    }
    _finish(found, out, interrupted=interrupted, as_json=as_json)


def _check(plan: Plan, out: Path | None) -> None:
    """Ends the command if options do not fit together, or if no report could be written."""
    if plan.is_open and plan.think:
        raise exit_with("--think needs users: it does not go with --rate", USAGE_ERROR)
    if plan.spike_seconds >= plan.spike_every:
        raise exit_with("--spike-seconds must be less than --spike-every", USAGE_ERROR)
    if out is not None:
        check_drawing()
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise exit_with(f"--out {out}: {error.strerror or error}", USAGE_ERROR) from None


def _questions(
    file: Path | None, topics: int, zipf: float | None, paraphrases: float | None, seed: int
) -> Iterator[str]:
    share = PARAPHRASES if paraphrases is None else paraphrases
    if file is None:
        assert zipf is not None
        return drawn(generated_topics(topics, seed), zipf, share, seed)
    try:
        samples = read_samples(str(file))
    except Unreadable as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    if samples.kind == "pairs":
        raise exit_with(f"{file}: needs a column question, not pairs", USAGE_ERROR)
    if paraphrases and (zipf is None or not samples.intents):
        raise exit_with("--paraphrases of a file needs --zipf and a column intent", USAGE_ERROR)
    return cycle(samples.asked) if zipf is None else drawn(topics_of(samples), zipf, share, seed)


def _body(
    model: str | None, tenant: str | None, top_k: int | None, answer_tokens: int | None, scope: int | None
) -> dict[str, Any]:
    """Returns the body of POST /query without the question.

    `scope` is a seed of the model. Answers with another seed are cached apart.
    """
    options = {name: value for name, value in (("seed", scope), ("num_predict", answer_tokens)) if value is not None}
    fields = {"model": model, "tenant": tenant, "top_k": top_k, "options": options or None}
    return {name: value for name, value in fields.items() if value is not None}


def _criteria(tally: Tally, max_error_rate: float, max_p95: float | None) -> list[dict[str, Any]]:
    """Returns each criterion, in the shape of `ragherd report`. `met` is None if it could not be measured."""
    p95 = tally.latency.figures()["p95"]
    rate = tally.error_rate if tally.requests else None
    limits = [("error_rate", max_error_rate, rate), *([("p95_ms", max_p95, p95)] if max_p95 is not None else [])]
    return [
        {"name": name, "target": limit, "measured": found, "met": None if found is None else found <= limit}
        for name, limit, found in limits
    ]


def _finish(found: dict[str, Any], out: Path | None, *, interrupted: bool, as_json: bool) -> None:
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
    if interrupted:
        raise exit_with("interrupted", INTERRUPTED)
    if found["requests"] and found["errors"].get(NO_CONNECTION) == found["requests"]:
        raise exit_with(f"{found['url']}: cannot be reached: {found['error_examples'][NO_CONNECTION]}", UNREACHABLE)
    unmet = [one for one in found["criteria"] if not one["met"]]
    if unmet:
        said = (f"{one['name']} is {_figure(one['measured'])}, the limit is {_figure(one['target'])}" for one in unmet)
        raise exit_with("; ".join(said), FAILED)


def _figure(value: float | None) -> str:
    return "not known" if value is None else f"{value:.6g}"
