"""Measures the quality of cached answers: the figures and pictures of docs/quality.md. Takes a few minutes.

    .venv/bin/python -m scripts.measure_quality FOLDER

FOLDER holds banking77_train.csv, banking77_test.csv and clinc150_data_full.json. The pairs come from fow-cache. The
figures go to docs/images/quality.json. `scripts.generate_docs` makes the tables of the page from them.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from api.cli.quality import draw
from api.cli.quality_replay import FOW, Product, Samples, measure, open_product, policies_of, read_samples
from api.quality.measurement import Measurement
from api.settings import load_settings

DOCS: Final = Path(__file__).parents[1] / "docs"
FIGURES: Final = DOCS / "images" / "quality.json"
SEED: Final = 1
QUESTIONS: Final = 10_000
DEFAULT: Final = ("guarded", 0.92)
SHOWN: Final = (0.80, 0.84, 0.88, 0.90, 0.92, 0.94, 0.96)
"""Thresholds in the tables. The pictures have all."""
TITLES: Final = {
    FOW: "fow-cache: 600 pairs, half of them traps",
    "banking77": "banking77: 10,000 questions to a bank, 77 intents",
    "clinc150": "clinc150: 10,000 questions to an assistant, 150 intents",
}

Document = dict[str, Any]


# -- Measure -----------------------------------------------------------------------------------------------------------


def main() -> int:
    """Measures, and writes the figures and pictures."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    FIGURES.write_text(json.dumps(measured(Path(sys.argv[1])), indent=1) + "\n")
    print("Now run python -m scripts.generate_docs", file=sys.stderr)
    return 0


def measured(folder: Path) -> Document:
    """Measures all data sets and draws a picture of each."""
    product = open_product(load_settings(None))
    found: Document = {"embedder": product.embedder, "data": {}}
    for samples in (read_samples(FOW), banking77(folder), clinc150(folder)):
        shuffled = samples.sample(QUESTIONS, SEED, shuffled=samples.kind == "intents")
        found["data"][samples.name] = rounded(one_set(shuffled, product).document())
    return found


def one_set(samples: Samples, product: Product) -> Measurement:
    """Measures a data set under all policies."""
    found = measure(samples, policies_of(None, None, 0.02), product, SEED, 0, shown)
    (DOCS / "images" / f"quality-{samples.name}.png").write_bytes(draw(found))
    return found


def banking77(folder: Path) -> Samples:
    """Returns all questions of banking77."""
    rows = []
    for part in ("train", "test"):
        with (folder / f"banking77_{part}.csv").open(encoding="utf-8", newline="") as file:
            rows += [(row["text"], row["category"]) for row in csv.DictReader(file)]
    return with_intents("banking77", rows)


def clinc150(folder: Path) -> Samples:
    """Returns the questions of clinc150 that have an intent."""
    parts = json.loads((folder / "clinc150_data_full.json").read_text("utf-8"))
    return with_intents(
        "clinc150", [(text, intent) for part in ("train", "val", "test") for text, intent in parts[part]]
    )


def with_intents(name: str, rows: Sequence[tuple[str, str]]) -> Samples:
    """Returns questions with their intents."""
    return Samples(name, "intents", [text for text, _ in rows], intents=[intent for _, intent in rows])


def shown(step: str, done: int, total: int) -> None:
    """Prints the progress in one line on standard error."""
    print(f"\r{step} {done:,} of {total:,}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def rounded(value: Any) -> Any:
    """Returns a document with five decimals, so that its differences can be read."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


# -- Tables ------------------------------------------------------------------------------------------------------------


def part(name: str) -> str:
    """Returns a generated part of docs/quality.md, from the figures that were measured last."""
    data = json.loads(FIGURES.read_text())["data"]
    if name.startswith("thresholds "):
        return threshold_table(data[name.removeprefix("thresholds ")])
    tables: dict[str, Callable[[], str]] = {
        "default setting": lambda: default_table(data),
        "kinds of pairs": lambda: kinds_table(data[FOW]),
        "areas": lambda: areas_table(data),
    }
    return tables[name]()


def default_table(data: Document) -> str:
    """Returns a row for each data set under the default setting."""
    rows = []
    for name, one in data.items():
        row = setting(one, *DEFAULT)
        rows.append((TITLES[name], percent(row["hit_rate"]), percent(row["error_per_hit"]), percent(row["recall"])))
    return table(("data", "hits %", "wrong % of hits", "recall %"), rows)


def setting(one: Document, policy: str, threshold: float) -> Document:
    """Returns the row of a setting."""
    [row] = [row for row in one["rows"] if (row["policy"], row["threshold"]) == (policy, threshold)]
    return dict(row)


def threshold_table(one: Document) -> str:
    """Returns hits and errors without and with guards, by threshold."""
    rows = []
    for threshold in SHOWN:
        found = [setting(one, policy, threshold) for policy in ("fixed", "guarded")]
        cells = [percent(row[rate]) for row in found for rate in ("hit_rate", "error_per_hit")]
        rows.append((f"{threshold:.2f}", *cells))
    return table(("threshold", "`fixed`: hits %", "wrong % of hits", "`guarded`: hits %", "wrong % of hits"), rows)


def kinds_table(one: Document) -> str:
    """Returns how many pairs of each kind are served."""
    fixed, guarded = (setting(one, policy, 0.92)["kinds"] for policy in ("fixed", "guarded"))
    lax = setting(one, "guarded", 0.84)["kinds"]
    rows = [
        (kind.replace("_", " "), of, fixed[kind][0], served, lax[kind][0]) for kind, (served, of) in guarded.items()
    ]
    return table(("kind", "pairs", "`fixed` .92", "`guarded` .92", "`guarded` .84"), rows)


def areas_table(data: Document) -> str:
    """Returns P-CHR AUC by data set."""
    rows = [
        (TITLES[name].partition(":")[0], *(area(one["p_chr_auc"][policy]) for policy in ("fixed", "guarded")))
        for name, one in data.items()
    ]
    return table(("data", "`fixed`", "`guarded`"), rows)


def area(rate: Document) -> str:
    """Formats an area with its interval."""
    return f"{rate['value']:.3f} ({rate['low']:.3f} to {rate['high']:.3f})"


def percent(rate: Document | None) -> str:
    """Formats a rate with its interval, in percent."""
    if rate is None:
        return "-"
    return f"{100 * rate['value']:.1f} ({100 * rate['low']:.1f} to {100 * rate['high']:.1f})"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, cells))} |" for cells in rows)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
