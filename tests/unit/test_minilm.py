"""The encoder: its vectors, what they depend on, and errors if it is missing."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.embedders.answer_model import AnswerScorer
from api.embedders.minilm import MiniLM, ModelFiles, model_files, shared_tokenizer
from api.errors import SettingsError

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> MiniLM:
    return MiniLM(model_files(None))


def cosine(model: MiniLM, one: str, other: str) -> float:
    first, second = (np.frombuffer(vector, dtype="<f4") for vector in model.encode([one, other]))
    return float(first @ second)


def test_a_vector_is_384_little_endian_floats_of_unit_length(model: MiniLM) -> None:
    (vector,) = model.encode(["What is the height of the Halden Bridge?"])
    assert len(vector) == model.dimension * 4 == 1536
    assert np.linalg.norm(np.frombuffer(vector, dtype="<f4")) == pytest.approx(1.0, abs=1e-6)


def test_a_paraphrase_is_nearer_than_another_question(model: MiniLM) -> None:
    question = "How do I reset my password?"
    assert cosine(model, question, "How can I change my password?") > 0.8
    assert cosine(model, question, "When was the bridge opened?") < 0.3


def test_a_vector_does_not_depend_on_the_rest_of_the_batch(model: MiniLM) -> None:
    texts = ["short", "a somewhat longer text about a bridge", "other", "the third length of the four here", ""]
    alone = [model.encode([text])[0] for text in texts]
    together = model.encode(texts)
    for one, other in zip(alone, together, strict=True):
        assert np.frombuffer(one, "<f4") @ np.frombuffer(other, "<f4") == pytest.approx(1.0, abs=1e-5)


def test_texts_of_equal_length_that_run_together_change_no_vector(model: MiniLM) -> None:
    """One scale for a whole batch would let a text with large activations coarsen the others."""
    texts = ["reset my password", "open the bridge", "6 % !", "hello hello hello", "close the bridge"]
    assert len({model.count_tokens(text) for text in texts}) == 1
    assert model.encode(texts) == [model.encode([text])[0] for text in texts]


def test_no_run_has_many_tokens(model: MiniLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime keeps the memory of its largest run."""
    runs: list[tuple[int, int]] = []
    run = model._run

    def counted(ids: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
        runs.append(ids.shape)
        return run(ids)

    monkeypatch.setattr(model, "_run", counted)
    long, short = ["bridge " * 300] * 5, [f"open bridge {number}" for number in range(10)]
    assert len(model.encode([*long, *short])) == 15
    assert runs == [(2, 256), (2, 256), (1, 256), (10, 5)]


def test_models_with_equal_vocabularies_share_their_tokenizer(model: MiniLM, tmp_path: Path) -> None:
    assert AnswerScorer()._tokenizer is model.tokenizer
    other = tmp_path / "tokenizer.json"
    other.write_text(model_files(None).tokenizer.read_text().replace('"lowercase":true', '"lowercase":false'))
    tokenizer = shared_tokenizer(other, "EMBED_MODEL_PATH")
    assert tokenizer is not model.tokenizer
    assert tokenizer.encode("Bridge").ids != model.tokenizer.encode("Bridge").ids


def test_text_past_256_tokens_changes_nothing(model: MiniLM) -> None:
    long = "bridge " * 254
    assert model.encode([long]) == model.encode([long + "and something else entirely"])
    assert model.encode(["bridge " * 253]) != model.encode(["bridge " * 253 + "password"])


def test_no_texts_give_no_vectors(model: MiniLM) -> None:
    assert model.encode([]) == []


def test_a_lone_surrogate_fails_no_text(model: MiniLM) -> None:
    strange, plain = model.encode(["bad \ud800 text", "plain text"])
    assert len(strange) == 1536
    assert plain == model.encode(["plain text"])[0]


def test_the_digest_covers_the_weights_and_the_card_states_it(model: MiniLM) -> None:
    weights = model_files(None).weights
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert model.digest == digest[:12]
    assert digest in weights.with_name("README.md").read_text("utf-8")


def test_a_model_path_is_a_folder_or_a_weights_file(tmp_path: Path) -> None:
    for name in ("model.onnx", "tokenizer.json"):
        (tmp_path / name).write_text("x")
    expected = ModelFiles(tmp_path / "model.onnx", tmp_path / "tokenizer.json")
    assert model_files(str(tmp_path)) == expected
    assert model_files(str(tmp_path / "model.onnx")) == expected


def test_a_custom_folder_gives_the_same_vectors(model: MiniLM, tmp_path: Path) -> None:
    packaged = model_files(None)
    (tmp_path / "model.onnx").symlink_to(packaged.weights)
    shutil.copy(packaged.tokenizer, tmp_path / "tokenizer.json")
    assert MiniLM(model_files(str(tmp_path))).encode(["same"]) == model.encode(["same"])


def test_the_error_names_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("x")
    with pytest.raises(SettingsError, match=r"EMBED_MODEL_PATH: file not found: .*tokenizer\.json"):
        model_files(str(tmp_path))


def test_the_error_names_files_that_are_not_a_model(tmp_path: Path) -> None:
    tokenizer = model_files(None).tokenizer
    broken = tmp_path / "model.onnx"
    broken.write_text("no model")
    with pytest.raises(SettingsError, match=r"EMBED_MODEL_PATH: cannot load the ONNX model .*model\.onnx"):
        MiniLM(ModelFiles(broken, tokenizer))
    with pytest.raises(SettingsError, match=r"EMBED_MODEL_PATH: cannot load the tokenizer .*model\.onnx"):
        MiniLM(ModelFiles(broken, broken))


@pytest.mark.parametrize("missing", ["onnxruntime", "tokenizers"])
def test_the_error_names_the_missing_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> object:
        return None if name == missing else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(SettingsError, match=rf"pip install 'ragherd\[onnx\]' \({missing}\)"):
        model_files(None)


def test_onnxruntime_writes_no_machine_id_and_no_usage_records(tmp_path: Path) -> None:
    """onnxruntime would create files for both below HOME when it loads its first model."""
    program = "from api.embedders.minilm import MiniLM, model_files; MiniLM(model_files(None)).embed(['text'])"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
