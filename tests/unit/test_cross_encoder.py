"""The cross-encoder: its scores, what they depend on, and errors for invalid files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tokenizers import Tokenizer

from api.embedders.minilm import files_at, model_files
from api.embedders.reranker import CrossEncoder, TextPair
from api.errors import SettingsError
from tests.support.small_cross_encoder import Output, write_cross_encoder

pytestmark = pytest.mark.slow


def load(path: str) -> CrossEncoder:
    return CrossEncoder(files_at(path, "RERANK_MODEL_PATH"))


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@pytest.fixture
def model(tmp_path: Path) -> CrossEncoder:
    return load(write_cross_encoder(tmp_path))


@pytest.mark.parametrize("output", ["one", "two", "flat"])
def test_a_score_is_between_0_and_1_for_one_or_two_logits(tmp_path: Path, output: Output) -> None:
    model = load(write_cross_encoder(tmp_path, output))
    pairs = [
        TextPair("which", "one likes"),
        TextPair("which", "it dislikes dislikes"),
        TextPair("which", "neither"),
        TextPair("", ""),
    ]
    assert model.score(pairs) == pytest.approx([sigmoid(2), sigmoid(-4), 0.5, 0.5])


def test_question_and_text_are_encoded_as_a_pair_with_token_types(tmp_path: Path) -> None:
    """A model that distinguishes them gets token type 0 for the question and 1 for the text."""
    path = Path(write_cross_encoder(tmp_path), "model.onnx")
    graph = onnx.load(path)
    types = onnx.helper.make_tensor_value_info("token_type_ids", onnx.TensorProto.INT64, ["pairs", "tokens"])
    graph.graph.input.append(types)
    gather = next(node for node in graph.graph.node if node.op_type == "Gather")
    gather.input[1] = "token_type_ids"
    next(one for one in graph.graph.initializer if one.name == "worth").CopyFrom(
        numpy_helper.from_array(np.array([[0.0], [1.0]], dtype=np.float32), "worth")
    )
    onnx.save(graph, path)
    assert load(str(tmp_path)).score([TextPair("a question of six words long", "two words")]) == pytest.approx(
        [sigmoid(3)]
    )


def test_a_score_does_not_depend_on_the_rest_of_the_batch(model: CrossEncoder) -> None:
    pairs = [TextPair("a b", text) for text in ("likes", "a likes", "a b likes dislikes", "other", "")]
    assert model.score(pairs) == [model.score([pair])[0] for pair in pairs]


def test_the_longer_part_of_a_long_pair_is_truncated_first(model: CrossEncoder) -> None:
    """Three of 512 tokens are special, two are the question."""
    assert model.max_tokens == 512
    verdicts = model.score([TextPair("a likes", "b " * 506 + "likes"), TextPair("a likes", "b " * 507 + "likes")])
    assert verdicts == pytest.approx([sigmoid(4), sigmoid(2)])


def test_the_tokenizer_s_own_length_is_kept(tmp_path: Path) -> None:
    write_cross_encoder(tmp_path)
    file = str(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.enable_truncation(10)
    tokenizer.save(file)
    model = load(str(tmp_path))
    assert model.max_tokens == 10
    assert model.score([TextPair("a", "b b b b b likes"), TextPair("a", "b b b b b b likes")]) == pytest.approx(
        [sigmoid(2), 0.5]
    )


def test_a_lone_surrogate_fails_no_pair(model: CrossEncoder) -> None:
    assert model.score([TextPair("bad \ud800", "likes"), TextPair("plain", "\udfff")]) == pytest.approx(
        [sigmoid(2), 0.5]
    )


def test_extreme_logits_give_valid_scores(model: CrossEncoder) -> None:
    low, high = model.score([TextPair("a", "dislikes " * 500), TextPair("a", "likes " * 500)])
    assert (low, high) == (0.0, 1.0)


def test_a_score_that_is_not_a_number_is_an_error(tmp_path: Path) -> None:
    model = load(write_cross_encoder(tmp_path, worth=[0.0, 0.0, 0.0, 0.0, math.nan, 0.0]))
    with pytest.raises(ValueError, match="not finite"):
        model.score([TextPair("a", "likes")])


def test_the_digest_covers_weights_and_tokenizer(tmp_path: Path) -> None:
    one, same = load(write_cross_encoder(tmp_path / "a")), load(write_cross_encoder(tmp_path / "b"))
    other = load(write_cross_encoder(tmp_path / "c", worth=[0.0] * 6))
    assert one.digest == same.digest != other.digest
    assert len(one.digest) == 12
    with (tmp_path / "b" / "tokenizer.json").open("a") as file:
        file.write("\n")
    assert same.digest != one.digest


@pytest.mark.parametrize(("output", "shape"), [("three", r"\(2, 3\)"), ("hidden", r"\(2, \d+, 1\)")])
def test_a_model_of_another_kind_is_rejected_by_its_output(tmp_path: Path, output: Output, shape: str) -> None:
    with pytest.raises(SettingsError, match=rf"RERANK_MODEL_PATH: .*model\.onnx is not a cross-encoder: .*{shape}"):
        load(write_cross_encoder(tmp_path, output))


def test_an_embedding_model_is_rejected(tmp_path: Path) -> None:
    files = model_files(None)
    (tmp_path / "model.onnx").symlink_to(files.weights)
    (tmp_path / "tokenizer.json").symlink_to(files.tokenizer)
    with pytest.raises(SettingsError, match=r"RERANK_MODEL_PATH: .* is not a cross-encoder"):
        load(str(tmp_path))


def test_a_model_that_cannot_read_pairs_gets_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"RERANK_MODEL_PATH: .*model\.onnx cannot score a question") as caught:
        load(write_cross_encoder(tmp_path, worth=[0.0]))
    assert "\n" not in str(caught.value)


def test_a_model_with_other_inputs_is_rejected_by_their_names(tmp_path: Path) -> None:
    path = Path(write_cross_encoder(tmp_path), "model.onnx")
    graph = onnx.load(path)
    graph.graph.input[0].name = "pixels"
    graph.graph.node[0].input[1] = "pixels"
    onnx.save(graph, path)
    with pytest.raises(SettingsError, match=r"RERANK_MODEL_PATH: .* its inputs are pixels"):
        load(str(tmp_path))


@pytest.mark.parametrize("missing", ["model.onnx", "tokenizer.json"])
def test_the_error_names_a_missing_file(tmp_path: Path, missing: str) -> None:
    write_cross_encoder(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(SettingsError, match=rf"RERANK_MODEL_PATH: file not found: .*{missing}"):
        load(str(tmp_path))


@pytest.mark.parametrize(("broken", "what"), [("model.onnx", "ONNX model"), ("tokenizer.json", "tokenizer")])
def test_the_error_names_files_that_are_not_a_model(tmp_path: Path, broken: str, what: str) -> None:
    write_cross_encoder(tmp_path)
    (tmp_path / broken).write_text("no model")
    with pytest.raises(SettingsError, match=rf"RERANK_MODEL_PATH: cannot load the {what} .*{broken}"):
        load(str(tmp_path))
