"""Labeled pairs of questions: their file, and their split by question."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from api.ports.answer_quality import LabelledPair, Verdict

MAX_CHARACTERS: Final = 2000
TRAIN, CALIBRATION, HELD_OUT = range(3)
HELD_OUT_SHARE: Final = 0.15
"""Of the clusters. Pairs that connect two clusters make the share of the pairs larger."""
TOO_LARGE: Final = 0.25


class InvalidPairs(ValueError):
    """The file of pairs cannot be used. The message names the line."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two questions, and whether one answer serves both."""

    first: str
    second: str
    same: bool
    source: str = ""


def read_pairs(path: Path) -> list[Pair]:
    """Reads JSON Lines: {"a", "b", "same": true or false, "scope"?}. Raises `InvalidPairs`."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPairs(f"cannot read {path}: {error}") from error
    pairs = [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise InvalidPairs(f"{path} has no pairs")
    return pairs


def from_kept(kept: Iterable[LabelledPair]) -> list[Pair]:
    """Returns the pairs that the service kept, without those that the comparator was unsure about.

    A pair that was judged more than once counts once, with its newest verdict. `kept` is newest first. Raises
    `InvalidPairs` if there are none.
    """
    found: dict[tuple[str, str, str], Pair] = {}
    for one in kept:
        if one.verdict is not Verdict.UNSURE and one.asked.strip() and one.cached.strip():
            pair = Pair(one.cached, one.asked, one.verdict is Verdict.SAME, one.scope)
            found.setdefault((one.scope, one.cached, one.asked), pair)
    if not found:
        raise InvalidPairs("Redis has no kept pairs: set SEMANTIC_CACHE_KEEP_PAIRS=true")
    return list(found.values())


def _parse(line: str, where: str) -> Pair:
    try:
        found: Any = json.loads(line)
    except ValueError as error:
        raise InvalidPairs(f"{where} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidPairs(f"{where} is not a JSON object")
    texts = [found.get(name) for name in ("a", "b")]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise InvalidPairs(f'{where}: "a" and "b" must be questions')
    if not isinstance(found.get("same"), bool):
        raise InvalidPairs(f'{where}: "same" must be true or false')
    first, second = (str(text)[:MAX_CHARACTERS] for text in texts)
    return Pair(first, second, found["same"], str(found.get("scope") or ""))


class Split(NamedTuple):
    """Pairs by use, and the cluster of each held-out pair."""

    train: list[Pair]
    calibration: list[Pair]
    held_out: list[Pair]
    held_out_clusters: list[int]


def split(pairs: Sequence[Pair]) -> Split:
    """Splits pairs by cluster: questions that have one answer are a cluster.

    A pair is held out if either of its questions is in a held-out cluster, so no question of a held-out cluster is
    trained on. A cluster's part follows from a hash, so it stays the same while pairs are added. A cluster of more than
    a quarter of all pairs is trained on.
    """
    cluster_of, names = _clusters(pairs)
    sizes = Counter(cluster_of[_key(pair.first)] for pair in pairs)
    parts = [TRAIN if sizes[number] > len(pairs) * TOO_LARGE else _part(name) for number, name in enumerate(names)]
    found = Split([], [], [], [])
    for pair in pairs:
        ends = [cluster_of[_key(text)] for text in (pair.first, pair.second)]
        part, cluster = max((parts[end], end) for end in ends)
        (found.train, found.calibration, found.held_out)[part].append(pair)
        if part == HELD_OUT:
            found.held_out_clusters.append(cluster)
    return found


def _clusters(pairs: Sequence[Pair]) -> tuple[dict[str, int], list[str]]:
    """Returns the cluster of each question, and the least question of each cluster, which names it."""
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        parent.setdefault(text, text)
        while parent[text] != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for pair in pairs:
        first, second = root(_key(pair.first)), root(_key(pair.second))
        if pair.same:
            parent[max(first, second)] = min(first, second)
    numbers: dict[str, int] = {}
    cluster_of = {text: numbers.setdefault(root(text), len(numbers)) for text in sorted(parent)}
    return cluster_of, list(numbers)


def _part(name: str) -> int:
    chance = int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:4]) / 2**32
    return HELD_OUT if chance < HELD_OUT_SHARE else CALIBRATION if chance < 2 * HELD_OUT_SHARE else TRAIN


def _key(text: str) -> str:
    """Makes questions equal that differ in case, blanks and the mark at the end only."""
    return " ".join(text.casefold().split()).rstrip(" ?.!")
