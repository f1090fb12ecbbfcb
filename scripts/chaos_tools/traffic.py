"""Clients of every endpoint, whose right answers are known: they note each request, and what is wrong with it."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from scripts.chaos_tools.fleet import ADMIN_KEY, DEADLINE, PROBES, TENANTS
from scripts.chaos_tools.linearizability import NEVER, Operation

SHELVES: Final = 8
"""Shelves that clients ask about."""
WORDINGS: Final = ("What is the code of shelf {n} in {tenant}?", "Shelf {n} in {tenant}, what is the code of it?")
EXACT: Final = "Tell me the code of shelf {n} in {tenant}."
FIRST_EXACT: Final = 100
"""Shelves from this number on are asked for in these words only."""
VERSION: Final = "Which version does the handbook have?"
STATUSES: Final = frozenset({200, 201, 202, 429, 502, 503, 504})
"""What a request may get while faults last."""
LOST: Final = 404
"""What a document gets that was stored before Redis was emptied."""
PAUSE: Final = 0.1

Client = Callable[["Traffic", httpx.AsyncClient], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `ok`, `refused` with a documented status, `cut` off, `lost` without an end, or `hung`."""

    kind: str
    begin: float
    end: float
    outcome: str
    detail: str


@dataclass
class Traffic:
    """What all clients have seen. `wrong`: answers and reports that must never be."""

    seed: int
    requests: list[Request] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    answers: list[Operation] = field(default_factory=list)
    documents: list[Operation] = field(default_factory=list)
    overrides: list[Operation] = field(default_factory=list)
    confirmed: dict[str, int] = field(default_factory=dict)
    """The newest version of each tenant's document whose change was confirmed."""
    pause: float = PAUSE
    """Seconds between two requests of a client."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.versions = dict.fromkeys(TENANTS, 0)

    def is_wrong(self, text: str) -> None:
        """Notes a broken invariant."""
        self.wrong.append(text)

    @asynccontextmanager
    async def noted(self, kind: str) -> AsyncIterator[dict[str, Any]]:
        """Notes how a request ends. The body sets `outcome`, and `detail` if it is not `ok`."""
        begin, end = time.monotonic(), {"outcome": "lost", "detail": ""}
        try:
            async with asyncio.timeout(DEADLINE):
                yield end
        except TimeoutError:
            end["outcome"] = "hung"
        except httpx.TransportError as error:
            end |= {"outcome": "cut", "detail": repr(error)}
        self.requests.append(Request(kind, begin, time.monotonic(), **end))


def _headers(tenant: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TENANTS[tenant]}"}


_ADMIN: Final = {"Authorization": f"Bearer {ADMIN_KEY}"}


def _ended(end: dict[str, Any], response: httpx.Response, *also: int) -> bool:
    """Notes the status. Returns whether the request succeeded. `also`: further statuses that it may get."""
    end["outcome"] = "ok" if response.is_success else "refused"
    end["detail"] = "" if response.is_success else f"{response.status_code}"
    if response.status_code not in {*STATUSES, *also}:
        end |= {"outcome": "lost", "detail": f"{response.status_code} {response.text[:300]}"}
    return response.is_success


# -- questions ---------------------------------------------------------------------------------------------------------


def _checked(traffic: Traffic, kind: str, n: int, tenant: str, answer: str) -> None:
    """An answer repeats the question that it was generated for."""
    found = re.search(r"shelf (\d+) in (\w+)", answer, re.IGNORECASE)
    if answer.strip() and (found is None or (int(found[1]), found[2]) != (n, tenant)):
        traffic.is_wrong(f"{kind}: asked about shelf {n} in {tenant}, got {answer[:200]!r}")


def _number(answer: str) -> int | None:
    found = re.search(r"no\.(\d+)\s*$", answer)
    return int(found[1]) if found else None


def _chosen(traffic: Traffic, first: int = 0) -> tuple[int, str]:
    return first + traffic.random.randrange(SHELVES), traffic.random.choice(list(TENANTS))


async def asks(traffic: Traffic, client: httpx.AsyncClient) -> None:
    """Asks for whole answers in several wordings."""
    n, tenant = _chosen(traffic)
    question = traffic.random.choice(WORDINGS).format(n=n, tenant=tenant)
    async with traffic.noted("/query") as end:
        body = {"question": question, "top_k": 0}
        response = await client.post("/query", json=body, headers=_headers(tenant))
        if _ended(end, response):
            _checked(traffic, "/query", n, tenant, response.json()["answer"])


async def asks_exactly(traffic: Traffic, client: httpx.AsyncClient) -> None:
    """Asks in the same words each time, and keeps the history of each question's answer in the cache."""
    n, tenant = _chosen(traffic, FIRST_EXACT)
    question, begin = EXACT.format(n=n, tenant=tenant), time.monotonic()
    async with traffic.noted("/query again") as end:
        response = await client.post("/query", json={"question": question, "top_k": 0}, headers=_headers(tenant))
        if not _ended(end, response):
            return
        body, moment = response.json(), time.monotonic()
        _checked(traffic, "/query again", n, tenant, body["answer"])
        number, cache = _number(body["answer"]), body["cache"]
        if number is None:
            return
        if cache["status"] in ("hit", "stale") and cache["kind"] == "exact":
            traffic.answers.append(Operation(question, "find", number, begin, moment))
        elif cache["status"] == "miss":
            ends = moment if cache["entry"] else NEVER
            traffic.answers.append(Operation(question, "store", number, begin, ends))


async def deletes_answers(traffic: Traffic, client: httpx.AsyncClient) -> None:
    """Deletes the answer of a question."""
    n, tenant = _chosen(traffic, FIRST_EXACT)
    question, begin, ends = EXACT.format(n=n, tenant=tenant), time.monotonic(), NEVER
    async with traffic.noted("DELETE /api/semantic-cache") as end:
        asked = {"question": question, "tenant": tenant}
        response = await client.delete("/api/semantic-cache", params=asked, headers=_ADMIN)
        if _ended(end, response):
            ends = time.monotonic()
    traffic.answers.append(Operation(question, "delete", None, begin, ends))
    await asyncio.sleep(0.5)


async def streams(traffic: Traffic, client: httpx.AsyncClient) -> None:
    """Reads streams to their end."""
    n, tenant = _chosen(traffic)
    question = traffic.random.choice(WORDINGS).format(n=n, tenant=tenant)
    body = {"question": question, "top_k": 0, "stream": True}
    async with (
        traffic.noted("/query stream") as end,
        client.stream("POST", "/query", json=body, headers=_headers(tenant)) as response,
    ):
        if not response.is_success:
            await response.aread()
            _ended(end, response)
            return
        name, answer = "", ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: ") and name == "token":
                answer += json.loads(line[6:])["text"]
            elif line.startswith("data: ") and name in ("done", "error"):
                end |= {"outcome": "ok"} if name == "done" else {"outcome": "refused", "detail": line[:200]}
        if end["outcome"] == "ok":
            _checked(traffic, "/query stream", n, tenant, answer)


async def chats_like_ollama(traffic: Traffic, client: httpx.AsyncClient) -> None:
    """Uses Ollama's API, whole and streamed."""
    n, tenant = _chosen(traffic)
    streamed = traffic.random.random() < 0.5
    question = WORDINGS[0].format(n=n, tenant=tenant)
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": question}], "stream": streamed}
    async with traffic.noted("/api/chat") as end:
        response = await client.post("/api/chat", json=body, headers=_headers(tenant))
        if not _ended(end, response):
            return
        lines = [json.loads(line) for line in response.text.splitlines() if line]
        if "error" in lines[-1]:
            end |= {"outcome": "refused", "detail": str(lines[-1])[:200]}
        elif not lines[-1].get("done"):
            end["outcome"] = "lost"
        else:
            answer = "".join(line["message"]["content"] for line in lines)
            _checked(traffic, "/api/chat", n, tenant, answer)


async def chats_like_openai(traffic: Traffic, client: httpx.AsyncClient) -> None:
    """Uses OpenAI's API, whole and streamed."""
    n, tenant = _chosen(traffic)
    streamed = traffic.random.random() < 0.5
    question = WORDINGS[1].format(n=n, tenant=tenant)
    body = {"model": "llama3.2", "messages": [{"role": "user", "content": question}], "stream": streamed}
    async with traffic.noted("/v1/chat/completions") as end:
        response = await client.post("/v1/chat/completions", json=body, headers=_headers(tenant))
        if not _ended(end, response):
            return
        if not streamed:
            answer = response.json()["choices"][0]["message"]["content"]
        else:
            data = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
            parts = [json.loads(one) for one in data if one != "[DONE]"]
            if any("error" in part for part in parts):
                end |= {"outcome": "refused", "detail": str(parts[-1])[:200]}
                return
            if "[DONE]" not in data:
                end["outcome"] = "lost"
                return
            answer = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts if part["choices"])
        _checked(traffic, "/v1/chat/completions", n, tenant, answer)


# -- documents ---------------------------------------------------------------------------------------------------------


async def writes_documents(traffic: Traffic, client: httpx.AsyncClient) -> None:
    """Replaces a tenant's document by its next version, and waits until the change is confirmed."""
    tenant = min(TENANTS, key=lambda one: traffic.versions[one])
    version = traffic.versions[tenant] = traffic.versions[tenant] + 1
    text = f"The handbook of {tenant} has version {version}."
    body = {"title": f"Handbook {version}", "text": text, "source": "handbook", "tenant": tenant}
    begin, ends, stored = time.monotonic(), NEVER, None
    async with traffic.noted("POST /documents") as end:
        response = await client.post("/documents", json=body, headers=_ADMIN)
        if _ended(end, response):
            stored = response.json()
    if stored is not None and await _is_ready(traffic, client, stored, tenant):
        traffic.confirmed[tenant] = version
        ends = time.monotonic()
    traffic.documents.append(Operation(tenant, "write", version, begin, ends))
    await asyncio.sleep(0.3)


async def _is_ready(traffic: Traffic, client: httpx.AsyncClient, document: Mapping[str, Any], tenant: str) -> bool:
    """Waits until the document is in service. False if it cannot be seen, or if that takes long."""
    revision = document["revision"]
    for _ in range(40):
        if document["status"] == "ready":
            return bool(document["revision"] >= revision)
        await asyncio.sleep(0.1)
        async with traffic.noted("GET /documents/{document}") as end:
            response = await client.get(f"/documents/{document['id']}", headers=_headers(tenant))
            if not _ended(end, response, LOST):
                return False
            document = response.json()
        if end["outcome"] != "ok":
            return False
    return False


async def reads_documents(traffic: Traffic, client: httpx.AsyncClient) -> None:
    """Reads a tenant's document."""
    tenant, begin = traffic.random.choice(list(TENANTS)), time.monotonic()
    async with traffic.noted("GET /documents") as end:
        response = await client.get("/documents", headers=_headers(tenant))
        if _ended(end, response):
            titles = [one["title"] for one in response.json()["documents"]]
            versions = [int(title.split()[-1]) for title in titles]
            value = versions[0] if versions else None
            traffic.documents.append(Operation(tenant, "read", value, begin, time.monotonic()))


async def asks_documents(traffic: Traffic, client: httpx.AsyncClient) -> None:
    """Asks both tenants the same question. Only their documents, and the versions of those, differ."""
    tenant = traffic.random.choice(list(TENANTS))
    floor = traffic.confirmed.get(tenant, 0)
    async with traffic.noted("/query documents") as end:
        response = await client.post("/query", json={"question": VERSION}, headers=_headers(tenant))
        if not _ended(end, response):
            return
        for found in re.finditer(r"handbook of (\w+) has version (\d+)", response.text):
            if found[1] != tenant:
                traffic.is_wrong(f"/query documents: {tenant} was answered from the document of {found[1]}")
            elif int(found[2]) < floor:
                traffic.is_wrong(f"/query documents: {tenant} was answered from version {found[2]} after {floor}")


# -- the breaker -------------------------------------------------------------------------------------------------------


async def overrides(traffic: Traffic, client: httpx.AsyncClient) -> None:
    """Forces the breaker open for a moment, and resets it."""
    await asyncio.sleep(4)
    for action, value in (("force-open", "OPEN"), ("reset", None)):
        begin, ends = time.monotonic(), NEVER
        while ends == NEVER:  # a reset must not be forgotten
            async with traffic.noted(f"POST {action}") as end:
                if _ended(end, await client.post(f"/api/circuit-breaker/{action}", headers=_ADMIN)):
                    ends = time.monotonic()
            if ends == NEVER:
                traffic.overrides.append(Operation("forced", "write", value, begin, NEVER))
                begin = time.monotonic()
                await asyncio.sleep(0.3)
        traffic.overrides.append(Operation("forced", "write", value, begin, ends))
        await asyncio.sleep(0.3)


async def reads_breaker(traffic: Traffic, client: httpx.AsyncClient) -> None:
    """Reads the breaker from any worker."""
    begin = time.monotonic()
    async with traffic.noted("GET breaker") as end:
        response = await client.get("/api/circuit-breaker/metrics", headers=_ADMIN)
        if not _ended(end, response):
            return
        body = response.json()
        if body["probes_in_flight"] > PROBES:
            traffic.is_wrong(f"{body['probes_in_flight']} probes at a time; {PROBES} are permitted")
        if body["store"] == "shared":
            traffic.overrides.append(Operation("forced", "read", body["forced"], begin, time.monotonic()))
    await asyncio.sleep(0.2)


CLIENTS: Final[tuple[Client, ...]] = (
    asks,
    asks_exactly,
    asks_exactly,
    deletes_answers,
    streams,
    streams,
    chats_like_ollama,
    chats_like_openai,
    writes_documents,
    reads_documents,
    asks_documents,
    asks_documents,
    overrides,
    reads_breaker,
)


@contextmanager
def running_traffic(traffic: Traffic, url: str) -> Iterator[None]:
    """Sends every kind of request from a thread, each over a new connection, until the block ends."""
    done = threading.Event()

    async def goes_on(act: Client) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE, limits=limits) as client:
            while not done.is_set():
                await act(traffic, client)
                await asyncio.sleep(traffic.pause)

    async def send() -> None:
        async with asyncio.TaskGroup() as tasks:
            for act in CLIENTS:
                tasks.create_task(goes_on(act))

    with ThreadPoolExecutor(1) as thread:
        sending = thread.submit(asyncio.run, send())
        try:
            yield
        finally:
            done.set()
        sending.result()
