"""The verifier: its scores, its deadline, and how it follows the model that the fleet puts in use."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from api.embedders import verifier as module
from api.embedders.minilm import files_at
from api.embedders.reranker import CrossEncoder, TextPair
from api.embedders.verifier import BUILTIN, SHIPPED, OnnxVerifier, read_folder, verifier_files
from api.errors import SettingsError, StoreUnavailable, VerifierUnavailable
from api.ports.answer_quality import VerifierFiles
from api.ports.telemetry import Telemetry
from tests.support.small_cross_encoder import WORTH, write_cross_encoder
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

QUESTION, CANDIDATES = "which", ["it likes", "it dislikes", "neither"]
OWN, OTHER = [2.0, -2.0, 0.0], [1.0, -1.0, 0.0]
"""The scores of the worker's own model and of another."""


class Models:
    """The fleet's models, in memory."""

    def __init__(self) -> None:
        self.in_use = ""
        self.stored: dict[str, VerifierFiles] = {}
        self.down = False
        self.reads = 0

    async def active(self) -> str:
        if self.down:
            raise StoreUnavailable("down")
        return self.in_use

    async def read(self, digest: str) -> VerifierFiles | None:
        self.reads += 1
        return self.stored.get(digest)

    async def activate(self, files: VerifierFiles) -> str:
        self.stored[files.digest] = files
        self.in_use = files.digest
        return files.digest

    async def roll_back(self) -> str | None:
        self.in_use = ""
        return ""

    async def renew(self) -> None:
        if self.down:
            raise StoreUnavailable("down")


class Events(Telemetry):
    """What the verifier reports."""

    def __init__(self) -> None:
        self.scored = 0
        self.failed: list[str] = []
        self.changed: list[str] = []
        self.not_changed: list[str] = []

    def verified(self, seconds: float) -> None:
        self.scored += 1

    def verifying_failed(self, error: VerifierUnavailable, seconds: float) -> None:
        self.failed.append(str(error))

    def verifier_changed(self, digest: str) -> None:
        self.changed.append(digest)

    def verifier_not_changed(self, digest: str, error: str) -> None:
        self.not_changed.append(error)


class Running:
    """An open verifier with its surroundings."""

    def __init__(self, verifier: OnnxVerifier, models: Models, events: Events) -> None:
        self.verifier = verifier
        self.models = models
        self.events = events


@pytest.fixture
def other(tmp_path: Path) -> VerifierFiles:
    """A trained model with half the worth of each word."""
    folder = Path(write_cross_encoder(tmp_path / "other", worth=[one / 2 for one in WORTH]))
    (folder / "model.json").write_text("{}")
    return read_folder(folder)


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    models, events = Models(), Events()
    async with OnnxVerifier.open(write_cross_encoder(tmp_path / "own"), 30.0, models, events) as verifier:
        yield Running(verifier, models, events)


async def test_it_returns_a_logit_for_each_candidate(running: Running) -> None:
    assert await running.verifier.score(QUESTION, CANDIDATES * 3) == pytest.approx(OWN * 3)
    assert await running.verifier.score(QUESTION, []) == []
    assert running.events.scored == 2


async def test_in_the_background_it_scores_the_same(running: Running, other: VerifierFiles) -> None:
    background = running.verifier.in_background
    assert await background.score(QUESTION, CANDIDATES) == pytest.approx(OWN)
    await running.models.activate(other)
    await eventually(lambda: background.digest == running.verifier.digest == other.digest)


async def test_its_digest_is_that_of_its_files(running: Running, tmp_path: Path) -> None:
    model = CrossEncoder(files_at(str(tmp_path / "own"), "X"))
    (tmp_path / "own" / "model.json").write_text("{}")
    assert running.verifier.digest == model.digest == read_folder(tmp_path / "own").digest


async def test_at_its_deadline_there_is_no_score_and_it_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, events = threading.Event(), Events()
    logits = CrossEncoder.logits

    def late(model: CrossEncoder, pairs: Sequence[TextPair]) -> list[float]:
        gate.wait(10)
        return logits(model, pairs)

    async with OnnxVerifier.open(write_cross_encoder(tmp_path), 0.05, Models(), events) as verifier:
        monkeypatch.setattr(CrossEncoder, "logits", late)
        with pytest.raises(VerifierUnavailable, match="the verifier took longer than"):
            await verifier.score(QUESTION, CANDIDATES)
        gate.set()
    assert len(events.failed) == 1


async def test_a_fault_of_the_model_is_no_score(running: Running) -> None:
    with pytest.raises(VerifierUnavailable, match="the verifier failed"):
        await running.verifier.score(QUESTION, ["it breaks"])
    assert await running.verifier.score(QUESTION, CANDIDATES) == pytest.approx(OWN)


async def test_it_loads_the_fleet_s_model_and_goes_back_to_its_own(running: Running, other: VerifierFiles) -> None:
    own = running.verifier.digest
    assert await running.models.activate(other) != own
    await eventually(lambda: running.verifier.digest == other.digest)
    assert await running.verifier.score(QUESTION, CANDIDATES) == pytest.approx(OTHER)
    await running.models.roll_back()
    await eventually(lambda: running.verifier.digest == own)
    assert await running.verifier.score(QUESTION, CANDIDATES) == pytest.approx(OWN)
    assert running.events.changed == [other.digest, own]


async def test_a_worker_that_starts_later_begins_with_the_fleet_s_model(tmp_path: Path, other: VerifierFiles) -> None:
    models = Models()
    await models.activate(other)
    async with OnnxVerifier.open(write_cross_encoder(tmp_path / "own"), 30.0, models, Events()) as verifier:
        assert verifier.digest == other.digest


async def test_it_scores_with_the_former_model_while_the_other_is_loaded(
    running: Running, other: VerifierFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, gate, load = threading.Event(), threading.Event(), module._load

    def slow(*given: object) -> object:
        loading.set()
        gate.wait(10)
        return load(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_load", slow)
    await running.models.activate(other)
    await eventually(loading.is_set)
    assert await running.verifier.score(QUESTION, CANDIDATES) == pytest.approx(OWN)
    gate.set()
    await eventually(lambda: running.verifier.digest == other.digest)


async def test_it_keeps_its_model_if_the_fleet_s_is_missing_or_broken(running: Running, other: VerifierFiles) -> None:
    own, broken = running.verifier.digest, VerifierFiles(b"no model", other.tokenizer)
    running.models.in_use = "0" * 12
    await eventually(lambda: len(running.events.not_changed) == 1)
    await running.models.activate(broken)
    await eventually(lambda: len(running.events.not_changed) == 2)
    assert "not in Redis" in running.events.not_changed[0]
    assert "cannot load" in running.events.not_changed[1]
    reads = running.models.reads
    await running.verifier.follow()
    assert running.models.reads == reads  # it does not fetch 23 MB every second in vain
    assert running.verifier.digest == own
    await running.models.activate(other)
    await eventually(lambda: running.verifier.digest == other.digest)


async def test_without_redis_it_keeps_the_model_in_use(running: Running, other: VerifierFiles) -> None:
    await running.models.activate(other)
    await eventually(lambda: running.verifier.digest == other.digest)
    running.models.down = True
    await running.verifier.follow()
    assert running.verifier.digest == other.digest


async def test_a_wrong_path_names_its_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="SEMANTIC_CACHE_VERIFIER_PATH: file not found"):
        verifier_files(str(tmp_path))
    write_cross_encoder(tmp_path, "three")
    async with AsyncExitStack() as stack:
        with pytest.raises(SettingsError, match=r"SEMANTIC_CACHE_VERIFIER_PATH: .* is not a cross-encoder"):
            await stack.enter_async_context(OnnxVerifier.open(str(tmp_path), 1.0, Models(), Events()))


@pytest.mark.parametrize(
    ("info", "reason"),
    [(None, "file not found"), ("no json", "cannot read"), ('{"version": "0123456789ab"}', "do not match the version")],
)
def test_a_folder_that_is_no_complete_model_is_not_read(tmp_path: Path, info: str | None, reason: str) -> None:
    write_cross_encoder(tmp_path)
    if info is not None:
        (tmp_path / "model.json").write_text(info)
    with pytest.raises(SettingsError, match=reason):
        read_folder(tmp_path)


async def test_scores_do_not_block_the_event_loop(running: Running) -> None:
    scoring = asyncio.create_task(running.verifier.score(QUESTION, CANDIDATES))
    await asyncio.sleep(0)
    assert not scoring.done()
    assert await scoring == pytest.approx(OWN)


async def test_the_shipped_verifier_prefers_the_same_question() -> None:
    pair = ["How can I get a gift card?", "How can I get a gift?"]
    async with OnnxVerifier.open(BUILTIN, 30.0, Models(), Events()) as verifier:
        same, other = await verifier.score("Where do I get a gift card?", pair)
        alone = await verifier.score("Where do I get a gift card?", pair[:1])
    assert same > other
    assert alone == pytest.approx([same], abs=0.05)
    assert verifier.digest == read_folder(SHIPPED).digest
