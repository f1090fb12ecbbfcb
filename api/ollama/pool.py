"""One worker's connection pools to its Ollama backends, and the budget of its retries.

Calls go through `OllamaPool.exchange`, which turns every fault into an `UpstreamError`. Probes such as `/api/ps` use
two separate connections (`OllamaPool.probe`), so they get through when generations hold all others. Loading a model
uses separate connections too (`OllamaPool.load`), and so does changing the models (`OllamaPool.pass_on`). They do not
count in the pool's metrics.

A call is retried at most once. The retry budget is 20 % of the last minute's calls plus 10, per worker and, while Redis
is up, per fleet. It keeps retries from doubling the load on a struggling Ollama.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import httpx
import orjson

from api.errors import UpstreamError, UpstreamFault
from api.ollama import failures
from api.ollama.connections import HttpPool, Sizes
from api.ollama.exchange import HEADERS, JSON, Exchange, OnSend, PoolTransport, Requests, let_go
from api.ollama.pool_statistics import PoolSnapshot, PoolStatistics, RequestTrace
from api.values import PassedOn, Retry

T = TypeVar("T")

SHARE: Final = 0.2
"""Retries for each call of the last `WINDOW` seconds."""
RESERVE: Final = 10.0
"""Retries allowed in addition, so that a quiet service can retry at all."""
WINDOW: Final = 60.0
BUCKET: Final = 10.0
"""Seconds that one bucket counts."""
PAUSE: Final = (0.05, 0.15)
"""Shortest and longest delay before a retry, in seconds. The delay is random, so that callers do not retry in step."""


@dataclass(slots=True)
class Counts:
    """Calls, and the retries made for them."""

    calls: int = 0
    retries: int = 0

    def leave_room(self) -> bool:
        """Returns whether one more retry is within the budget."""
        return self.retries + 1 <= RESERVE + SHARE * self.calls


class RetryBudget:
    """One worker's retry budget; no I/O. A background task feeds it the fleet's counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: deque[tuple[float, Counts]] = deque()
        self._unsent = Counts()
        self._fleet: Counts | None = None
        self.retried = 0
        """Retries charged since the start."""

    def called(self, retry: Retry = "here") -> None:
        """Counts a call, unless the call is itself a retry (`retry` is "spent")."""
        if retry == "spent":
            return
        self._bucket().calls += 1
        self._unsent.calls += 1

    def spend(self) -> bool:
        """Returns whether a retry is allowed now; if so, charges it."""
        bucket = self._bucket()
        if not (self._own().leave_room() and self._fleets().leave_room()):
            return False
        self.retried += 1
        bucket.retries += 1
        self._unsent.retries += 1
        return True

    def admits(self, error: UpstreamError, retry: Retry = "here") -> bool:
        """Returns whether to retry a call that failed with `error` before any byte; if so, charges it.

        Retrying after a stale connection is free, because Ollama never saw the request.
        """
        if not error.row.retryable:
            return False
        if error.fault is UpstreamFault.CONNECTION_STALE:
            return True
        return retry == "here" and self.spend()

    async def may_retry(self, error: UpstreamError, retry: Retry) -> bool:
        """Returns what `admits` does. Before a retry it waits for a random delay."""
        if not self.admits(error, retry):
            return False
        if error.fault is not UpstreamFault.CONNECTION_STALE:
            await asyncio.sleep(random.uniform(*PAUSE))  # noqa: S311 - no secret
        return True

    def take_unsent(self) -> tuple[int, int]:
        """Returns the calls and retries since the last call of this method, for the fleet's counts."""
        taken, self._unsent = self._unsent, Counts()
        return taken.calls, taken.retries

    def fleet_is(self, calls: int, retries: int) -> None:
        """Sets the fleet's counts of the last `WINDOW` seconds, which include this worker's."""
        self._fleet = Counts(calls, retries)

    def fleet_is_unknown(self) -> None:
        """Forgets the fleet's counts while Redis is down; this worker's own still apply."""
        self._fleet = None

    def _own(self) -> Counts:
        counted = [counts for _, counts in self._buckets]
        return Counts(sum(counts.calls for counts in counted), sum(counts.retries for counts in counted))

    def _fleets(self) -> Counts:
        if self._fleet is None:
            return Counts()
        return Counts(self._fleet.calls + self._unsent.calls, self._fleet.retries + self._unsent.retries)

    def _bucket(self) -> Counts:
        """Returns the current bucket, and drops those that are too old."""
        now = self._clock()
        while self._buckets and self._buckets[0][0] <= now - WINDOW:
            self._buckets.popleft()
        if not self._buckets or self._buckets[-1][0] <= now - BUCKET:
            self._buckets.append((now, Counts()))
        return self._buckets[-1][1]


async def with_one_retry(call: Callable[[], Awaitable[T]], budget: RetryBudget, retry: Retry = "here") -> T:
    """Returns the result of `call()`, with at most one retry. It must raise before any of its result is used."""
    budget.called(retry)
    try:
        return await call()
    except UpstreamError as error:
        if not await budget.may_retry(error, retry):
            raise
    return await call()


PROBE_CONNECTIONS: Final = 2
LOAD_CONNECTIONS: Final = 4
ADMIN_CONNECTIONS: Final = 8
"""For requests to change or unload models. Downloads are slow, so they must not delay loads."""

VERSION_LIMIT: Final = 64 * 1024
"""Bytes of the answer that is read to open a connection."""


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Limits of the pool: numbers of connections, and timeouts in seconds."""

    min_size: int = 5
    max_size: int = 15
    max_keepalive: int = 30
    keepalive_expiry: float = 30.0
    timeout: float = 5.0
    """Seconds to wait for a free connection."""
    connect_timeout: float = 2.0

    @property
    def effective_keepalive(self) -> int:
        """Unused connections that are kept: never more than there can be."""
        return min(self.max_keepalive, self.max_size)


class OllamaPool:
    """Made by `open_pool`."""

    def __init__(
        self,
        base_url: str,
        limits: PoolLimits,
        connections: HttpPool,
        probes: httpx.AsyncClient,
        loads: httpx.AsyncClient,
        changes: httpx.AsyncClient,
        retries: RetryBudget,
        statistics: PoolStatistics,
        on_send: OnSend | None = None,
    ) -> None:
        self.base_url = base_url
        self.limits = limits
        self.retries = retries
        self._connections = connections
        self._requests = Requests(httpx.URL(base_url), on_send)
        self._probes = probes
        self._loads = loads
        self._changes = changes
        self._statistics = statistics
        self.generated = statistics.generated

    @asynccontextmanager
    async def exchange(self, path: str, body: bytes, *, model: str, content_type: str = "") -> AsyncIterator[Exchange]:
        """One POST, of JSON without a `content_type`. Entering does no I/O: `await exchange.open()` sends; leaving
        closes and counts.

        Whatever httpx raises inside leaves as an `UpstreamError`. Deadlines are the caller's, to be set inside, so
        that they are counted as this request's failures; only connecting and waiting for a connection have their own.
        """
        trace = RequestTrace()
        fault: UpstreamFault | None = None
        try:
            try:
                request = self._requests.post(path, body, content_type or JSON)
                with closing(Exchange(self._connections, request, trace, path, model)) as exchange:
                    yield exchange
            except httpx.HTTPError as error:
                raise failures.from_exception(error, stale=trace.went_stale) from error.with_traceback(None)
        except UpstreamError as error:
            fault = error.fault
            raise
        finally:
            timed_out = fault is UpstreamFault.POOL_TIMEOUT
            self._statistics.finished(path, trace, failed=fault is not None, pool_timeout=timed_out)
            if fault is UpstreamFault.CONNECTION_STALE:
                self._connections.drop_idle()

    async def probe(self, path: str, timeout: float) -> Any:  # noqa: ASYNC109 - a deadline on all of it
        """The JSON of a GET such as `/api/ps`, within `timeout` seconds. Raises `UpstreamError`."""
        response = await _answered(self._probes.build_request("GET", path), self._probes, timeout)
        return _json(response, path)

    async def ask(self, path: str, body: bytes, model: str, timeout: float) -> Any:  # noqa: ASYNC109 - as above
        """Returns the JSON of a POST such as `/api/show`, which needs no loaded model. Raises `UpstreamError`."""
        response = await _answered(self._probes.build_request("POST", path, content=body), self._probes, timeout, model)
        return _json(response, path)

    async def load(self, path: str, body: bytes, model: str, timeout: float) -> None:  # noqa: ASYNC109 - as above
        """Sends a POST that makes Ollama load `model` into memory. Raises `UpstreamError`."""
        await _answered(self._loads.build_request("POST", path, content=body), self._loads, timeout, model)

    @asynccontextmanager
    async def pass_on(self, method: str, path: str, content: bytes | AsyncIterable[bytes]) -> AsyncIterator[PassedOn]:
        """Sends an administrator's request as it came, and yields the response before its body.

        It has no deadline: pulling a model takes as long as it takes. Raises `UpstreamError`.
        """
        try:
            async with self._changes.stream(method, path, content=content) as response:
                kind = response.headers.get("content-type", "application/json")
                try:
                    yield PassedOn(response.status_code, kind, response.aiter_bytes())
                finally:
                    await response.aclose()
                    let_go(response)
        except httpx.HTTPError as error:
            raise failures.from_exception(error) from error.with_traceback(None)

    def snapshot(self) -> PoolSnapshot:
        """Returns the pool's metrics; no I/O."""
        now = self._connections.occupancy()
        counts = self._statistics
        return PoolSnapshot(
            pool_connections=self.limits.min_size,
            pool_maxsize=self.limits.max_size,
            max_keepalive_connections=self.limits.max_keepalive,
            keepalive_expiry=self.limits.keepalive_expiry,
            active=now.active,
            idle=now.idle,
            waiting=now.waiting,
            requests=counts.requests,
            connections_opened=counts.connections_opened,
            connections_reused=counts.connections_reused,
            reuse_rate=counts.reuse_rate,
            pool_timeouts=counts.pool_timeouts,
            wait_ms=counts.wait_ms(),
            endpoints=counts.endpoints(),
            ollama=counts.ollama(),
        )

    async def open_minimum(self) -> None:
        """Opens `min_size` connections concurrently, within the connect timeout. Ignores an Ollama that is down."""
        await asyncio.gather(*(self._open_one() for _ in range(self.limits.min_size)))

    async def keep_minimum(self) -> None:
        """Reopens connections that were closed while idle. Runs forever, as a background task of the worker.

        It sends `min_size` requests at once, so that each needs a separate connection. Busy connections count too.
        """
        while self.limits.min_size:
            await asyncio.sleep(self.limits.keepalive_expiry / 2)
            if self._connections.occupancy().active < self.limits.min_size:
                await self.open_minimum()

    async def _open_one(self) -> None:
        trace = RequestTrace()
        exchange = Exchange(self._connections, self._requests.get("/api/version"), trace, "/api/version", "")
        try:
            async with asyncio.timeout(self.limits.connect_timeout):
                await exchange.open()
                await exchange.read(VERSION_LIMIT)
        except (TimeoutError, httpx.HTTPError, UpstreamError):
            pass  # the first call that needs a connection reports the error
        finally:
            exchange.close()
        self._statistics.opened_at_start(trace)


@asynccontextmanager
async def open_pool(
    base_url: str,
    limits: PoolLimits,
    *,
    retries: RetryBudget | None = None,
    statistics: PoolStatistics | None = None,
    minimum: bool = True,
    on_send: OnSend | None = None,
) -> AsyncIterator[OllamaPool]:
    """Opens the pool of `base_url` (no trailing slash) with its minimum of connections; closes it on exit.

    Open it in the worker, after the fork. Without `minimum` the caller opens the minimum. `retries` is the budget of
    all of the worker's calls. `on_send` sees each request before it is sent, but no probes and loads.
    """
    url = httpx.URL(base_url)
    tls = httpx.create_ssl_context() if url.scheme == "https" else None  # loading the CAs takes 25 ms
    patience = (limits.timeout, limits.connect_timeout)

    def pool_of(most: int, kept: int) -> HttpPool:
        return HttpPool(url, Sizes(most, kept, limits.keepalive_expiry), patience, tls)

    async with (
        aclosing(pool_of(limits.max_size, limits.effective_keepalive)) as connections,
        _client(base_url, pool_of(PROBE_CONNECTIONS, 1)) as probes,
        _client(base_url, pool_of(LOAD_CONNECTIONS, 0)) as loads,
        _client(base_url, pool_of(ADMIN_CONNECTIONS, 0)) as changes,
    ):
        counts = statistics or PoolStatistics()
        budget = retries or RetryBudget()
        pool = OllamaPool(base_url, limits, connections, probes, loads, changes, budget, counts, on_send)
        if minimum:
            await pool.open_minimum()
        yield pool


async def _answered(
    request: httpx.Request,
    client: httpx.AsyncClient,
    timeout: float,  # noqa: ASYNC109 - a deadline on all of it
    model: str = "",
) -> httpx.Response:
    """Returns a complete, successful response within `timeout` seconds. Raises `UpstreamError`."""
    path = request.url.path
    try:
        async with asyncio.timeout(timeout):
            response = await client.send(request, stream=True)
            try:
                await response.aread()
            finally:
                await response.aclose()
                let_go(response)
    except TimeoutError as error:
        detail = f"Ollama did not answer {path} within {timeout:g} s."
        raise UpstreamError(UpstreamFault.TOTAL_TIMEOUT, detail) from error
    except httpx.HTTPError as error:
        raise failures.from_exception(error) from error
    if not response.is_success:
        raise failures.from_response(response.status_code, response.headers, response.content, path=path, model=model)
    return response


def _json(response: httpx.Response, path: str) -> Any:
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError as error:
        raise UpstreamError(UpstreamFault.INVALID_RESPONSE, f"Ollama answered {path} without JSON.") from error


def _client(base_url: str, connections: HttpPool) -> httpx.AsyncClient:
    # A client with an explicit transport ignores proxies from the environment, so no request bypasses the pool.
    # The transport has no read timeout: the caller knows which part it waits for, and bounds each.
    headers = {"Content-Type": JSON, **HEADERS}
    return httpx.AsyncClient(base_url=base_url, headers=headers, transport=PoolTransport(connections))


def backend_names(count: int) -> list[str]:
    """Returns `ollama`, `ollama-2`, ... in the order of OLLAMA_BASE_URL. Generation breakers have the same names."""
    return ["ollama", *(f"ollama-{number}" for number in range(2, count + 1))]


class OllamaPools(Mapping[str, OllamaPool]):
    """The pools by backend name, in the order of OLLAMA_BASE_URL. Made by `open_pools`."""

    def __init__(self, pools: Mapping[str, OllamaPool], total: PoolStatistics, retries: RetryBudget) -> None:
        self._pools = pools
        self._total = total
        self.retries = retries
        """The retry budget of all of the worker's calls."""

    def __getitem__(self, name: str) -> OllamaPool:
        return self._pools[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pools)

    def __len__(self) -> int:
        return len(self._pools)

    def snapshot(self) -> PoolSnapshot:
        """Returns counts and times over all backends; the four configured sizes are those of one pool."""
        each = list(self.by_backend().values())
        return replace(
            each[0],
            active=sum(pool.active for pool in each),
            idle=sum(pool.idle for pool in each),
            waiting=sum(pool.waiting for pool in each),
            requests=self._total.requests,
            connections_opened=self._total.connections_opened,
            connections_reused=self._total.connections_reused,
            reuse_rate=self._total.reuse_rate,
            pool_timeouts=self._total.pool_timeouts,
            wait_ms=self._total.wait_ms(),
            endpoints=self._total.endpoints(),
            ollama=self._total.ollama(),
        )

    def by_backend(self) -> dict[str, PoolSnapshot]:
        """Returns each backend's metrics."""
        return {name: pool.snapshot() for name, pool in self._pools.items()}


@asynccontextmanager
async def open_pools(
    base_urls: Sequence[str], limits: PoolLimits, on_send: OnSend | None = None
) -> AsyncIterator[OllamaPools]:
    """Opens a pool for each URL, with their minimums of connections opened concurrently; closes them on exit."""
    total, retries = PoolStatistics(), RetryBudget()
    async with AsyncExitStack() as stack:
        pools: dict[str, OllamaPool] = {}
        for name, url in zip(backend_names(len(base_urls)), base_urls, strict=True):
            counts = PoolStatistics(total)
            opening = open_pool(url, limits, retries=retries, statistics=counts, minimum=False, on_send=on_send)
            pools[name] = await stack.enter_async_context(opening)
        await asyncio.gather(*(pool.open_minimum() for pool in pools.values()))
        yield OllamaPools(pools, total, retries)
