"""Injects faults by seed under load, and checks that no answer is wrong, lost or late.

scripts/chaos --seeds 20 --seconds 60       what runs before a release
scripts/chaos --plan .data/chaos/plan.json  the same faults again, of a seed that failed
scripts/chaos --soak --seconds 1800         no faults: memory, descriptors and keys must not grow

Writes report.md and report.json to .data/chaos, and there the logs of each seed that fails. The plan of the first
seed that fails is made smaller while it fails, and written to plan.json. Ends with 1 if a seed fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts.chaos_tools.fleet import DEFECTS, clock_library, is_isolated
from scripts.chaos_tools.plan import (
    CLOCK,
    ISOLATED,
    KINDS,
    Fault,
    Kind,
    as_json,
    from_json,
    kinds_of,
    made,
    minimized,
)
from scripts.chaos_tools.report import as_document, as_markdown, slopes
from scripts.chaos_tools.run import Verdict, run
from scripts.chaos_tools.soak_start import RUSH

OUT: Final = Path(__file__).parents[2] / ".data" / "chaos"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    seeds = range(options.first, options.first + (1 if options.soak or options.plan else options.seeds))
    kinds = possible(options.kinds.split(",") if options.kinds else KINDS)
    verdicts: list[Verdict] = []
    for seed in seeds:
        plan = [] if options.soak else made(seed, options.seconds, kinds_of(seed, kinds))
        if options.plan is not None:
            plan = from_json(json.loads(options.plan.read_text()))
        rush = options.rush if options.soak else 0.0
        verdict = run(seed, plan, options.seconds, _say, options.defect, options.out / f"seed-{seed}", rush)
        verdicts.append(verdict)
        _say(f"seed {seed}: {dict(verdict.outcomes)}, {'FAILED' if verdict.failed else 'no fault found'}")
        report = _reported(verdicts, options.out, soak=options.soak)
    print(report)
    failed = [one for one in verdicts if one.failed]
    if failed and failed[0].injected:
        _minimize(failed[0], options)
    sys.exit(bool(failed))


def possible(kinds: Sequence[Kind]) -> Sequence[Kind]:
    """Returns the kinds of faults that this process may inject."""
    missing = {
        "root": frozenset() if is_isolated() else ISOLATED,
        "libfaketime (scripts/install-test-tools)": frozenset() if clock_library() else frozenset({CLOCK}),
    }
    for needed, without in missing.items():
        if without.intersection(kinds):
            _say(f"Not injected, since this needs {needed}: {', '.join(sorted(without))}")
    return [kind for kind in kinds if not any(kind in without for without in missing.values())]


def _reported(verdicts: Sequence[Verdict], folder: Path, *, soak: bool) -> str:
    """Writes the reports of all runs so far. Returns the one for people."""
    (folder / "report.json").write_text(json.dumps(as_document(verdicts), indent=1) + "\n")
    report = as_markdown(verdicts)
    if soak:
        found = slopes(verdicts[0].samples)
        lines = [f"| {one.name} | {one.value:+.1f} | {one.low:+.1f} to {one.high:+.1f} |" for one in found]
        report += "\n".join(["", "| per hour | slope | 95 % interval |", "|---|---|---|", *lines]) + "\n"
    (folder / "report.md").write_text(report)
    return report


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20, help="how many seeds")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--seconds", type=float, default=60, help="seconds of load per seed")
    parser.add_argument("--kinds", help="only these kinds of faults, with commas between")
    parser.add_argument("--plan", type=Path, help="a plan to replay")
    parser.add_argument("--soak", action="store_true", help="inject nothing, and show how resources grow")
    parser.add_argument("--rush", type=float, default=RUSH, help="seconds without pauses before a soak is measured")
    parser.add_argument("--no-minimize", action="store_true", help="keep the plan of a failed seed as it is")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of the reports")
    parser.add_argument("--defect", choices=list(DEFECTS), help="a defect that the fleet has and the run must find")
    return parser.parse_args(arguments)


def _minimize(verdict: Verdict, options: argparse.Namespace) -> None:
    """Writes the faults of a failed run, without those that the failure does not need."""

    def fails(plan: Sequence[Fault]) -> bool:
        failed = run(verdict.seed, plan, options.seconds, defect=options.defect).failed
        _say(f"seed {verdict.seed} with {len(plan)} faults: {'fails' if failed else 'does not fail'}")
        return failed

    plan = [injected.fault for injected in verdict.injected]
    plan = plan if options.no_minimize else minimized(plan, fails)
    file = options.out / "plan.json"
    file.write_text(json.dumps(as_json(plan), indent=1) + "\n")
    replay = f"scripts/chaos --plan {file} --first {verdict.seed} --seconds {options.seconds:g}"
    _say(f"Replay the failure with {replay}" + (f" --defect '{options.defect}'" if options.defect else ""))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
