"""A benchmark as a file: the machine, the settings of the service, the plan, and what each round counted."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from api import __version__
from ragherd.benchmark_compare import ALL, LEAST_ROUNDS
from ragherd.load_plan import Tally
from ragherd.service_client import clean

FORMAT: Final = 1
FOLDER: Final = Path(".data") / "benchmarks"
NAME: Final = re.compile(r"[\w][\w.-]{0,99}")
FIELDS: Final = frozenset({"format", "made", "machine", "service", "plan", "rounds"})
ROUND_FIELDS: Final = frozenset({"seconds", "requests", "failed", "hits", "looked_up", "latency"})
VERSION: Final = "version"
"""The part of the configuration that a comparison of two releases is meant to change."""
LATE_MS: Final = 50.0
"""A load generator that is this late at p99 is itself part of the latency."""
LEAST_EACH: Final = 5.0
"""Requests of a user in a round."""
BUSY: Final = 0.5
"""A load average above this share of the cores, before the benchmark, disturbs it."""

Document = Mapping[str, Any]


class NotABenchmark(Exception):
    """The file cannot be read as a benchmark. The message is one line with the reason."""


def path_of(given: str) -> Path:
    """Returns the file of a benchmark: a path, or for a plain name a file below `.data/benchmarks`."""
    if "/" not in given and not given.endswith(".json") and NAME.fullmatch(given):
        return FOLDER / f"{given}.json"
    return Path(given)


def round_of(tally: Tally, seconds: float) -> dict[str, Any]:
    """Returns what a round counted. `latency` has counts by cache status and bucket, which can be merged."""
    latency = {ALL: tally.latency.counts()} | {name: one.counts() for name, one in sorted(tally.by_kind.items())}
    return {
        "seconds": round(seconds, 3),
        "requests": tally.requests,
        "failed": tally.failed,
        "hits": tally.statuses["hit"],
        "looked_up": tally.statuses["hit"] + tally.statuses["miss"],
        "latency": {name: counts for name, counts in latency.items() if counts},
    }


def read_benchmark(given: str) -> dict[str, Any]:
    """Returns a saved benchmark. Raises `NotABenchmark`."""
    path = path_of(given)
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise NotABenchmark(f"{path}: {error.strerror or error}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or not set(found) >= FIELDS:
        raise NotABenchmark(f"{path}: is not a benchmark of `ragherd benchmark save`")
    if found["format"] != FORMAT:
        raise NotABenchmark(f"{path}: has the format {found['format']}, this release reads {FORMAT}")
    rounds = found["rounds"]
    if len(rounds) < LEAST_ROUNDS or not all(set(one) >= ROUND_FIELDS for one in rounds):
        raise NotABenchmark(f"{path}: has {len(rounds)} rounds, a comparison needs {LEAST_ROUNDS}")
    return found


def write_benchmark(given: str, found: Document) -> Path:
    """Writes a benchmark, and returns its file. Raises `OSError`."""
    path = path_of(given)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(json.dumps(found) + "\n", encoding="utf-8")
    draft.replace(path)
    return path


# -- Where it was measured ---------------------------------------------------------------------------------------------


def machine(root: Path = Path("/proc")) -> dict[str, Any]:
    """Describes the machine that sends the load, and how busy it is now."""
    return {
        "cpu": _cpu(root / "cpuinfo"),
        "cores": os.cpu_count(),
        "memory_mib": _memory(root / "meminfo"),
        "os": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "ragherd": __version__,
        "load_average": round(os.getloadavg()[0], 2),
    }


def _cpu(file: Path) -> str:
    with suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.+)$", file.read_text("utf-8"), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or "unknown"


def _memory(file: Path) -> int | None:
    with suppress(OSError):
        if found := re.search(r"^MemTotal:\s*(\d+) kB", file.read_text("utf-8"), re.MULTILINE):
            return int(found[1]) // 1024
    return None


def digest_of(configuration: Document) -> str:
    """Returns a short digest of the settings that the service reports, without its version."""
    text = json.dumps({name: value for name, value in configuration.items() if name != VERSION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -- What makes two benchmarks hard to compare -------------------------------------------------------------------------

SAME_MACHINE: Final = ("cpu", "cores", "memory_mib", "os", "architecture", "python")


def warnings_of(base: Document, new: Document) -> list[str]:
    """Returns what besides the service may explain a difference."""
    return [*_machines(base, new), *_settings(base, new), *_plans(base, new), *_load(base, new)]


def _machines(base: Document, new: Document) -> Iterator[str]:
    for name in SAME_MACHINE:
        before, after = base["machine"].get(name), new["machine"].get(name)
        if before != after:
            yield f"The machines differ: {name} {_shown(before)} and {_shown(after)}."


def _settings(base: Document, new: Document) -> Iterator[str]:
    before, after = (one["service"]["configuration"] for one in (base, new))
    for name in sorted({*before, *after} - {VERSION}):
        if before.get(name) != after.get(name):
            yield f"The settings differ: {name} {_shown(before.get(name))} and {_shown(after.get(name))}."
    if (one := base["service"].get("redis")) != (other := new["service"].get("redis")):
        yield f"The Redis versions differ: {_shown(one)} and {_shown(other)}."


def _plans(base: Document, new: Document) -> Iterator[str]:
    for name in sorted({*base["plan"], *new["plan"]}):
        before, after = base["plan"].get(name), new["plan"].get(name)
        if before != after:
            yield f"The loads differ: {name} {_shown(before)} and {_shown(after)}."


def _load(base: Document, new: Document) -> Iterator[str]:
    for name, one in (("first", base), ("second", new)):
        if line := short_rounds(one):
            yield f"In the {name} benchmark, {line}"
        busy, cores = one["machine"]["load_average"], one["machine"]["cores"] or 1
        if busy > BUSY * cores:
            yield f"The machine was busy before the {name} benchmark: load average {busy:g} on {cores} cores."
        lag = one.get("generator_lag_ms")
        if lag is not None and lag > LATE_MS:
            yield f"The machine was too slow for the load of the {name} benchmark."


def short_rounds(found: Document) -> str:
    """Returns why the rounds say little about the cache, or ''. Their caches begin empty, so few questions recur."""
    each = sum(one["requests"] for one in found["rounds"]) / len(found["rounds"]) / found["plan"].get("users", 1)
    if each >= LEAST_EACH:
        return ""
    return f"a user asks only {each:.1f} questions in a round: use a longer --round-seconds."


def _shown(value: Any) -> str:
    return "unknown" if value is None else clean(str(value))


def worst_lag(tallies: Sequence[Tally]) -> float | None:
    """Returns the largest p99 of how late requests were started, in milliseconds."""
    found = [lag for tally in tallies if (lag := tally.lag.percentile(99)) is not None]
    return max(found, default=None)
