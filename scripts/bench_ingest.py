"""Measures document ingestion: documents and chunks per second, memory, and the latency of /query meanwhile.

    .venv/bin/python -m scripts.bench_ingest [--documents 1000] [--concurrency 4]

Runs gunicorn with 2 workers and EMBEDDER=onnx on the embedded Redis, and a model server that answers immediately.
`ragherd ingest` stores generated documents of about 10 chunks. Questions arrive at a constant rate throughout: new ones
that retrieve passages (misses), and a cached one that does not (exact hits). A second pass with a fifth as many
documents kills a worker with SIGKILL, then the command, which is run again. At the end Redis must contain each document
and each chunk exactly once. Takes minutes on two idle cores, 40 minutes on busy ones; less with `--documents 50`.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import redis as sync_redis

from api.embedded.redis_server import embedded_redis
from scripts import made_documents
from scripts.steady_questions import CACHED, SteadyQuestions
from tests.stub_ollama import stub_process
from tests.support.gunicorn_process import Gunicorn, gunicorns
from tests.support.ingest_process import expected_texts, ingest_process
from tests.support.stored_corpus import StoredCorpus
from tests.support.waiting import wait_until

SEED: Final = 20
"""Documents stored in advance, so that questions find passages."""
QUIET: Final = 15.0
"""Seconds of questions before and after the ingestion."""
ANSWER: Final = "The warden sees to it before every shift [1], and records it in the logbook [2]. " * 4
"""About as many words as a short answer."""


@dataclass
class Phase:
    """A row of the table."""

    name: str
    asking: SteadyQuestions
    seconds: float = 0.0
    documents: int = 0
    chunks: int = 0
    cpu: float = 0.0


@dataclass
class Bench:
    """The running service and its measurements."""

    gunicorn: Gunicorn
    redis: sync_redis.Redis
    folder: Path
    concurrency: int
    question: int = 0
    phases: list[Phase] = field(default_factory=list)
    memory: list[tuple[str, list[int], int]] = field(default_factory=list)

    @contextmanager
    def asked(self, name: str) -> Iterator[Phase]:
        phase = Phase(name, SteadyQuestions(self.gunicorn.url(), self.question))
        phase.asking.start()
        began, cpu = time.monotonic(), self.cpu()
        try:
            yield phase
            phase.seconds, phase.cpu = time.monotonic() - began, self.cpu() - cpu
        finally:
            self.question = phase.asking.end()
        self.phases.append(phase)
        print(f"{name}: {phase.seconds:.0f} s", flush=True)
        self.weigh(name)

    def cpu(self) -> float:
        """Returns the CPU seconds of the workers and Redis. The figure loses those of a killed worker."""
        return sum(map(computed, [*self.gunicorn.workers(), int(self.redis.info("server")["process_id"])]))

    def weigh(self, when: str) -> None:
        workers = [resident(pid) for pid in sorted(self.gunicorn.workers())]
        self.memory.append((when, workers, int(self.redis.info("memory")["used_memory"])))

    def made(self, name: str, first: int, count: int) -> Path:
        return made_documents.write(self.folder / name, range(first, first + count))

    def ingest(self, folder: Path) -> subprocess.Popen[str]:
        return ingest_process(self.gunicorn.url(), folder, "--concurrency", str(self.concurrency))

    def ready(self, folder: Path) -> int:
        """Returns how many documents of a folder are ready."""
        pipe = self.redis.pipeline(transaction=False)
        for key in self.redis.scan_iter("rag:doc:????????????????????????", count=5000):
            pipe.hmget(key, "source", "status")
        return sum(
            (source or b"").startswith(folder.name.encode()) and status == b"ready" for source, status in pipe.execute()
        )


def resident(pid: int) -> int:
    """Returns the resident memory of a process in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def computed(pid: int) -> float:
    """Returns the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def completed(command: subprocess.Popen[str]) -> str:
    out, _ = command.communicate()
    assert command.returncode == 0, out
    return out.strip()


def measure(bench: Bench, count: int) -> None:
    """Measures before, during and after the ingestion."""
    completed(bench.ingest(bench.made("seed", 0, SEED)))
    httpx.post(f"{bench.gunicorn.url()}/query", json=CACHED, timeout=30).raise_for_status()
    with bench.asked("before"):
        time.sleep(QUIET)
    folder = bench.made("measured", SEED, count)
    with bench.asked("while ingesting") as phase:
        print(completed(bench.ingest(folder)), flush=True)
    phase.documents = count
    phase.chunks = sum(map(len, expected_texts([folder]).values()))
    with bench.asked("after"):
        time.sleep(QUIET)


def kill(bench: Bench, first: int, count: int) -> None:
    """Kills a worker, then the command, during the ingestion."""
    folder = bench.made("killed", first, count)
    with bench.asked("while killing") as phase:
        command = bench.ingest(folder)
        wait_until(lambda: bench.ready(folder) > count // 4, timeout=600)
        victim = random.choice(sorted(bench.gunicorn.workers()))
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: bench.ready(folder) > count // 2, timeout=600)
        command.kill()
        command.wait()
        print(f"SIGKILL to worker {victim}, then to the command at {bench.ready(folder)} of {count} documents")
        print(completed(bench.ingest(folder)), flush=True)
        wait_until(lambda: not bench.redis.zcard("rag:corpus:work"), timeout=60)
    phase.documents = count
    phase.chunks = sum(map(len, expected_texts([folder]).values()))


def show(bench: Bench) -> None:
    titles = ("documents/s", "chunks/s", "misses", "p50 ms", "p99 ms", "hits", "p50 ms", "p99 ms", "failed", "CPU s")
    print("\n" + _row("", titles))
    for phase in bench.phases:
        cells = [f"{n / phase.seconds:.2f}" if n else "" for n in (phase.documents, phase.chunks)]
        for kind in ("miss", "hit"):
            cuts = statistics.quantiles(phase.asking.seconds[kind], n=100)
            cells += [str(len(phase.asking.seconds[kind])), *(f"{cuts[at] * 1000:.1f}" for at in (49, 98))]
        cpu = f"{phase.cpu:.0f}" if phase.cpu >= 0 else ""
        print(_row(phase.name, (*cells, str(len(phase.asking.failed)), cpu)))
    print("\n" + _row("MiB", ("workers", "", "Redis")))
    for when, workers, used in bench.memory:
        print(_row(when, [*(str(size >> 20) for size in workers), str(used >> 20)]))


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:16}" + "".join(f"{cell:>12}" for cell in cells)


def main() -> None:
    wanted = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    wanted.add_argument("--documents", type=int, default=1000)
    wanted.add_argument("--concurrency", type=int, default=4)
    arguments = wanted.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(embedded_redis(persistent=False))
        stub = stack.enter_context(stub_process())
        stub.behaviour(answer=ANSWER, path="/api/chat")
        settings = {"REDIS_URL": server.url, "OLLAMA_BASE_URL": stub.base_url, "EMBEDDER": "onnx", "WORKERS": "2"}
        gunicorn = stack.enter_context(gunicorns("api.asgi:app", folder))(**settings, REDIS_TIMEOUT="1")
        client = stack.enter_context(sync_redis.Redis.from_url(server.url))
        bench = Bench(gunicorn, client, folder, arguments.concurrency)
        bench.weigh("at start")
        measure(bench, arguments.documents)
        killed = max(20, arguments.documents // 5)
        kill(bench, SEED + arguments.documents, killed)
        show(bench)
        folders = [folder / name for name in ("seed", "measured", "killed")]
        expected = expected_texts(folders)
        faults = StoredCorpus(client).faults(expected)
    chunks = sum(map(len, expected.values()))
    print(f"\n{len(expected):,} documents, {chunks:,} chunks, each once and nothing else: {'no' if faults else 'yes'}")
    if faults:
        sys.exit("\n".join(faults[:20]))


if __name__ == "__main__":
    main()
