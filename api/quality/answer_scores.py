"""Scores how two answers compare: the probability that they say the same. Pure.

- The first score is of the statements that agree least.
- The second one also sees how the answers compare as a whole: those that say the same often do so in other words.
- The last one decides. It joins both, the conflicts, and the score of a model if there is one.

scripts/measure_comparator.py fits the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from api.quality.answer_agreement import Agreement, StatementPair
from api.quality.answer_words import AXES

WEIGHTS: Final[dict[str, float]] = {
    "bias": -1.90,
    "likeness": 5.43,
    "core": 2.39,
    "overlap": -3.40,
    "replaced": -0.62,
    "replaced like": -0.18,
    "slot": -2.31,
    "displaced": -0.76,
    "surplus": -0.53,
    "turned": -2.94,
    "added": 0.78,
    "shared": -0.76,
    "shared any": 2.17,
    "lead": 1.02,
    "missing": -1.56,
    "missing any": -0.31,
    "uncovered": -0.36,
    "citations": 0.67,
    "fact": -4.75,
    "fact?": -2.27,
    "negation": -1.07,
    "negation?": -0.01,
    "opposites": -4.25,
    "opposites?": -1.82,
    "condition": 0.00,
    "condition?": -1.45,
    "axis": -1.01,
    "axis?": -3.63,
}
"""Of the features in the logit of the score, fitted on the half `tune` of tests/quality/answer_pairs.jsonl."""
CONFIRMING: Final[dict[str, float]] = {
    "bias": -2.63,
    "likeness": -2.06,
    "core": 1.25,
    "overlap": -2.49,
    "replaced": 0.41,
    "replaced like": 0.24,
    "slot": -0.33,
    "displaced": -0.31,
    "surplus": 0.58,
    "turned": -0.22,
    "added": 0.53,
    "shared": -0.03,
    "shared any": 0.64,
    "lead": 0.30,
    "missing": -0.26,
    "missing any": -0.56,
    "uncovered": 0.13,
    "citations": 0.09,
    "fact": -2.01,
    "fact?": -0.42,
    "negation": -0.43,
    "negation?": -0.15,
    "opposites": -0.71,
    "opposites?": -0.57,
    "condition": 0.00,
    "condition?": 0.00,
    "axis": -0.27,
    "axis?": -0.70,
    "whole likeness": 1.96,
    "covered": 1.41,
    "most covered": 0.38,
    "extra": -0.17,
    "unpaired": 0.31,
    "length": 0.63,
    "ratio of lengths": -0.62,
    "other number of statements": 0.61,
    "no pair": -1.60,
}
"""Of the features in the logit of a second score, for longer answers: those that say the same often do so in quite
other words. Fitted by scripts/measure_comparator.py."""
NO_PAIR: Final = -3.0
"""The logit of the first score if no statements speak of the same."""
EQUAL_FRAME: Final = 0.7
"""Share of common words from which every difference is one of fact."""
FEATURES_OF_CONFLICTS: Final = tuple(
    f"{kind}{doubt}" for kind in ("fact", "negation", "opposites", "condition", "axis") for doubt in ("", "?")
)


def features(pair: StatementPair, agreement: Agreement) -> dict[str, float]:
    """Returns what the score of two statements is made of."""
    found = dict.fromkeys(FEATURES_OF_CONFLICTS, 0.0)
    for conflict in (*pair.conflicts, *agreement.conflicts):
        name = "axis" if conflict.kind in AXES else conflict.kind if conflict.kind in found else "fact"
        if conflict.certain and pair.overlap >= EQUAL_FRAME:
            name = "fact"
        found[name if conflict.certain else f"{name}?"] += 1
    return {
        "bias": 1.0,
        "likeness": pair.likeness,
        "core": pair.core,
        "overlap": pair.overlap,
        "replaced": pair.replaced,
        "replaced like": pair.replaced * (1 - pair.likeness),
        "slot": pair.replaced if pair.slot else 0.0,
        "displaced": float(pair.displaced),
        "surplus": min(pair.surplus, 4) / 4,
        "turned": float(pair.turned),
        "added": float(pair.added),
        "shared": min(pair.shared, 2),
        "shared any": float(pair.shared > 0),
        "lead": agreement.lead,
        "missing": min(len(agreement.missing), 3),
        "missing any": float(bool(agreement.missing)),
        "uncovered": 1 - agreement.covered,
        "citations": 0.0 if agreement.citations is None else agreement.citations - 0.5,
        **found,
    }


def features_of_answers(agreement: Agreement) -> dict[str, float]:
    """Returns what only the second score is made of: how the answers compare as a whole."""
    short, long = sorted(agreement.words)
    return {
        "whole likeness": agreement.likeness,
        "covered": agreement.covered,
        "most covered": agreement.most_covered,
        "extra": min(agreement.extra, 4),
        "unpaired": min(agreement.unpaired, 3),
        "length": math.log(1 + long),
        "ratio of lengths": math.log((1 + long) / (1 + short)),
        "other number of statements": float(agreement.statements[0] != agreement.statements[1]),
        "no pair": float(not agreement.pairs),
    }


def confirming_rows(agreement: Agreement) -> list[dict[str, float]]:
    """Returns the features of the second score, one row for each pair of statements; at least one."""
    of_answers = features_of_answers(agreement)
    rows = [features(pair, agreement) | of_answers for pair in agreement.pairs]
    return rows or [{"bias": 1.0} | of_answers]


def is_open(agreement: Agreement) -> bool:
    """Returns whether something speaks against the same answer: a doubt, a fact that is missing, or too little in
    common.
    """
    pairs = agreement.pairs
    thin = all(pair.likeness < 0.5 and not pair.shared for pair in pairs)
    doubts = any(pair.conflicts or pair.displaced or pair.turned for pair in pairs)
    partial = agreement.unpaired > 0 or (agreement.extra > 1 and agreement.covered < 0.6)
    return bool(thin or doubts or partial or agreement.conflicts or agreement.missing)


def first_score(agreement: Agreement) -> float:
    """Returns the score of the statements that agree least."""
    return probability(min((_total(WEIGHTS, features(pair, agreement)) for pair in agreement.pairs), default=NO_PAIR))


def second_score(agreement: Agreement) -> float:
    """Returns the score that also sees the answers as a whole."""
    return probability(min(_total(CONFIRMING, row) for row in confirming_rows(agreement)))


def probability(logit: float) -> float:
    """Returns the probability of a logit."""
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, logit))))


def _total(weights: Mapping[str, float], row: Mapping[str, float]) -> float:
    return sum(weights.get(name, 0.0) * value for name, value in row.items())


# -- the last score ---------------------------------------------------------------------------------------------------

LAST: Final[dict[str, float]] = {
    "bias": 0.46,
    "first": 0.08,
    "second": 0.26,
    "second, mean": 0.22,
    "open": 0.01,
    "ratio of lengths": 2.13,
    "unpaired": -0.18,
    "shared": 0.11,
    "figures": -0.89,
    "negation": -0.42,
    "opposites": -1.09,
    "order": -3.42,
    "steps": -2.34,
    "figures?": -0.59,
    "names?": -1.08,
    "opposites?": -2.89,
    "model": 0.84,
    "bias, short": -0.47,
    "first, short": 0.01,
    "second, short": -0.02,
    "open, short": -0.46,
    "shared, short": 0.62,
    "model, short": -0.09,
}
"""Of the voices in the logit of the last score. Fitted by scripts/measure_comparator.py."""
CERTAIN: Final = ("figures", "negation", "opposites", "order", "steps")
SHORT: Final = 10
"""Words of the longer of two short answers."""
BRIEF: Final = ("bias", "first", "second", "open", "shared", "model")
"""Voices that count otherwise for short answers."""
DOUBTS: Final = ("figures", "names", "opposites")
"""The kinds of conflicts that tell different answers from equal ones here."""


def voices(agreement: Agreement, logit: float) -> dict[str, float]:
    """Returns what the last score is made of. `logit`: the model's."""
    rows = confirming_rows(agreement)
    first = [_total(WEIGHTS, row) for row in rows] if agreement.pairs else [NO_PAIR]
    second = [_total(CONFIRMING, row) for row in rows]
    conflicts = [*agreement.conflicts, *(conflict for pair in agreement.pairs for conflict in pair.conflicts)]
    kinds = {(conflict.kind, conflict.certain) for conflict in conflicts}
    short, long = sorted(agreement.words)
    found = {
        "bias": 1.0,
        "first": _limited(min(first)),
        "second": _limited(min(second)),
        "second, mean": _limited(sum(second) / len(second)),
        "open": float(is_open(agreement)),
        "ratio of lengths": min(math.log((1 + long) / (1 + short)), 1.0),
        "unpaired": min(agreement.unpaired, 3),
        "shared": min(sum(pair.shared for pair in agreement.pairs), 3),
    }
    found |= {kind: float((kind, True) in kinds) for kind in CERTAIN}
    found |= {f"{kind}?": float((kind, False) in kinds) for kind in DOUBTS}
    found |= {"model": _limited(logit)}
    brief = float(long <= SHORT)
    return found | {f"{name}, short": brief * found[name] for name in BRIEF}


def last_score(agreement: Agreement, logit: float) -> float:
    """Returns the score that joins everything. `logit`: the model's."""
    return probability(_total(LAST, voices(agreement, logit)))


def _limited(logit: float) -> float:
    return max(-8.0, min(8.0, logit))
