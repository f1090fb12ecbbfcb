"""Reads the files of `ragherd quality`, and measures them with the product's own embedder, guards and policies.

The columns of a file decide whether it holds labeled pairs, questions with intents, or a log. No Redis and no Ollama:
the cache is a list, and the nearest neighbors are exact. Entries do not expire and are not evicted.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
import orjson

from api.embedders.minilm import MiniLM, model_files
from api.guards.agreement import Features, disagreement, read
from api.languages.identify import ONLY_ENGLISH, Languages
from api.ports.inference import CurrentIdentity
from api.ports.question import SEMANTIC_LIMIT
from api.quality.measurement import (
    Measurement,
    Outcomes,
    Rate,
    Recommendation,
    Row,
    figures,
    outcomes_of_pairs,
    outcomes_of_stream,
    p_chr_auc,
    recommend,
)
from api.quality.replay import (
    AnswersAgree,
    Fixed,
    Flags,
    Floats,
    Guarded,
    Near,
    Offer,
    Policy,
    Score,
    Stream,
    Truth,
    Verified,
    best_scores,
    replay,
)
from api.query.cache_key import normalise
from api.query.candidates import ComparedQuestion, incomparable
from api.settings import Settings
from api.values import CachedAnswer, EmbedderIdentity, Embedding, Usage
from training.pairs import Pair
from training.scoring import Scorer

T = TypeVar("T")
FOW: Final = "fow"
"""The name of the pairs of the package fow-cache."""
JSON_SUFFIXES: Final = (".jsonl", ".ndjson", ".json")
COLUMNS: Final = {
    "cached": ("a", "cached", "question1"),
    "asked": ("b", "asked", "question2"),
    "same": ("same", "same_answer", "is_duplicate"),
    "kind": ("kind", "category"),
    "question": ("question", "text", "query", "prompt"),
    "intent": ("intent", "category", "label"),
    "answer": ("answer", "response"),
}
"""The names of each column, in order of preference."""
FLAGS: Final = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "same"), True),
    **dict.fromkeys(("0", "0.0", "false", "no", "different"), False),
}

THRESHOLDS: Final = (0.80, 0.84, 0.86, 0.88, 0.90, 0.92, 0.94, 0.96, 0.98)
TARGETS: Final = (0.005, 0.01, 0.02, 0.05)
"""Error rates that `verified` aims at."""
START: Final = 0.92
"""The cosine from which `verified` serves until it has learned."""
LOWEST: Final = 0.6
"""Candidates below this cosine count as none."""
TEXTS: Final = 512
"""Texts in one call to the embedder."""

OnStep = Callable[[str, int, int], None]
"""Called with the name of a step, what is done and how much there is."""
Kind = Literal["pairs", "intents", "log"]
Record = Mapping[str, Any]


class Unreadable(Exception):
    """The file cannot be used. The message is one line that names the file and the line."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The content of a file. `asked`: the questions.

    Pairs: `cached` has the question in the cache of each asked one, `same` whether one answer serves both, and `kinds`
    the kind of pair. Intents: `intents` has that of each question. Log: `answers` has the answers, empty if there are
    none.
    """

    name: str
    kind: Kind
    asked: Sequence[str]
    cached: Sequence[str] = ()
    same: Sequence[bool] = ()
    kinds: Sequence[str] = ()
    intents: Sequence[str] = ()
    answers: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.asked)

    def sample(self, limit: int | None, seed: int, *, shuffled: bool) -> Samples:
        """Returns up to `limit` of the samples: the first ones, or a random choice in random order."""
        places = list(range(len(self)))
        if shuffled:
            random.Random(seed).shuffle(places)  # noqa: S311 - not a secret
        places = places[:limit]

        def chosen(column: Sequence[T]) -> Sequence[T]:
            return [column[place] for place in places] if column else ()

        return replace(
            self,
            asked=chosen(self.asked),
            cached=chosen(self.cached),
            same=chosen(self.same),
            kinds=chosen(self.kinds),
            intents=chosen(self.intents),
            answers=chosen(self.answers),
        )


def read_samples(file: str) -> Samples:
    """Reads a file, or the pairs of fow-cache. Raises `Unreadable`."""
    if file == FOW:
        return _as_pairs(FOW, ((f"{FOW}:{number}", record) for number, record in enumerate(_fow(), 1)))
    path = Path(file)
    try:
        records = _json_lines(path) if path.suffix in JSON_SUFFIXES else _csv(path)
        first = next(records, None)
        if first is None:
            raise Unreadable(f"{file}: has no questions")
        return _as_samples(path.name, first, records)
    except OSError as error:
        raise Unreadable(f"{file}: {error.strerror or error}") from None


def _as_samples(name: str, first: tuple[str, Record], rest: Iterator[tuple[str, Record]]) -> Samples:
    records = chain([first], rest)
    where, record = first
    if all(_column(record, one) for one in ("cached", "asked", "same")):
        return _as_pairs(name, records)
    if not _column(record, "question"):
        found = ", ".join(record) or "nothing"
        raise Unreadable(f"{where}: needs the columns a, b, same, or question; found {found}")
    if _column(record, "intent"):
        return _as_intents(name, records)
    return _as_log(name, records)


def _fow() -> list[Record]:
    try:
        questions: list[Record] = import_module("fow_cache.data").load_questions()
    except ImportError:
        raise Unreadable("fow needs the package fow-cache: pip install fow-cache") from None
    return questions


# -- Formats of files --------------------------------------------------------------------------------------------------


def _csv(path: Path) -> Iterator[tuple[str, Record]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise Unreadable(f"{where}: has a different number of columns than the first line")
                yield where, row
        except csv.Error as error:
            raise Unreadable(f"{path}:{reader.reader.line_num}: is not CSV: {error}") from None
        except UnicodeDecodeError:
            raise Unreadable(f"{path}:{_first_line_not_utf8(path)}: is not UTF-8") from None


def _first_line_not_utf8(path: Path) -> int:
    """Decoding runs ahead of the reader, so its position says nothing."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _json_lines(path: Path) -> Iterator[tuple[str, Record]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise Unreadable(f"{path}:{number}: is not JSON: {error}") from None
            if not isinstance(record, dict):
                raise Unreadable(f"{path}:{number}: must be a JSON object")
            yield f"{path}:{number}", record


# -- Kinds of files ----------------------------------------------------------------------------------------------------


def _as_pairs(name: str, records: Iterable[tuple[str, Record]]) -> Samples:
    cached, asked, same, kinds = [], [], [], []
    for where, record in records:
        cached.append(_text(where, record, "cached"))
        asked.append(_text(where, record, "asked"))
        same.append(_flag(where, record))
        kinds.append(str(record[column]) if (column := _column(record, "kind")) else "")
    return Samples(name, "pairs", asked, cached, same, kinds)


def _as_intents(name: str, records: Iterable[tuple[str, Record]]) -> Samples:
    read = [(_text(where, one, "question"), _text(where, one, "intent")) for where, one in records]
    return Samples(name, "intents", [one for one, _ in read], intents=[intent for _, intent in read])


def _as_log(name: str, records: Iterable[tuple[str, Record]]) -> Samples:
    questions, answers = [], []
    for where, record in records:
        questions.append(_text(where, record, "question"))
        answers.append(str(record[column] or "").strip() if (column := _column(record, "answer")) else "")
    return Samples(name, "log", questions, answers=answers if any(answers) else ())


def _column(record: Record, meaning: str) -> str | None:
    return next((name for name in COLUMNS[meaning] if name in record), None)


def _text(where: str, record: Record, meaning: str) -> str:
    column = _column(record, meaning)
    value = record[column] if column else None
    if meaning == "intent" and isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise Unreadable(f"{where}: {column or COLUMNS[meaning][0]} must be non-empty text")
    return value


def _flag(where: str, record: Record) -> bool:
    column = _column(record, "same")
    value = record[column] if column else None
    found = FLAGS.get(str(value).strip().lower())
    if found is None:
        raise Unreadable(f"{where}: {column or 'same'} must be 1 or 0, true or false; found {value!r}")
    return found


# -- Policies ----------------------------------------------------------------------------------------------------------

POLICIES: Final = ("fixed", "guarded", "verified")


def policies_of(
    names: Sequence[str] | None, thresholds: Sequence[float] | None, target: float, *, verifier: bool = False
) -> list[Policy]:
    """Returns the policies to measure. `verifier`: also with it. Raises `ValueError` for an unknown name."""
    for name in names or ():
        if name not in POLICIES:
            raise ValueError(f"--policy {name}: must be {', '.join(POLICIES)}")
    cosines = sorted(set(thresholds)) if thresholds else THRESHOLDS
    found: list[Policy] = [
        kind(cosine) for kind in (Fixed, Guarded) if kind.name in (names or POLICIES) for cosine in cosines
    ]
    if "verified" in (names or POLICIES):
        kinds = (False, True) if verifier else (False,)
        targets = sorted({*TARGETS, target})
        found += [Verified(one, START, seed=1, verifier=kind) for kind in kinds for one in targets]
    return found


# -- The product's view of questions -----------------------------------------------------------------------------------


class Questions:
    """Texts as the semantic cache compares them: vectors, unread parts, guards."""

    def __init__(self, texts: Sequence[str], product: Product, on_step: OnStep) -> None:
        self._verifier = product.verifier
        self._read: dict[int, Features] = {}
        vectors: list[np.ndarray[Any, np.dtype[np.float32]]] = []
        self.compared: list[ComparedQuestion] = []
        for start in range(0, len(texts), TEXTS):
            part = texts[start : start + TEXTS]
            for text, embedding in zip(part, product.model.embed(part), strict=True):
                vectors.append(np.frombuffer(embedding.vector, "<f4"))
                self.compared.append(ComparedQuestion(text, embedding.unread, product.languages))
            on_step("embedding", len(vectors), len(texts))
        self.vectors: Floats = np.stack(vectors)

    def comparable(self, place: int) -> bool:
        """Returns whether the flow looks this question up by its vector."""
        compared = self.compared[place]
        return not compared.language and len(compared.question.encode("utf-8", "replace")) <= SEMANTIC_LIMIT

    def objection(self, asked: int, near: Near) -> str:
        """Returns the guard that rejects a cached question for the asked one; empty if all accept it."""
        found = incomparable(self.compared[asked], self._answer(near.place))
        found = found or disagreement(self._features(asked), self._features(near.place))
        return found.guard if found is not None else ""

    def _features(self, place: int) -> Features:
        """Reads each question once, because that takes longer than all comparisons."""
        if place not in self._read:
            self._read[place] = read(self.compared[place].question)
        return self._read[place]

    def logit(self, asked: int, cached: int) -> float:
        """Returns the verifier's logit. Needs one."""
        assert self._verifier is not None
        pair = Pair(self.compared[cached].question, self.compared[asked].question, True)
        return float(self._verifier.logits([pair])[0])

    @property
    def score(self) -> Score | None:
        """The verifier's logits, if there is one."""
        return self.logit if self._verifier is not None else None

    def _answer(self, place: int) -> CachedAnswer:
        cached = self.compared[place]
        return CachedAnswer(str(place), cached.question, "", "", (), Usage(), 0, 1, unread=cached.unread)


@dataclass(frozen=True, slots=True)
class Product:
    """What the settings make of the cache: its embedder, the languages, and the setting in use."""

    model: MiniLM
    languages: Languages
    verifier: Scorer | None = None

    @property
    def embedder(self) -> str:
        """The embedder's name and weights."""
        return f"{self.model.name} {self.model.digest}"


def open_product(settings: Settings, verifier: Path | None = None) -> Product:
    """Loads the embedder, and a verifier from its folder. Raises `SettingsError` and `InvalidModel`."""
    codes = settings.embedder.language_codes
    languages = ONLY_ENGLISH if codes is None else Languages(codes or None)
    model = MiniLM(model_files(settings.embedder.embed_model_path))
    return Product(model, languages, Scorer(verifier) if verifier is not None else None)


# -- Measuring ---------------------------------------------------------------------------------------------------------


def measure(
    samples: Samples, policies: Sequence[Policy], product: Product, seed: int, after: int, on_step: OnStep
) -> Measurement:
    """Measures all policies. `after`: leading questions of a stream that fill the cache and are not counted."""
    if samples.kind == "pairs":
        rows, areas = _measured_pairs(samples, policies, product, seed, on_step)
    else:
        rows, areas = _measured_stream(samples, policies, product, seed, after, on_step)
    return Measurement(samples.name, samples.kind, len(samples), seed, product.embedder, rows, areas)


def _measured_pairs(
    samples: Samples, policies: Sequence[Policy], product: Product, seed: int, on_step: OnStep
) -> tuple[list[Row], dict[str, Rate]]:
    count = len(samples)
    questions = Questions([*samples.cached, *samples.asked], product, on_step)
    offers = [_offer(questions, place, count) for place in range(count)]
    same = np.array(samples.same, bool)
    rows = []
    for policy in policies:
        learned = _learned_outcomes(policy, offers, same, seed) if isinstance(policy, Verified) else None
        outcomes = outcomes_of_pairs(policy, offers, same) if learned is None else learned
        rows.append(Row(policy, outcomes, figures(policy, outcomes, 0, seed), _by_kind(samples, outcomes)))
    areas = {}
    for curve in (Fixed(LOWEST), Guarded(LOWEST)):
        found = [curve.score(offer) if offer.near else None for offer in offers]
        scores = np.array([-np.inf if one is None else one[1] for one in found])
        if (area := p_chr_auc(scores, same.astype(np.int64), seed)) is not None:
            areas[curve.name] = area
    return rows, areas


def _learned_outcomes(policy: Verified, offers: Sequence[Offer], same: Flags, seed: int) -> Outcomes:
    """Returns the outcomes of each half of the pairs, under a policy that has learned from the other half."""
    hits = np.zeros(len(offers), bool)
    half = half_of(len(offers), seed)
    for learning in (half, ~half):
        learned = policy.fresh()
        for offer, is_same, is_learning in zip(offers, same, learning, strict=True):
            if is_learning:
                learned.study(offer, bool(is_same))
        learned.learn()
        served = [bool(offer.near) and learned.decide(offer) is not None for offer in offers]
        hits |= ~learning & np.array(served, bool)
    return Outcomes(hits, same.astype(np.int64), same, np.array([], np.int64))


def half_of(count: int, seed: int) -> Flags:
    """Returns which places belong to the first of two random halves."""
    half = np.zeros(count, bool)
    half[np.random.default_rng(seed).permutation(count)[: count // 2]] = True
    return half


def _offer(questions: Questions, place: int, count: int) -> Offer:
    asked = count + place
    similarity = float(questions.vectors[asked] @ questions.vectors[place])
    near = [Near(place, similarity)] if questions.comparable(asked) and similarity >= LOWEST else []
    return Offer(asked, near, questions.objection, questions.score)


def _by_kind(samples: Samples, outcomes: Outcomes) -> dict[str, tuple[int, int]]:
    kinds = np.array(samples.kinds)
    return {
        str(kind): (int(outcomes.hits[kinds == kind].sum()), int((kinds == kind).sum()))
        for kind in dict.fromkeys(samples.kinds)
        if kind
    }


def _measured_stream(
    samples: Samples, policies: Sequence[Policy], product: Product, seed: int, after: int, on_step: OnStep
) -> tuple[list[Row], dict[str, Rate]]:
    questions = Questions(samples.asked, product, on_step)
    comparable = [questions.comparable(place) for place in range(len(samples))]
    stream = Stream(questions.vectors, [normalise(text) for text in samples.asked], comparable)
    truth, could = _truth(samples, product)

    def progress(done: int, total: int) -> None:
        on_step("replaying", done, total)

    counted = np.arange(len(samples)) >= after
    rows = []
    for run in replay(stream, policies, questions.objection, truth, progress, questions.score):
        outcomes = outcomes_of_stream(run, truth, could).part(counted)
        exact = int(run.exact[counted].sum())
        rows.append(Row(run.policy, outcomes, figures(run.policy, outcomes, exact, seed), {}))
    areas = {}
    for curve in (Fixed(LOWEST), Guarded(LOWEST)) if samples.intents else ():
        scores, right = best_scores(stream, curve, questions.objection, truth)
        if (area := p_chr_auc(scores, right, seed)) is not None:
            areas[curve.name] = area
    return rows, areas


def _truth(samples: Samples, product: Product) -> tuple[Truth, Flags]:
    """Returns whether two questions share an answer, and which could have been answered from an earlier one."""
    if samples.answers:
        return AnswersAgree(samples.asked, samples.answers, OwnEmbedder(product.model)), np.array([], bool)
    if not samples.intents:
        return lambda asked, stored: None, np.array([], bool)
    _, first, intents = np.unique(np.array(samples.intents), return_index=True, return_inverse=True)
    is_repeated = np.ones(len(intents), bool)
    is_repeated[first] = False
    return lambda asked, stored: bool(intents[asked] == intents[stored]), is_repeated


class OwnEmbedder:
    """The embedder in this thread, for the comparator."""

    def __init__(self, model: MiniLM) -> None:
        self._model = model
        self.current = CurrentIdentity(EmbedderIdentity(model.name, model.dimension, model.digest))

    async def identity(self) -> EmbedderIdentity:
        assert self.current.value is not None
        return self.current.value

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        return self._model.embed(texts)


# -- Recommending ------------------------------------------------------------------------------------------------------


def recommended(found: Measurement, max_error_rate: float) -> Recommendation:
    """Returns the setting to use. Pairs are halved at random, streams in time."""
    count = len(found.rows[0].outcomes.hits)
    is_random = found.kind == "pairs"
    chosen_on = half_of(count, found.seed) if is_random else np.arange(count) < count // 2
    return recommend([(row.policy, row.outcomes) for row in found.rows], chosen_on, max_error_rate, found.seed)
