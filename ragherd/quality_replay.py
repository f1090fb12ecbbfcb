"""Measures the files of `ragherd quality` with the product's own embedder, guards and policies.

No Redis and no Ollama: the cache is a list, and the nearest neighbors are exact. Entries do not expire and are not
evicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from api.embedders.answer_model import AnswerScorer
from api.embedders.minilm import MiniLM, model_files
from api.embedders.onnx import identity_of
from api.embedders.verifier import prior_of
from api.guards.agreement import Features, disagreement, read
from api.languages.identify import ONLY_ENGLISH, Languages
from api.ports.answer_quality import Versions
from api.ports.inference import CurrentIdentity
from api.ports.question import SEMANTIC_LIMIT
from api.quality.calibration import Prior, read_prior
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
    Flags,
    Floats,
    Near,
    Offer,
    Policy,
    Score,
    Stream,
    Truth,
    best_scores,
    replay,
)
from api.quality.replayed_policies import Fixed, Guarded, Verified
from api.query.cache_key import normalise
from api.query.candidates import ComparedQuestion, incomparable
from api.settings import Settings
from api.values import CachedAnswer, EmbedderIdentity, Embedding, Usage
from ragherd.quality_samples import Samples
from training.model_folder import digest, installed
from training.pairs import Pair
from training.scoring import Scorer

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


# -- Policies ----------------------------------------------------------------------------------------------------------

POLICIES: Final = ("fixed", "guarded", "verified")


def policies_of(
    names: Sequence[str] | None,
    thresholds: Sequence[float] | None,
    target: float,
    *,
    verifier: bool = False,
    prior: Prior | None = None,
) -> list[Policy]:
    """Returns the policies to measure. `verifier`: measure with it, too. `prior`: its prior.

    Raises `ValueError` for an unknown name.
    """
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
        found += [Verified(one, START, seed=1, verifier=kind, prior=prior) for kind in kinds for one in targets]
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
    """The cache as the settings define it: its embedder, the languages, and the setting in use."""

    model: MiniLM
    languages: Languages
    verifier: Scorer | None = None
    prior: Prior | None = None

    @property
    def embedder(self) -> str:
        """The embedder's name and weights."""
        return f"{self.model.name} {self.model.digest}"


def open_product(settings: Settings, verifier: Path | None = None) -> Product:
    """Loads the embedder, and a verifier from its folder or `builtin`. Raises `SettingsError` and `InvalidModel`."""
    codes = settings.embedder.language_codes
    languages = ONLY_ENGLISH if codes is None else Languages(codes or None)
    model = MiniLM(model_files(settings.embedder.embed_model_path))
    if verifier is None:
        return Product(model, languages)
    text, verifier = prior_of(str(verifier)), installed(str(verifier))
    prior = read_prior(text) if text is not None else None
    versions = Versions(identity_of(model).fingerprint, digest(verifier))
    return Product(model, languages, Scorer(verifier), prior if prior is not None and prior.fits(versions) else None)


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
        if isinstance(policy, Verified) and not policy.knows:
            outcomes = _learned_outcomes(policy, offers, same, seed)
        else:
            outcomes = outcomes_of_pairs(policy, offers, same)
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
        embedder = OwnEmbedder(product.model)
        return AnswersAgree(samples.asked, samples.answers, embedder, AnswerScorer()), np.array([], bool)
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
