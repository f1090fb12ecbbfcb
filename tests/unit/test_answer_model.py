"""The comparator's model: its file, its scores, and what happens when it fails."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from api.embedders.answer_model import MAX_CHARACTERS, MAX_TOKENS, MODEL, AnswerModel, AnswerScorer, is_installed
from api.embedders.minilm import MiniLM, model_files
from api.embedders.reranker import TextPair
from api.embedders.verifier import SHIPPED
from api.errors import ComparingUnavailable
from api.ports.answer_quality import Verdict
from api.ports.telemetry import Telemetry
from api.quality.answer_facts import AnswerText
from api.quality.comparator import MEASURED, MEASURED_WITH_MODEL, Comparator
from scripts.measure_comparator import LocalEmbedder
from training.comparing import HELD_OUT_FOLD, Sampler, held_out_pairs

QUESTION = "How long does a refund take?"
ONE, SAME = "You get your money back within five working days.", "Refunds arrive in 5 business days at the latest."
OTHER = "You get your money back within five weeks, but only as store credit."


@pytest.fixture(scope="module")
def scorer() -> AnswerScorer:
    return AnswerScorer()


class Recorded(Telemetry):
    """Keeps the stages that decided."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def compared(self, stage: str, verdict: Verdict) -> None:
        self.stages.append(stage)


class FixedModel:
    """A model with one logit for all pairs; None fails."""

    version = "fixed"

    def __init__(self, logit: float | None) -> None:
        self.logit = logit

    async def score(self, question: str, one: str, other: str) -> float | None:
        if self.logit is None:
            raise ComparingUnavailable("the model is broken")
        return self.logit


def test_the_file_takes_its_lower_layers_from_the_verifiers() -> None:
    """A new verifier needs a new model of the comparator: `python -m scripts.train_comparator`."""
    onnx = pytest.importorskip("onnx", reason="training needs the extra `train`")
    assert (SHIPPED / MODEL).stat().st_size < 6.5 * 2**20
    verifier = (SHIPPED / "model.onnx").read_bytes()
    known = {one.name: one.raw_data for one in onnx.load(SHIPPED / "model.onnx").graph.initializer}
    found = onnx.load(SHIPPED / MODEL, load_external_data=False).graph.initializer
    shared = {one.name: {part.key: part.value for part in one.external_data} for one in found if one.external_data}
    assert "embed.words" in shared
    assert len(shared) == 1 + 3 * 6
    for name, part in shared.items():
        start, length = int(part["offset"]), int(part["length"])
        assert part["location"] == "model.onnx"
        assert verifier[start : start + length] == known[name]


async def test_it_tells_equal_answers_from_others_in_either_order(scorer: AnswerScorer) -> None:
    same, other = await scorer.score(QUESTION, ONE, SAME), await scorer.score(QUESTION, ONE, OTHER)
    assert same is not None
    assert other is not None
    assert same > other
    assert same == pytest.approx(await scorer.score(QUESTION, SAME, ONE), abs=1e-5)


def test_a_pair_that_is_too_long_has_no_score(scorer: AnswerScorer) -> None:
    longest = "a " * (MAX_TOKENS - 5)
    [fits, too_long] = scorer.logits([TextPair("q", longest), TextPair("q", longest + "a a")])
    assert math.isfinite(fits)
    assert math.isnan(too_long)


@pytest.mark.parametrize("text", ["", "\ud800", "\u0000", "漢" * 100, "[SEP] [CLS]"])
async def test_any_text_has_a_score(scorer: AnswerScorer, text: str) -> None:
    assert await scorer.score(text, text, "It takes 5 days.") is not None


async def test_a_worker_scores_in_a_thread_and_loads_when_first_asked(scorer: AnswerScorer) -> None:
    assert is_installed()
    async with AnswerModel.open() as model:
        assert model._scorer is None
        assert await model.score(QUESTION, ONE, SAME) == pytest.approx(
            await scorer.score(QUESTION, ONE, SAME), abs=1e-5
        )
        assert await model.score(QUESTION, "a" * MAX_CHARACTERS, SAME) is None
        assert await model.score(QUESTION, "漢 " * MAX_TOKENS, SAME) is None
        assert model.version == scorer.version
    with pytest.raises(ComparingUnavailable, match="is closed"):
        await model.score(QUESTION, ONE, SAME)


async def test_a_file_that_does_not_load_is_a_fault_of_the_model(tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(b"damaged")
    async with AnswerModel.open(tmp_path) as model:
        with pytest.raises(ComparingUnavailable, match="the comparator's model failed"):
            await model.score(QUESTION, ONE, SAME)


async def test_a_score_that_is_late_is_a_fault_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.embedders.answer_model.SECONDS", 0.01)
    busy = asyncio.Event()
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        model = AnswerModel(SHIPPED, "1", thread)
        running = loop.run_in_executor(thread, lambda: asyncio.run_coroutine_threadsafe(busy.wait(), loop).result())
        with pytest.raises(ComparingUnavailable, match=r"took longer than 0\.01 s"):
            await model.score(QUESTION, ONE, SAME)
        busy.set()
        await running
        await model._queue.close()


@pytest.mark.parametrize(
    ("logit", "verdict", "stage"),
    [(8.0, Verdict.SAME, "model"), (-8.0, Verdict.DIFFERENT, "model"), (None, None, "facts")],
)
async def test_the_models_score_decides_with_the_facts(
    logit: float | None, verdict: Verdict | None, stage: str
) -> None:
    telemetry, embedder = Recorded(), LocalEmbedder(MiniLM(model_files(None)))
    one, other = AnswerText(QUESTION, ONE), AnswerText(QUESTION, SAME)
    found = await Comparator(embedder, telemetry, model=FixedModel(logit)).compare(one, other)
    alone = await Comparator(embedder, Telemetry()).compare(one, other)
    assert found.verdict is (verdict or alone.verdict)
    assert telemetry.stages == [stage]


async def test_the_model_is_not_asked_without_vectors_or_where_the_texts_decide() -> None:
    telemetry, refusal = Recorded(), AnswerText(QUESTION, "I don't know.")
    texts = [AnswerText(QUESTION, text) for text in (ONE, SAME)]
    for embedder, pair in ((LocalEmbedder(None), texts), (LocalEmbedder(None), [texts[0], refusal])):
        await Comparator(embedder, telemetry, model=FixedModel(8.0)).compare(*pair)
    assert telemetry.stages == ["facts", "text"]


def test_labels_of_another_model_have_another_version_and_other_errors() -> None:
    embedder, telemetry, model = LocalEmbedder(None), Telemetry(), FixedModel(0.0)
    alone, with_model = Comparator(embedder, telemetry), Comparator(embedder, telemetry, model=model)
    assert alone.version != with_model.version
    assert (alone.assumed, with_model.assumed) == (MEASURED.confusion, MEASURED_WITH_MODEL.confusion)
    model.version = "another"
    assert Comparator(embedder, telemetry, model=model).version != with_model.version


@pytest.mark.slow
def test_held_out_families_train_nothing() -> None:
    held_out = {pair.question.lower() for _, pair in held_out_pairs()}
    trained = Sampler(0, HELD_OUT_FOLD).pairs(300)
    assert {pair.same for pair in trained} == {True, False}
    assert not [one for pair in trained for one in held_out if one in pair.first.split("\n")[0].lower()]
