"""An evaluation as a JSON document, as tables in the terminal, and as an HTML page with the failures first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ragherd.evaluation_metrics import as_fields, difference, mean
from ragherd.evaluation_run import Result
from ragherd.report_page import Verdict, whole_page
from ragherd.report_sections import Section
from ragherd.service_client import clean, new_table, terminal

MEASURES: Final = {
    "recall": "expected documents and passages among the first k sources",
    "mrr": "1 / rank of the first expected source",
    "ndcg": "expected sources, discounted by rank",
    "citation_precision": "cited sources that are expected",
    "citation_recall": "expected documents and passages that are cited",
    "grounded": "sentences that their cited passages support",
    "answers": "expected statements that the answer makes",
    "answered": "questions with an answer that are not refused",
    "refused": "questions without an answer that are refused",
}
MOST_PROBLEMS: Final = 8
"""Problems of one question that the page shows."""
MOST_SHOWN: Final = 10
"""Failed questions in the terminal."""

Document = Mapping[str, Any]


def metrics_of(results: Sequence[Result], seed: int) -> dict[str, Any]:
    """Returns each measure with its interval; None where no question has it."""
    values = {name: [one.measures[name] for one in results if name in one.measures] for name in MEASURES}
    return {name: as_fields(mean(known, seed)) for name, known in values.items()}


def compared(first: Document, second: Document, seed: int) -> dict[str, Any]:
    """Returns how much higher each measure is in the second run, over the questions that both have."""
    return {name: as_fields(difference(_values(first, name), _values(second, name), seed)) for name in MEASURES}


def _values(found: Document, name: str) -> dict[str, float]:
    return {one["question"]: one["measures"][name] for one in found["cases"] if name in one["measures"]}


def is_evaluation(found: Any) -> bool:
    """Returns whether a JSON document is what `ragherd eval --json` prints."""
    cases = found.get("cases") if isinstance(found, dict) else None
    return isinstance(cases, list) and all(
        isinstance(one, dict) and isinstance(one.get("question"), str) and _has_numbers(one.get("measures"))
        for one in cases
    )


def _has_numbers(measures: Any) -> bool:
    return isinstance(measures, dict) and all(
        isinstance(value, int | float) and 0 <= value <= 1 for value in measures.values()
    )


def failures(found: Document) -> list[Mapping[str, Any]]:
    """Returns the questions with problems: errors, then the lowest measures first."""
    return sorted((one for one in found["cases"] if one["problems"]), key=_mean_measure)


def _mean_measure(case: Mapping[str, Any]) -> float:
    measures = case["measures"].values()
    return sum(measures) / len(measures) if measures else -1.0


def is_met(found: Document) -> bool:
    """Returns whether every question was answered, every threshold is met, and nothing is certainly worse."""
    return not (found["errors"] or missed(found) or worse(found))


def missed(found: Document) -> list[str]:
    """Returns the thresholds that are not met."""
    below = [one for one in found["thresholds"] if not one["met"]]
    return [f"{one['name']} is {_figure(one['value'])}, below {one['least']:g}" for one in below]


def worse(found: Document) -> list[str]:
    """Returns the measures that are certainly lower than in the baseline."""
    changes = found["baseline"] or {}
    return [
        f"{name} is lower than in the baseline: {_change(one)}"
        for name, one in changes.items()
        if one and one["certain"] and one["value"] < 0
    ]


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _interval(one: Mapping[str, Any]) -> str:
    return f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"


def _change(one: Mapping[str, Any]) -> str:
    return f"{one['value']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})"


# -- Terminal ----------------------------------------------------------------------------------------------------------


def heading(found: Document) -> list[str]:
    """Returns what was asked, in two lines."""
    questions = f"{len(found['cases']):,} question{'' if len(found['cases']) == 1 else 's'}"
    judge = f"rules and {clean(found['judge'])}" if found["judge"] else "rules"
    how = "retrieval only" if found["retrieval_only"] else f"sentences judged by {judge}"
    drafts = f", {found['drafts']:,} drafts left out" if found["drafts"] else ""
    return [
        f"{clean(found['url'])}, version {clean(str(found['version'] or 'unknown'))}",
        f"{clean(found['file'])}: {questions}{drafts}, k {found['k']}, {how}, seed {found['seed']}",
    ]


def rows_of(found: Document) -> Iterator[list[str]]:
    """Yields a row for each measure that a question has."""
    changes = found["baseline"] or {}
    for name, one in found["metrics"].items():
        if one:
            change = changes.get(name)
            against = [_change(change) if change else "-"] if changes else []
            yield [name, _interval(one), f"{one['n']:,}", *against, MEASURES[name]]


def titles(found: Document) -> list[str]:
    """Returns the titles of the columns."""
    against = ["against the baseline"] if found["baseline"] else []
    return ["measure", "value", "questions", *against, "share or mean of"]


def print_evaluation(found: Document) -> None:
    """Prints the measures and the worst failures."""
    console = terminal()
    for line in heading(found):
        console.print(line)
    table = new_table(*titles(found))
    for row in rows_of(found):
        table.add_row(*row)
    console.print(table)
    for line in _reasons(found):
        console.print(clean(line))
    for case in failures(found)[:MOST_SHOWN]:
        console.print(f"\n{' '.join(clean(case['question']).split())[:200]}")
        for problem in case["problems"][:3]:
            console.print(f"  {' '.join(clean(problem).split())[:200]}")


def print_comparison(changes: Document, first: str, second: str) -> None:
    """Prints how the second run differs from the first."""
    table = new_table("measure", f"{second} minus {first}", "questions", "changed", "certain")
    for name, one in changes.items():
        if one:
            table.add_row(name, _change(one), f"{one['n']:,}", f"{one['changed']:,}", "yes" if one["certain"] else "no")
    terminal().print(table)


def _reasons(found: Document) -> list[str]:
    failed = len(failures(found))
    unknown = [f"no document is '{one}'" for one in found["missing_documents"]]
    return [
        f"{failed:,} of {len(found['cases']):,} questions have problems, {found['errors']:,} of them no answer",
        *missed(found),
        *worse(found),
        *unknown[:MOST_SHOWN],
    ]


# -- Page --------------------------------------------------------------------------------------------------------------


def page_of(found: Document) -> str:
    """Returns an HTML page. It refers to no other file and no host."""
    failed = failures(found)
    tone, said = ("warn", "Some questions fail") if failed else ("good", "All questions pass")
    if not is_met(found):
        tone, said = "bad", "Not good enough"
    return whole_page(
        "Evaluation", heading(found), Verdict(tone, said, _reasons(found)), _sections(found, failed), found["made"]
    )


def _sections(found: Document, failed: Sequence[Document]) -> Iterator[Section]:
    if failed:
        rows = [(clean(one["question"]), _explained(one)) for one in failed]
        yield Section("Failures", head=("question", "what is wrong"), rows=rows)
    yield Section("Measures", ("With 95 % intervals.",), titles(found), list(rows_of(found)))
    passed = [(clean(one["question"]), _shortened(one["answer"])) for one in found["cases"] if not one["problems"]]
    if passed:
        yield Section("Without problems", head=("question", "answer"), rows=passed)


def _explained(case: Document) -> str:
    problems = case["problems"]
    more = [f"and {len(problems) - MOST_PROBLEMS} more"] if len(problems) > MOST_PROBLEMS else []
    answer = [f"Answer: {_shortened(case['answer'])}"] if case["answer"] else []
    return ". ".join([*(_shortened(one).rstrip(".") for one in problems[:MOST_PROBLEMS]), *more, *answer])


def _shortened(text: str) -> str:
    said = " ".join(clean(text).split())
    return said if len(said) <= 400 else f"{said[:400]}..."


def write_evaluation(found: Document, folder: Path) -> list[Path]:
    """Writes the JSON document and the page. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / "eval.json", folder / "eval.html"
    data.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    page.write_text(page_of(found), encoding="utf-8")
    return [data, page]
