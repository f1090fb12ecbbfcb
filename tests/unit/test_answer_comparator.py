"""The comparator of two answers: what it decides at once, from facts, and with the embedder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from api.embedders.minilm import MiniLM, model_files
from api.errors import EmbeddingUnavailable
from api.ports.inference import CurrentIdentity
from api.ports.quality import Verdict
from api.ports.telemetry import Telemetry
from api.quality.answer_facts import AnswerText, read_answer
from api.quality.comparator import Comparator, Comparison, Confusion, confusion
from api.quality.quantities import read_quantities
from api.values import EmbedderIdentity, Embedding


@pytest.fixture(scope="session")
def minilm() -> MiniLM:
    return MiniLM(model_files(None))


class LocalEmbedder:
    """An embedder without threads. Without a model it fails."""

    def __init__(self, model: MiniLM | None, name: str = "all-MiniLM-L6-v2") -> None:
        self._model = model
        self._identity = EmbedderIdentity(name, 384, name)
        self.current = CurrentIdentity(self._identity)
        self.texts: list[str] = []

    async def identity(self) -> EmbedderIdentity:
        return self._identity

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        if self._model is None:
            raise EmbeddingUnavailable("no model")
        self.texts += texts
        return self._model.embed(list(texts))


async def compared(minilm: MiniLM, one: str, other: str, question: str = "") -> Comparison:
    comparator = Comparator(LocalEmbedder(minilm), Telemetry())
    there = await comparator.compare(AnswerText(question, one), AnswerText(question, other))
    back = await comparator.compare(AnswerText(question, other), AnswerText(question, one))
    assert there.verdict == back.verdict, (there, back)
    return there


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The refund takes 5 days.", "Sure! The refund takes **5 days**."),
        ("It takes 90 minutes.", "It takes an hour and a half."),
        ("I don't know.", "The documents do not mention it."),
        ("", " \n"),
        ("Basic gets 10 days and Pro gets 20 days.", "Pro gets 20 days and Basic gets 10 days."),
    ],
)
async def test_the_same(minilm: MiniLM, one: str, other: str) -> None:
    assert (await compared(minilm, one, other)).verdict is Verdict.SAME


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ("The refund takes 5 days.", "The refund takes 10 days.", "figures"),
        ("Press the red button.", "Press the green button.", "scope"),
        ("You can cancel before the trial ends.", "You can cancel after the trial ends.", "opposites"),
        ("Pets are allowed in the rooms.", "Pets are not allowed in the rooms.", "negation"),
        ("Yes, it does.", "No, it does not.", "yes / no"),
        ("Basic gets 10 days and Pro gets 20.", "Basic gets 20 days and Pro gets 10.", "figures"),
        ("The office closes at five.", "I don't know.", "only one knows"),
        ("```\nrm -r build\n```", "```\nrm -rf build\n```", "code"),
        ("An answer.", "", "one says nothing"),
    ],
)
async def test_different(minilm: MiniLM, one: str, other: str, reason: str) -> None:
    comparison = await compared(minilm, one, other)
    assert comparison.verdict is Verdict.DIFFERENT
    assert reason in " ".join(comparison.reasons)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1.5 hours", [("time", 5400.0)]),
        ("an hour and a half", [("time", 5400.0)]),
        ("1 hour 30 minutes", [("time", 5400.0)]),
        ("5 to 10 days", [("time", 432000.0), ("time", 864000.0)]),
        ("the 3rd of May 2024", [("date", 20240503.0)]),
        ("May 3, 2024", [("date", 20240503.0)]),
        ("2024-05-03", [("date", 20240503.0)]),
        ("from 9 am to 5:30 p.m.", [("clock", 540.0), ("clock", 1050.0)]),
        ("$3.1 million", [("money usd", 3.1e6)]),
        ("two hundred and five", [("number", 205.0)]),
        ("no figure", []),
    ],
)
def test_quantities_have_one_form(text: str, found: list[tuple[str, float]]) -> None:
    assert [(one.kind, one.value) for one in read_quantities(text)] == found


async def test_without_vectors_it_is_unsure_rather_than_wrong(minilm: MiniLM) -> None:
    one, other = AnswerText("", "Your money comes back within 5 days."), AnswerText("", "Refunds take 5 days.")
    for embedder in (LocalEmbedder(None), LocalEmbedder(minilm, "nomic-embed-text")):
        comparison = await Comparator(embedder, Telemetry()).compare(one, other)
        assert comparison.verdict is Verdict.UNSURE
        assert not embedder.texts


def test_confusion_counts_pairs_of_truth_and_verdict() -> None:
    same, different, unsure = Verdict.SAME, Verdict.DIFFERENT, Verdict.UNSURE
    counted = confusion([(same, same), (same, same), (same, unsure), (different, same), (different, different)])
    assert counted == Confusion(same_same=2, same_unsure=1, different_same=1, different_different=1)
    assert (counted.n, counted.n_same, counted.n_different) == (5, 3, 2)
    assert counted.p_same_given_same == pytest.approx(2 / 3)
    assert counted.p_same_given_different == counted.p_different_given_different == 0.5


def test_a_long_answer_is_read_in_part() -> None:
    read = read_answer(AnswerText("", "One sentence more. " * 6_000))
    assert read.cut
    assert len(read.statements) <= 80
    assert np.isfinite(len(read.plain))
