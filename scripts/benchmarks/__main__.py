"""Runs all measurements, prints the table, and writes JSON, table and picture.

scripts/benchmark                 five rounds; about ten minutes
scripts/benchmark --rivals        also GPTCache and LiteLLM's proxy, which have an environment of their own
scripts/benchmark --quick         one short round, to see that everything works; its figures say nothing
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import redis

from ragherd.benchmark_file import machine
from scripts.benchmarks import figures, hits, misses, profiles, report, resources
from scripts.benchmarks.load import ROOT
from scripts.benchmarks.place import RIVALS, Place, opened

OUT: Final = ROOT / ".data" / "benchmark"
PAGE: Final = ROOT / "docs" / "performance.md"
IMAGES: Final = ROOT / "docs" / "images"
BEGIN, END = "<!-- begin: scripts/benchmark --docs -->", "<!-- end -->"
OTHERS: Final = ("gptcache", "litellm")
PACKAGES: Final = ("fastapi", "uvicorn", "redisvl", *OTHERS)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int = 5
    seconds: float = 4.0
    connections: int = hits.CONNECTIONS
    misses: tuple[int, int] = (150, 320)
    """Requests with 1 and with 32 clients."""
    tokens: tuple[int, int] = (20, 320)
    tenants: int = 4
    wordings: int = 96
    entries: tuple[int, int] = (1_000, 100_000)
    calls: int = 1_000
    memory: int = 300
    starts: int = 3
    sampled: float = 10.0
    profiled: int = 600


QUICK: Final = Plan(1, 0.2, hits.CONNECTIONS, (5, 40), (5, 25), 1, 4, (100, 300), 20, 10, 1, 1.0, 20)


def run(plan: Plan, *, rivals: bool) -> dict[str, Any]:
    """Measures everything. Returns the document."""
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as place:
        document: dict[str, Any] = {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "plan": asdict(plan),
            "machine": machine(),
            "versions": versions(place, rivals=rivals),
        }
        service = place.service()
        cases = hits.cases(place, service, place.service(SEMANTIC_CACHE_NEAR_BYTES="0"), rivals=rivals)
        document["cases"] = hits.in_turns(place, cases, plan.rounds, plan.seconds, say)
        say("hits at half the load")
        exact = cases[figures.EXACT]
        halved = {name: cases[name] for name in (figures.BARE, figures.EXACT)}
        document["half_load"] = hits.half_load(place, halved, document["cases"], plan.rounds, plan.seconds)
        document["by_client"] = hits.by_client(cases, plan.rounds)
        say("embedding")
        document["embedded"] = hits.embedded(place, service, plan.rounds, plan.tenants, plan.wordings)
        say("misses")
        few, many = plan.misses
        document["misses"] = misses.misses(place, service, plan.rounds, {figures.FEW: few, figures.MANY: many})
        say("streams")
        document["streams"] = misses.streams(place, service, plan.rounds, plan.tokens)
        say("profiles")
        unknown = misses.new_questions(plan.profiled)
        document["profiles"] = profiles.profiles(place, exact.server, exact.load, unknown, plan.sampled)
        say("memory and start")
        document["processes"] = resources.processes(place, plan.starts, plan.memory)
    say(f"{plan.entries[1]:,} entries")
    document["sizes"] = resources.sizes(*plan.entries, plan.rounds, plan.calls)
    document["load_at_end"] = round(os.getloadavg()[0], 2)
    return document


def versions(place: Place, *, rivals: bool) -> dict[str, str]:
    """Returns the versions of Redis and of the rivals."""
    with redis.Redis(port=place.redis.port) as client:
        found = {"Redis": str(client.info("server")["redis_version"])}
    known = {one.name: one.version for one in metadata.distributions()}
    if rivals:  # they have other versions than Ragherd's own environment
        sites = [str(site) for site in RIVALS.glob("lib/python*/site-packages")]
        known |= {one.name: one.version for one in metadata.distributions(path=sites) if one.name in OTHERS}
    return found | {name: known[name] for name in PACKAGES if name in known and (rivals or name not in OTHERS)}


def say(line: str) -> None:
    """Shows the progress on stderr."""
    print(f"==> {line}", file=sys.stderr, flush=True)


# -- Files -------------------------------------------------------------------------------------------------------------


def rounded(value: Any) -> Any:
    """Returns the document with five significant digits, which is more than repeats."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def encoded(document: dict[str, Any]) -> str:
    """Returns the JSON with one line for each part."""
    parts = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in rounded(document).items())
    return "{\n" + ",\n".join(parts) + "\n}\n"


def with_tables(page: str, document: dict[str, Any]) -> str:
    """Returns the page with the tables of this run between its two marks."""
    pattern = re.compile(rf"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
    return pattern.sub(lambda _: f"\n{report.markdown(document)}\n", page)


def write(document: dict[str, Any], folder: Path) -> None:
    """Writes JSON, table and picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "performance.json").write_text(encoded(document))
    (folder / "performance.svg").write_text(report.draw(document))


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description="Measures Ragherd beside its rivals.")
    parser.add_argument("--quick", action="store_true", help="one short round: shows that it works, not how fast it is")
    parser.add_argument("--rivals", action="store_true", help="also GPTCache and LiteLLM's proxy")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of performance.json and performance.svg")
    parser.add_argument("--docs", action="store_true", help="also write docs/performance.md and its picture")
    parser.add_argument("--from", dest="earlier", type=Path, help="do not measure: read the JSON of an earlier run")
    given = parser.parse_args()
    if given.earlier:
        document = json.loads(given.earlier.read_text())
    else:
        document = rounded(run(QUICK if given.quick else Plan(), rivals=given.rivals))
    write(document, given.out)
    if given.docs:
        write(document, IMAGES)
        PAGE.write_text(with_tables(PAGE.read_text(), document))
    print(report.markdown(document))
    say(f"{given.out}/performance.json and performance.svg")


if __name__ == "__main__":
    main()
