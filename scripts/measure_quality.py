"""Measures the quality of cached answers: the figures and pictures of docs/quality.md. Takes a few minutes.

    .venv/bin/python -m scripts.measure_quality FOLDER [VERIFIER [NAME ...]]

FOLDER holds banking77_train.csv, banking77_test.csv and clinc150_data_full.json. The pairs come from fow-cache.
VERIFIER is the folder of a verifier, by default the base model; `verified` is measured without and with it. NAME (fow,
banking77, clinc150) is a data set to measure; the figures of others stay. The figures go to docs/images/quality.json.
`scripts.generate_docs` makes the tables of the page from them.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from api.embedders.minilm import MiniLM, ModelFiles, model_files
from api.quality.comparator import MEASURED_WITH_MODEL, UNSEEN
from api.quality.measurement import figures, outcomes_of_stream
from api.quality.replay import WRONG, Ints, Near, Stream, replay
from api.quality.replayed_policies import Verified
from api.query.cache_key import normalise
from api.settings import load_settings
from api.values import Embedding
from ragherd.quality import draw
from ragherd.quality_replay import Product, Questions, measure, open_product, policies_of
from ragherd.quality_samples import FOW, Samples, read_samples
from scripts.noisy_verdicts import NoisyVerdicts

DOCS: Final = Path(__file__).parents[1] / "docs"
BASE_VERIFIER: Final = Path(__file__).parents[1] / "api" / "embedders" / "weights" / "verifier"
FIGURES: Final = DOCS / "images" / "quality.json"
SEED: Final = 1
ORDERS: Final = 3
LABELS: Final = ("true", "with the comparator's errors", "with errors that repeat", "with the errors on blind pairs")
TARGET: Final = 0.02
QUESTIONS: Final = 10_000
DEFAULT: Final = ("guarded", 0.92)
SHOWN: Final = (0.80, 0.84, 0.88, 0.90, 0.92, 0.94, 0.96)
"""Thresholds in the tables and pictures."""
AIMS: Final = {"banking77": "30 / 2", "clinc150": "28 / 2"}
"""Hits and wrong hits in percent that `verified` was to reach after 10,000 questions."""
TITLES: Final = {
    FOW: "fow-cache: 600 pairs, half of them traps",
    "banking77": "banking77: 10,000 questions to a bank, 77 intents",
    "clinc150": "clinc150: 10,000 questions to an assistant, 150 intents",
}

Document = dict[str, Any]


# -- Measure -----------------------------------------------------------------------------------------------------------


def main() -> int:
    """Measures, and writes the figures and pictures."""
    if len(sys.argv) < 2 or not set(sys.argv[3:]) <= set(TITLES):
        print(__doc__, file=sys.stderr)
        return 2
    folder, *verifier = map(Path, sys.argv[1:3])
    names = sys.argv[3:] or list(TITLES)
    found = measured(folder, verifier[0] if verifier else BASE_VERIFIER, names)
    if set(names) < set(TITLES):
        before = json.loads(FIGURES.read_text())
        found = {**found, **{part: {**before[part], **found[part]} for part in ("data", "orders")}}
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    print("Now run python -m scripts.generate_docs", file=sys.stderr)
    return 0


def measured(folder: Path, verifier: Path, names: Sequence[str]) -> Document:
    """Measures data sets and draws a picture of each."""
    product = replace(open_product(load_settings(None), verifier), model=Remembering(model_files(None)))
    found: Document = {"embedder": product.embedder, "data": {}, "orders": {}}
    for name in names:
        samples = read_samples(FOW) if name == FOW else {"banking77": banking77, "clinc150": clinc150}[name](folder)
        shuffled = samples.sample(QUESTIONS, SEED, shuffled=samples.kind == "intents")
        found["data"][samples.name] = rounded(one_set(shuffled, product))
        if samples.kind == "intents":
            found["orders"][samples.name] = over_orders(shuffled, product)
    return found


class Remembering(MiniLM):
    """Embeds each text once."""

    def __init__(self, files: ModelFiles) -> None:
        super().__init__(files)
        self._known: dict[str, Embedding] = {}

    def embed(self, texts: Sequence[str]) -> list[Embedding]:
        new = [text for text in texts if text not in self._known]
        self._known.update(zip(new, super().embed(new), strict=True))
        return [self._known[text] for text in texts]


def one_set(samples: Samples, product: Product) -> Document:
    """Measures a data set under all policies. Of streams also the second half, when `verified` has learned."""
    policies = policies_of(None, SHOWN, TARGET, verifier=product.verifier is not None, prior=product.prior)
    found = measure(samples, policies, product, SEED, 0, shown)
    (DOCS / "images" / f"quality-{samples.name}.png").write_bytes(draw(found))
    late = np.arange(len(samples)) >= len(samples) // 2
    halves = [figures(row.policy, row.outcomes.part(late), 0, SEED) for row in found.rows]
    return {**found.document(), "second_half": [asdict(one) for one in halves] if samples.intents else []}


def over_orders(samples: Samples, product: Product) -> list[Document]:
    """Runs `verified` on the same questions in other orders, with true labels and with the comparator's errors."""
    questions = Questions(samples.asked, product, shown)
    keys = [normalise(text) for text in samples.asked]
    intents = np.unique(np.array(samples.intents), return_inverse=True)[1]
    objection = lru_cache(maxsize=None)(lambda asked, cached: questions.objection(asked, Near(cached, 1.0)))
    found = []
    for seed in range(1, ORDERS + 1):
        order = np.random.default_rng(seed).permutation(len(keys))
        comparable = [questions.comparable(int(one)) for one in order]
        stream = Stream(questions.vectors[order], [keys[one] for one in order], comparable)
        of = intents[order]

        def truth(asked: int, cached: int, of: Ints = of) -> bool | None:
            return bool(of[asked] == of[cached])

        def judge(asked: int, near: Near, order: Ints = order) -> str:
            return objection(int(order[asked]), int(order[near.place]))

        kinds = list(map(int, of))
        noisy = [NoisyVerdicts(MEASURED_WITH_MODEL, kinds, seed, repeated=one) for one in (False, True)]
        noisy.append(NoisyVerdicts(UNSEEN, kinds, seed))
        policies = [Verified(TARGET, DEFAULT[1], seed)]
        policies += [
            Verified(TARGET, DEFAULT[1], seed, hear=one, confusion=MEASURED_WITH_MODEL.confusion) for one in noisy
        ]
        runs = replay(stream, policies, judge, truth, lambda done, total: None)
        for run, labels in zip(runs, LABELS, strict=True):
            outcomes = outcomes_of_stream(run, truth, np.array([], bool))
            wrong = outcomes.hits & (outcomes.right == WRONG)
            counts = {"hits": int(outcomes.hits.sum()), "wrong": int(wrong.sum())}
            found.append({"seed": seed, "labels": labels, "questions": len(keys), **counts})
        shown(f"{samples.name}: orders", seed, ORDERS)
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
    found = json.loads(FIGURES.read_text())
    data = found["data"]
    if name.startswith("thresholds "):
        return threshold_table(data[name.removeprefix("thresholds ")])
    tables: dict[str, Callable[[], str]] = {
        "default setting": lambda: default_table(data),
        "kinds of pairs": lambda: kinds_table(data[FOW]),
        "areas": lambda: areas_table(data),
        "verified": lambda: verified_table(data),
        "pairs with a verifier": lambda: pairs_table(data[FOW]),
        "aims": lambda: aims_table(found),
        "orders": lambda: orders_table(found["orders"]),
    }
    return tables[name]()


def default_table(data: Document) -> str:
    """Returns a row for each data set under the default setting."""
    rows = []
    for name, one in data.items():
        row = setting(one, *DEFAULT)
        rows.append((TITLES[name], percent(row["hit_rate"]), percent(row["error_per_hit"]), percent(row["recall"])))
    return table(("data", "hits %", "wrong % of hits", "recall %"), rows)


def setting(one: Document, policy: str, threshold: float, part: str = "rows", *, verifier: bool = False) -> Document:
    """Returns the row of a setting."""
    wanted = (policy, threshold, verifier)
    [row] = [row for row in one[part] if (row["policy"], row["threshold"], row["verifier"]) == wanted]
    return dict(row)


def threshold_table(one: Document) -> str:
    """Returns hits and errors without and with guards, by threshold."""
    rows = []
    for threshold in SHOWN:
        found = [setting(one, policy, threshold) for policy in ("fixed", "guarded")]
        cells = [percent(row[rate]) for row in found for rate in ("hit_rate", "error_per_hit")]
        rows.append((f"{threshold:.2f}", *cells))
    return table(("threshold", "`fixed`: hits %", "wrong % of hits", "`guarded`: hits %", "wrong % of hits"), rows)


def verified_table(data: Document) -> str:
    """Returns `verified` compared with the default, over the whole stream and over its second half."""
    rows = []
    for name, one in data.items():
        if name == FOW:
            continue
        verifiers = sorted({row["verifier"] for row in one["rows"] if row["policy"] == "verified"})
        learned = [("verified", target, verifier) for verifier in verifiers for target in (0.01, TARGET, 0.05)]
        for policy, value, verifier in ((*DEFAULT, False), *learned):
            parts = [setting(one, policy, value, part, verifier=verifier) for part in ("rows", "second_half")]
            cells = [percent(row[rate]) for row in parts for rate in ("hit_rate", "error_per_hit")]
            rows.append((name, _shown_as(policy, value, verifier=verifier), *cells))
    head = ("data", "policy", "hits %", "wrong % of hits", "second half: hits %", "wrong % of hits")
    return table(head, rows)


def _shown_as(policy: str, value: float, *, verifier: bool) -> str:
    if policy == "guarded":
        return f"`guarded` {value:.2f}"
    return f"`verified` {100 * value:g} %{', verifier' if verifier else ''}"


def orders_table(orders: Document) -> str:
    """Returns how well the target holds over other orders of the questions."""
    rows = []
    for name, found in orders.items():
        for labels in labels_of(found):
            runs = [run for run in found if run["labels"] == labels]
            if not runs:
                continue
            hits = [100 * run["hits"] / run["questions"] for run in runs]
            wrong = [100 * run["wrong"] / max(run["hits"], 1) for run in runs]
            over = sum(one > 100 * TARGET for one in wrong)
            cells = [f"{min(one):.1f} to {max(one):.1f}" for one in (hits, wrong)]
            rows.append((name, labels, *cells, f"{over} of {len(runs)}"))
    return table(("data", "labels", "hits %", "wrong % of hits", f"orders over {100 * TARGET:g} %"), rows)


def labels_of(runs: Sequence[Document]) -> list[str]:
    """Returns the kinds of labels that were measured."""
    return list(dict.fromkeys(run["labels"] for run in runs))


def aims_table(found: Document) -> str:
    """Returns the rates aimed at and the rates reached."""
    pairs = found["data"][FOW]
    figure = "pairs that should hit / traps served, %"
    rows = [
        (f"fow-cache, the default: {figure}", "60 / 1", served(pairs, *DEFAULT, verifier=False)),
        (f"fow-cache, `verified` 2 %, verifier: {figure}", "60 / 1", served(pairs, "verified", TARGET, verifier=True)),
    ]
    for name, aim in AIMS.items():
        for labels in labels_of(found["orders"][name]):
            runs = [run for run in found["orders"][name] if run["labels"] == labels]
            if not runs:
                continue
            hits, wrong, asked = (sum(run[part] for run in runs) for part in ("hits", "wrong", "questions"))
            reached = f"{100 * hits / asked:.1f} / {100 * wrong / max(hits, 1):.1f}"
            rows.append((f"{name}, `verified` 2 %, labels {labels}: hits / wrong of hits, %", aim, reached))
    return table(("figure", "aim", "reached"), rows)


def served(one: Document, policy: str, value: float, *, verifier: bool) -> str:
    """Returns the shares of right and wrong pairs that are served."""
    row = setting(one, policy, value, verifier=verifier)
    return f"{100 * row['recall']['value']:.1f} / {200 * row['wrong'] / row['requests']:.1f}"


def pairs_table(one: Document) -> str:
    """Returns the share of pairs that are served rightly and wrongly, under the default and with a verifier."""
    with_verifier = sorted({row["threshold"] for row in one["rows"] if row["verifier"]})
    chosen = [(*DEFAULT, False), ("guarded", 0.84, False), *(("verified", one, True) for one in with_verifier)]
    rows = []
    for policy, value, verifier in chosen:
        row = setting(one, policy, value, verifier=verifier)
        traps = f"{100 * row['wrong'] / (row['requests'] / 2):.1f}"
        cells = (percent(row["recall"]), traps, percent(row["error_per_hit"]))
        rows.append((_shown_as(policy, value, verifier=verifier), *cells))
    return table(("policy", "should hit and do, %", "traps served, %", "wrong % of hits"), rows)


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
