"""Learns from labels how probable it is that a candidate is right, and up to which risk to serve it. Pure.

A logistic regression on the evidence gives the probability. Labels are chosen by the evidence (all misses, a sample of
hits), so a fit given the evidence is not biased by the choice. The fit allows for the comparator's known errors. It is
monotone: more similarity never lowers the probability, and more other answers never raise it.

All scopes of one embedder, verifier and comparator share a prior. A scope with labels moves away from it as far as its
labels say. Old labels count less. The shipped verifier comes with labeled pairs of other questions. They count
until the deployment has enough labels.

The level is the highest risk that is served. It is chosen so that the expected share of wrong answers among those
served stays under the target, by the model and by the labels themselves, weighted by how certain each is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from api.ports.answer_quality import Confusion, Evidence, Label, Verdict, Versions
from api.quality.evidence import AGREED, NearEntry, evidence_of

Array = NDArray[np.float64]

FEATURES: Final = ("one", "similarity", "margin", "same", "others", "verifier")
SIGNS: Final = np.array([0, 1, 1, 1, -1, 1])
"""The sign that each coefficient must have; 0 if any."""
CENTER: Final = 0.8
"""A usual cosine. It keeps the coefficients independent of each other."""
LEAST_LABELS: Final = 100
"""Labels of all scopes together, from which a model is fitted."""
LEAST_WRONG: Final = 5
"""Wrong ones among them."""
LEAST_OF_SCOPE: Final = 20
"""Labels from which a scope gets a separate model."""
HALF_LIFE_MS: Final = 3 * 24 * 3600 * 1000
HALF_LIFE_LABELS: Final = 5_000
"""After this time, and after this many newer labels, a label counts half."""
RIDGE: Final = 1.0
FREE: Final = 0.01
"""The ridge of the constant, which is almost free."""
SPREAD: Final = 0.3
"""The standard deviation of a coefficient between scopes."""
AGAIN_SAME: Final = 0.5
AGAIN_DIFFERENT: Final = 0.2
"""How likely an error repeats with a second answer of the group: being called the same, or different, by mistake.

Errors repeat: on the labeled pairs of answers, an error of one kind or the other followed an error in 43 and 33 % of
the cases. The first constant assumes a little more than that, the second less. Both err on the safe side.
"""
BOUND: Final = 0.5
"""Standard errors of the log-odds that the bound of a candidate's risk lies above the estimate."""
FORMER_BOUND: Final = 1.0
"""That of models that do not name theirs."""
MODEL_ERROR: Final = 0.4
"""The relative standard error of the model's mean risk. It weighs the model against the labels."""
CAUTION: Final = 1.3
"""Standard errors of the mean risk that the target must exceed it by."""
MOST_RISK: Final = 5.0
"""No candidate is served whose risk is this many times the target, however good the others are."""
PRIOR_HALF: Final = 200.0
"""Labels after which the prior of a verifier counts half."""
PRIOR_WRONG: Final = 0.17
"""The weight of the prior's wrong pairs. Half of its pairs are traps, more than in traffic: in banking77 this share of
the nearest candidates that no guard rejects is wrong (3,000 questions; 10 % in clinc150)."""
POOL_WEIGHT: Final = 200.0
"""Labels that all scopes count for when the level of one scope is chosen."""
LEAST_CLARITY: Final = 0.05
FEEDBACK_SHARE: Final = 0.2
"""The largest share of a scope's labels that feedback counts for."""
FEEDBACK_LEAST: Final = 5.0
TENANT_LEAST: Final = 500.0
"""Labels of one tenant that always count. More count only as far as all other tenants have as many."""
NOTHING: Final = -1.0
"""The level at which nothing is served."""


def features_of(evidence: Evidence) -> tuple[float, ...]:
    """Returns the values of `FEATURES`."""
    return (
        1.0,
        5 * (evidence.similarity - CENTER),
        5 * (evidence.similarity - evidence.other),
        math.log1p(evidence.same),
        math.log1p(evidence.others),
        evidence.verifier / 4 if evidence.verifier is not None else 0.0,
    )


@dataclass(frozen=True, slots=True)
class Model:
    """The probability that a candidate is right: the logistic function of the coefficients times the features.

    `root` times its transpose is the covariance of the coefficients. `level`: the highest risk that is served, or
    `NOTHING`. `labels`: how many it was fitted to. `bound`: that of the risks from which the level was chosen.
    """

    coefficients: tuple[float, ...]
    root: tuple[tuple[float, ...], ...]
    level: float = NOTHING
    labels: int = 0
    bound: float = BOUND

    def risk(self, evidence: Evidence) -> float:
        """Returns the upper bound of the probability that the candidate is wrong."""
        features = features_of(evidence)
        odds = _dot(self.coefficients, features)
        error = math.sqrt(math.fsum(_dot(column, features) ** 2 for column in self.root))
        return 1 / (1 + math.exp(max(-30.0, min(30.0, odds - self.bound * error))))

    def estimate(self, evidence: Evidence) -> float:
        """Returns the probability that the candidate is wrong."""
        return 1 / (1 + math.exp(max(-30.0, min(30.0, _dot(self.coefficients, features_of(evidence))))))

    def as_json(self) -> dict[str, Any]:
        """Returns what `read_model` reads."""
        return {
            "features": list(FEATURES),
            "coefficients": [round(one, 6) for one in self.coefficients],
            "root": [[round(one, 6) for one in column] for column in self.root],
            "level": self.level,
            "labels": self.labels,
            "bound": self.bound,
        }


def read_model(said: Mapping[str, Any]) -> Model | None:
    """Reads a model. Returns None for one with other features, which another release has written.

    A model of a release that wrote no bound has `FORMER_BOUND`.
    """
    if tuple(said["features"]) != FEATURES:
        return None
    root = tuple(tuple(map(float, column)) for column in said["root"])
    bound = float(said.get("bound", FORMER_BOUND))
    return Model(tuple(map(float, said["coefficients"])), root, float(said["level"]), int(said["labels"]), bound)


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(map(float.__mul__, left, right))


@dataclass(frozen=True, slots=True)
class Observations:
    """Labels as arrays. `wrong`: 0 or 1. `weight`: falls with age. `stands_for`: decisions that a label stands for.

    `votes`: the majority of the verdicts behind a label.
    """

    features: Array
    wrong: Array
    weight: Array
    stands_for: Array
    votes: Array

    def __len__(self) -> int:
        return len(self.wrong)

    def scaled(self, weight: float) -> Observations:
        """Returns the same observations with another sum of weights, if theirs is larger."""
        factor = min(1.0, weight / max(self.weight.sum(), 1e-9))
        return Observations(self.features, self.wrong, self.weight * factor, self.stands_for, self.votes)

    def and_more(self, other: Observations) -> Observations:
        """Returns both."""
        return Observations(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.wrong, other.wrong]),
            np.concatenate([self.weight, other.weight]),
            np.concatenate([self.stands_for, other.stands_for]),
            np.concatenate([self.votes, other.votes]),
        )


def observations(
    labels: Sequence[Label], now_ms: int, tenants: Sequence[str] = (), *, feedback: bool = False
) -> Observations:
    """Returns labels as arrays. Labels are given oldest first.

    Labels without a verdict are left out, and those that a guard objects to: they are never served.

    `tenants`: the tenant of each label; one tenant's labels then weigh no more than all others'. `feedback`: take bad
    feedback too, with a bounded weight. Good feedback never counts, so no user can loosen the policy.
    """
    owners = tenants or [""] * len(labels)
    newest = list(zip(labels, owners, strict=True))[::-1]
    kept = [(rank, one, of) for rank, (one, of) in enumerate(newest) if _counts(one, feedback=feedback)]
    table = np.array([features_of(one.evidence) for _, one, _ in kept], dtype=np.float64)
    ages = np.array([max(0, now_ms - one.at_ms) / HALF_LIFE_MS + rank / HALF_LIFE_LABELS for rank, one, _ in kept])
    weight = np.exp2(-ages)
    from_feedback = np.array([one.source == "feedback" for _, one, _ in kept], dtype=bool)
    weight = _bounded(weight, from_feedback)
    if tenants:
        weight = _balanced(weight, np.array([of for _, _, of in kept], dtype=object))
    return Observations(
        table.reshape(len(kept), len(FEATURES)),
        np.array([float(one.balance < 0) for _, one, _ in kept]),
        weight,
        np.array([1 / max(one.probability, 1e-3) for _, one, _ in kept]),
        np.array([float(abs(one.balance)) for _, one, _ in kept]),
    )


def _counts(label: Label, *, feedback: bool) -> bool:
    if not label.balance or label.of_same_question or label.evidence.guard:
        return False
    return label.source != "feedback" or (feedback and label.verdict is Verdict.DIFFERENT)


def _bounded(weight: Array, from_feedback: NDArray[np.bool_]) -> Array:
    given = float(weight[from_feedback].sum())
    most = max(FEEDBACK_LEAST, FEEDBACK_SHARE * float(weight[~from_feedback].sum()))
    return np.where(from_feedback, weight * min(1.0, most / given), weight) if given else weight


def _balanced(weight: Array, tenants: NDArray[np.object_]) -> Array:
    """Scales the labels of a tenant that has more than all others together."""
    sums: dict[str, float] = {}
    for tenant, one in zip(tenants, weight, strict=True):
        sums[tenant] = sums.get(tenant, 0.0) + float(one)
    if len(sums) < 2:
        return weight
    largest = max(sums, key=lambda tenant: sums[tenant])
    most = max(TENANT_LEAST, math.fsum(sums.values()) - sums[largest])
    return np.where(tenants == largest, weight * min(1.0, most / sums[largest]), weight)


@dataclass(frozen=True, slots=True)
class Channel:
    """The comparator's errors: the probability to call a wrong answer `same`, and a right one `different`."""

    called_same: float = 0.0
    called_different: float = 0.0

    @property
    def clarity(self) -> float:
        """How much a verdict tells: 1 without errors, 0 if verdicts are random."""
        return max(1 - self.called_same - self.called_different, LEAST_CLARITY)

    def of(self, votes: Array) -> tuple[Array, Array]:
        """Returns `called_different` and `clarity` of labels with these votes. Two that agree are rarely wrong."""
        agree = votes >= AGREED
        different = self.called_different * np.where(agree, AGAIN_DIFFERENT, 1.0)
        same = self.called_same * np.where(agree, AGAIN_SAME, 1.0)
        return different, np.maximum(1 - same - different, LEAST_CLARITY)


def channel_of(confusion: Confusion) -> Channel:
    """Returns the comparator's error rates; none if they were not measured."""
    return Channel(
        confusion.called_same / confusion.different if confusion.different else 0.0,
        confusion.called_different / confusion.same if confusion.same else 0.0,
    )


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients with their information matrix (the inverse covariance); `data`: the labels' part of it."""

    coefficients: Array
    information: Array
    data: Array

    @property
    def covariance(self) -> Array:
        """The covariance of the coefficients."""
        return np.asarray(np.linalg.inv(self.information), dtype=np.float64)


def has_enough(observed: Observations) -> bool:
    """Returns whether a model can be fitted."""
    return len(observed) >= LEAST_LABELS and float(observed.wrong.sum()) >= LEAST_WRONG


def fit_pooled(observed: Observations, channel: Channel) -> Fit | None:
    """Fits all scopes together. Returns None if there are too few labels."""
    if not has_enough(observed):
        return None
    ridge = np.diag([FREE] + [RIDGE] * (len(FEATURES) - 1))
    return _fitted(observed, channel, np.zeros(len(FEATURES)), ridge)


def fit_scope(pooled: Fit, observed: Observations, channel: Channel) -> Fit | None:
    """Fits one scope, starting from all of them. Returns None if it has too few labels.

    Its labels are part of the pool, so their information is taken out of the prior: they count once.
    """
    if len(observed) < LEAST_OF_SCOPE:
        return None
    _, own = _slopes(observed, channel, pooled.coefficients)
    values, vectors = np.linalg.eigh(pooled.data - own)
    others = pooled.information - pooled.data + (vectors * np.maximum(values, 0.0)) @ vectors.T
    return _fitted(observed, channel, pooled.coefficients, _precision(np.linalg.inv(others)))


def for_new_scopes(pooled: Fit) -> Fit:
    """Returns the pooled fit with the uncertainty of a scope without labels."""
    return Fit(pooled.coefficients, _precision(pooled.covariance), pooled.data)


def _precision(covariance: Array) -> Array:
    """Returns the information of a prior: the covariance of the mean plus the spread between scopes."""
    return np.asarray(np.linalg.inv(covariance + np.diag([SPREAD**2] * len(FEATURES))), dtype=np.float64)


def _slopes(observed: Observations, channel: Channel, at: Array) -> tuple[Array, Array]:
    """Returns the gradient of the log-likelihood, and the expected information."""
    right = 1 / (1 + np.exp(-np.clip(observed.features @ at, -30, 30)))
    different, clarity = channel.of(observed.votes)
    same = 1 - different - clarity * (1 - right)
    slope = clarity * right * (1 - right)
    variance = same * (1 - same) + 1e-12
    gradient = observed.features.T @ (observed.weight * (1 - observed.wrong - same) * slope / variance)
    information = observed.features.T @ (observed.features * (observed.weight * slope**2 / variance)[:, None])
    return gradient, information


def _fitted(observed: Observations, channel: Channel, mean: Array, precision: Array) -> Fit:
    """Maximizes the posterior by Fisher scoring. A coefficient with a wrong sign becomes 0; the rest is refitted."""
    free = np.ones(len(FEATURES), dtype=bool)
    while True:
        at, data = _maximum(observed, channel, mean, precision, free)
        wrong = free & (SIGNS * at < 0)
        if not wrong.any():
            return Fit(at, data + precision, data)
        free &= ~wrong


def _maximum(
    observed: Observations, channel: Channel, mean: Array, precision: Array, free: NDArray[np.bool_]
) -> tuple[Array, Array]:
    at = np.where(free, mean, 0.0)
    data = np.zeros_like(precision)
    for _ in range(40):
        gradient, data = _slopes(observed, channel, at)
        pull = gradient - precision @ (at - mean)
        step = np.linalg.solve((data + precision)[np.ix_(free, free)], pull[free])
        longest = float(np.abs(step).max())
        at[free] += step * min(1.0, 2.0 / max(longest, 1e-12))
        if longest < 1e-6:
            break
    return at, data


def risks(fit: Fit, features: Array) -> Array:
    """Returns the upper bound of each one's probability to be wrong."""
    error = np.sqrt(np.einsum("ij,jk,ik->i", features, fit.covariance, features))
    return np.asarray(1 / (1 + np.exp(np.clip(features @ fit.coefficients - BOUND * error, -30, 30))))


def level_of(risk: Array, observed: Observations, channel: Channel, target: float) -> float:
    """Returns the highest risk that is served, so that the mean risk of what is served stays under the target.

    The mean comes from the model, whose error is relative, and from the labels up to that risk, whose error falls with
    their number.
    """
    order = np.argsort(risk)
    risk, wrong, weight = risk[order], observed.wrong[order], observed.weight[order]
    share = weight * observed.stands_for[order]
    by_model = np.cumsum(risk * share) / np.cumsum(share)
    number = np.cumsum(weight)
    seen = np.cumsum(wrong * weight) / number
    different, clarity = (np.cumsum(one * weight) / number for one in channel.of(observed.votes[order]))
    by_labels = (seen - different) / clarity
    smooth = (seen * number + 2 * (different + clarity * by_model)) / (number + 2)
    spread = np.maximum(smooth * (1 - smooth), 1e-9) / number / clarity**2
    doubt = (MODEL_ERROR * by_model) ** 2 + 1e-12
    together = 1 / (1 / doubt + 1 / spread)
    bound = (by_model / doubt + by_labels / spread) * together + CAUTION * np.sqrt(together)
    over = np.flatnonzero(bound > target)
    served = int(over[0]) if len(over) else len(bound)
    return min(float(risk[served - 1]), MOST_RISK * target) if served else NOTHING


def model_of(fit: Fit, level: float, labels: int) -> Model:
    """Returns the fit as look-ups use it."""
    root = np.linalg.cholesky(fit.covariance)
    return Model(
        tuple(map(float, fit.coefficients)), tuple(tuple(map(float, column)) for column in root.T), level, labels
    )


def learn(pool: Observations, channel: Channel, target: float) -> tuple[Fit, Model] | None:
    """Fits all scopes together. Returns the fit, and the model for scopes without labels; None with too few labels."""
    fit = fit_pooled(pool, channel)
    if fit is None:
        return None
    unknown = for_new_scopes(fit)
    level = level_of(risks(unknown, pool.features), pool, channel, target)
    return fit, model_of(unknown, level, len(pool))


def learn_scope(
    pooled: Fit, pool: Observations, observed: Observations, channel: Channel, target: float
) -> Model | None:
    """Returns the model of one scope. Its level comes from its labels, and a little from those of all scopes."""
    fit = fit_scope(pooled, observed, channel)
    if fit is None:
        return None
    together = observed.and_more(pool.scaled(POOL_WEIGHT))
    level = level_of(risks(fit, together.features), together, channel, target)
    return model_of(fit, level, len(observed))


# -- Before there are labels -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prior:
    """Labeled pairs of other questions, from which the policy serves before it has labels. They count less and less.

    It holds for the embedder and the verifier that scored the pairs.
    """

    embedder: str
    verifier: str
    observed: Observations

    def fits(self, versions: Versions) -> bool:
        """Returns whether cosines and scores mean the same here."""
        return (versions.embedder, versions.verifier) == (self.embedder, self.verifier)

    def added_to(self, own: Observations, channel: Channel) -> Observations:
        """Returns the deployment's labels and the prior's, which count less as labels come.

        Labels that do not suffice for a model, such as many right ones and none wrong, count as at most 100: they
        do not show what is wrong. The prior's verdicts are what the comparator would have said on average, so its
        errors are allowed for.
        """
        different, clarity = channel.of(self.observed.votes)
        wrong = different + clarity * self.observed.wrong
        number = float(own.weight.sum()) if has_enough(own) else min(float(own.weight.sum()), LEAST_LABELS)
        faded = self.observed.weight * 0.5 ** (number / PRIOR_HALF)
        return own.and_more(replace(self.observed, wrong=wrong, weight=faded))

    def model(self, target: float) -> Model | None:
        """Returns the model for a deployment without labels."""
        found = learn(self.observed, Channel(), target)
        return replace(found[1], labels=0) if found is not None else None


def read_prior(text: bytes) -> Prior:
    """Reads {"embedder", "verifier", "pairs": [[cosine, logit, same], ...]}. Raises `ValueError`."""
    try:
        said: dict[str, Any] = dict(orjson.loads(text))
        rows = [(float(cosine), float(logit), float(not same)) for cosine, logit, same in said["pairs"]]
        embedder, verifier = str(said["embedder"]), str(said["verifier"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a prior: {error!r}") from error
    alone = [(evidence_of([NearEntry(cosine, "", verifier=logit)], 0), wrong) for cosine, logit, wrong in rows]
    features = np.array([features_of(one) for one, _ in alone]).reshape(len(rows), len(FEATURES))
    wrong = np.array([one for _, one in alone])
    wrong_pairs = float(wrong.sum())
    right_pairs = len(rows) - wrong_pairs
    share = np.where(wrong > 0, PRIOR_WRONG / max(wrong_pairs, 1.0), (1 - PRIOR_WRONG) / max(right_pairs, 1.0))
    weight = len(rows) * share
    votes = np.full(len(rows), float(AGREED))
    return Prior(embedder, verifier, Observations(features, wrong, weight, np.ones(len(rows)), votes))
