"""Sixteen clients send bodies that once stopped a worker: other tenants do not notice."""

from __future__ import annotations

import itertools
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import redis as sync_redis

from api.embedded.redis_server import EmbeddedRedis
from tests.stub_ollama import StubProcess, stub_process
from tests.support.cpu_share import measured_share, slowness
from tests.support.gunicorn_process import Gunicorn, gunicorns
from tests.support.largest_bodies import ANSWERED, DOCUMENTS, FORM, REFUSED, Sent, form
from tests.support.probe_process import probing
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.alone]

CLIENTS = 16
SECONDS = 6.0
P99 = 0.25
"""Seconds that a probe of another tenant takes, where nothing else uses a machine of the usual speed."""
GROWTH = 100 * 1024
"""KiB of memory."""
MARKDOWN = Sent("/documents", form(("# Title\n\na" + "\u0315\u0300" * 300_000).encode(), name="marks.md"), 0, FORM)


@pytest.fixture(scope="module")
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        stub.behaviour(answer="It is thirty days.")
        yield stub


@pytest.fixture
def fleet(ollama: StubProcess, redis_server: EmbeddedRedis, tmp_path: Path) -> Iterator[Gunicorn]:
    """Two workers, with keys."""
    redis_server.start()
    with sync_redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    settings = {"REDIS_URL": redis_server.url, "OLLAMA_BASE_URL": ollama.base_url, "WORKERS": "2"}
    settings["OLLAMA_MAX_PROMPT_TOKENS"] = "1000000"
    keys = {"API_KEYS": "acme=key-of-acme,globex=key-of-globex", "ADMIN_KEYS": "key-of-admin"}
    with gunicorns("api.asgi:app", tmp_path) as begin:
        yield begin(**settings, **keys, LLM_MODEL="llama3.2", OLLAMA_WARM_UP="false", CHUNK_TOKENS="1000")


@dataclass
class Attack:
    """What the clients got, by status."""

    statuses: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def go_on(self, url: httpx.URL, bodies: Sequence[Sent], key: str | None, until: float) -> None:
        """One client's part, over plain sockets, so that the time is the service's own."""
        for sent in itertools.cycle(bodies):
            if time.monotonic() > until:
                return
            try:
                self.statuses.append(_status(url, sent, key))
            except (OSError, IndexError, ValueError) as error:
                self.failures.append(repr(error))


def _status(url: httpx.URL, sent: Sent, key: str | None) -> int:
    """The status of one response. The client opens a connection for it, and closes that once it has all of it."""
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST {sent.path} HTTP/1.1\r\nHost: {url.host}\r\n{authorization}"
        f"Content-Type: {sent.kind}\r\nContent-Length: {len(sent.content)}\r\n\r\n"
    )
    with closing(socket.create_connection((url.host, url.port or 80), timeout=60)) as connection:
        connection.sendall(head.encode() + sent.content)
        with connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            headers = dict(line.lower().split(b": ", 1) for line in iter(answer.readline, b"\r\n"))
            answer.read(int(headers.get(b"content-length", b"0")))
    return status


def memory(pid: int, name: str) -> int:
    """KiB: `VmRSS`, what a process has now, or `VmHWM`, the most that it had."""
    lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def under_attack(fleet: Gunicorn, bodies: Sequence[Sent], key: str | None) -> set[int]:
    """The statuses that the clients got. No worker is restarted, none grows much, and no other tenant waits long."""
    url, attack = httpx.URL(fleet.url()), Attack()
    wait_until(lambda: len(fleet.workers()) == 2)
    with probing(fleet.url(), "key-of-globex") as probe:
        workers = fleet.workers()
        before = {pid: memory(pid, "VmRSS") for pid in workers}
        for pid in workers:
            (Path("/proc") / str(pid) / "clear_refs").write_text("5")  # forgets the most that it had
        until = time.monotonic() + SECONDS
        turned = [[*bodies[turn % len(bodies) :], *bodies[: turn % len(bodies)]] for turn in range(CLIENTS)]
        threads = [threading.Thread(target=attack.go_on, args=(url, order, key, until)) for order in turned]
        with measured_share() as share:
            for thread in threads:
                thread.start()
            probe.start(until)
            for thread in threads:
                thread.join()
            probes = probe.seconds()
    assert fleet.workers() == workers
    assert attack.failures == []
    p99, growth = statistics.quantiles(probes, n=100)[98], {pid: memory(pid, "VmHWM") - before[pid] for pid in workers}
    bodies_sent = len(attack.statuses)
    told = f"{bodies_sent} bodies, {len(probes)} probes, p99 {p99:.3f} s with {share():.0%} of the machine, {growth}"
    assert p99 < P99 * slowness() / share(), told
    assert max(growth.values()) < GROWTH, told
    return set(attack.statuses)


A1 = [REFUSED[name] for name in ("wrong parts", "wrong content", "wrong inputs", "wrong inputs, OpenAI")]
UNKNOWN = [sent for name, sent in REFUSED.items() if name.startswith("unknown")]
A2 = [ANSWERED["chat of marks"], ANSWERED["chat of ligatures"]]


def test_without_a_key_every_body_is_refused_unread(fleet: Gunicorn) -> None:
    everything = [*A1, *UNKNOWN, *A2, *DOCUMENTS.values(), *ANSWERED.values()]
    statuses = under_attack(fleet, everything, None)
    assert statuses == {401}


def test_with_a_key_wrong_bodies_hold_nobody_up(fleet: Gunicorn) -> None:
    statuses = under_attack(fleet, A1, "key-of-acme")
    assert statuses == {400}


def test_with_a_key_unknown_fields_hold_nobody_up(fleet: Gunicorn) -> None:
    statuses = under_attack(fleet, UNKNOWN, "key-of-admin")
    assert statuses <= {400, 422}


def test_prompts_that_are_slow_to_normalise_hold_nobody_up(fleet: Gunicorn) -> None:
    statuses = under_attack(fleet, A2, "key-of-acme")
    assert statuses == {200}


def test_documents_that_are_slow_to_normalise_hold_nobody_up(fleet: Gunicorn) -> None:
    documents = [DOCUMENTS["marks"], MARKDOWN]
    statuses = under_attack(fleet, documents, "key-of-admin")
    assert statuses <= {201, 202, 422, 503}
