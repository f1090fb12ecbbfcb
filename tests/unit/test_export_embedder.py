"""The export of the embedder: what it computes against plain numpy, and how the shipped model was made."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from api.embedders.minilm import MiniLM, model_files
from scripts.bench_embedder import cpu_per_question, float_model, matrix
from scripts.bench_embedders import distance_classes
from scripts.bench_retrieval import questions
from scripts.export_embedder import (
    DISTANCES,
    EPSILON,
    HEAD_SIZE,
    SEGMENTS,
    Weights,
    encoder,
    floats,
    joined,
    matrix_scale,
    quantized,
    read_encoder,
    read_safetensors,
)

pytestmark = [pytest.mark.slow, pytest.mark.once(reason="ONNX Runtime computes")]

SIZE, WIDE, LAYERS, VOCABULARY = 2 * HEAD_SIZE, 128, 2, 50
IDS = np.array([[3, 14, 15, 9, 26], [5, 35, 8, 9, 7]])


def made_weights() -> Weights:
    """Returns random weights of a small BERT under the names of the published file."""
    source = np.random.default_rng(1)
    shapes = {
        "embeddings.word_embeddings.weight": (VOCABULARY, SIZE),
        "embeddings.position_embeddings.weight": (16, SIZE),
        "embeddings.token_type_embeddings.weight": (2, SIZE),
        "pooler.dense.weight": (SIZE, SIZE),
        "pooler.dense.bias": (SIZE,),
    }
    normalized = ["embeddings.LayerNorm"]
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        sizes = {f"attention.self.{part}": (SIZE, SIZE) for part in ("query", "key", "value")}
        sizes |= {"attention.output.dense": (SIZE, SIZE), "intermediate.dense": (WIDE, SIZE)}
        for name, shape in (sizes | {"output.dense": (SIZE, WIDE)}).items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        normalized += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name in normalized:
        shapes |= {f"{name}.weight": (SIZE,), f"{name}.bias": (SIZE,)}
    return {name: (0.3 * source.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def expected(weights: Weights, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The encoder of BERT or MPNet for one text, in plain numpy."""
    distances = weights[DISTANCES][0, :, : len(ids), : len(ids)] if DISTANCES in weights else 0.0

    def normal(x: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        unit = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
        return np.asarray(unit * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    def dense(x: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        return np.asarray(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])

    table = weights["embeddings.word_embeddings.weight"][ids]
    segment = weights["embeddings.token_type_embeddings.weight"][0]
    x = normal(table + weights["embeddings.position_embeddings.weight"][: len(ids)] + segment, "embeddings.LayerNorm")
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        query, key, value = (
            dense(x, f"{layer}.attention.self.{part}").reshape(len(ids), -1, HEAD_SIZE).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = np.exp(query @ key.swapaxes(1, 2) / math.sqrt(HEAD_SIZE) + distances)
        mixed = (scores / scores.sum(-1, keepdims=True) @ value).swapaxes(0, 1).reshape(len(ids), -1)
        x = normal(x + dense(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        wide = dense(x, f"{layer}.intermediate.dense")
        active = wide * (1 + np.vectorize(math.erf)(wide / math.sqrt(2))) / 2
        x = normal(x + dense(active, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x


def computed(model: onnx.ModelProto, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input_ids": ids})[0])


def test_the_float_model_computes_bert() -> None:
    weights = made_weights()
    got = computed(encoder(joined(weights)), IDS)
    for row, ids in zip(got, IDS, strict=True):
        assert row == pytest.approx(expected(weights, ids), abs=1e-4)


def test_the_float_model_computes_mpnet() -> None:
    """Attention adds a number for the distance between two tokens, and there are no segments."""
    weights = dict(made_weights())
    weights[DISTANCES] = np.random.default_rng(3).standard_normal((1, 2, 16, 16)).astype(np.float32)
    weights[SEGMENTS] = np.zeros((2, SIZE), np.float32)
    published = {name: array for name, array in weights.items() if name != SEGMENTS}
    got = computed(encoder(joined(published)), IDS)
    for row, ids in zip(got, IDS, strict=True):
        assert row == pytest.approx(expected(weights, ids), abs=1e-4)


def test_distances_have_exact_classes_up_to_eight_tokens_and_wider_ones_beyond() -> None:
    classes = distance_classes(256)
    assert classes[0, :9].tolist() == [0, 17, 18, 19, 20, 21, 22, 23, 24]
    assert classes[:9, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert (classes[0, 128], classes[0, 255], classes[128, 0]) == (31, 31, 15)
    assert np.all(np.diff(classes[0, 1:]) >= 0)


def test_the_integer_model_stays_near_float_and_each_text_is_computed_alone() -> None:
    weights = made_weights()
    model = encoder(quantized(weights))
    got = computed(model, IDS)
    for place, ids in enumerate(IDS):
        right = expected(weights, ids)
        assert float((got[place] * right).sum() / np.linalg.norm(got[place]) / np.linalg.norm(right)) > 0.995
        assert np.array_equal(got[place], computed(model, IDS[place : place + 1])[0])


def test_no_pair_of_products_overflows_16_bits() -> None:
    matrix = np.random.default_rng(2).standard_normal((64, 32))
    matrix[:2, 0] = 9  # two large neighbors
    integers = np.rint(matrix / matrix_scale(matrix)).astype(int)
    assert np.abs(integers).max() <= 127
    assert (255 * (np.abs(integers[0::2]) + np.abs(integers[1::2]))).max() < 2**15


def test_tensors_are_read_from_safetensors() -> None:
    one = np.arange(6, dtype="<f4").reshape(2, 3)
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "numbers": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
            "one": {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]},
        }
    ).encode()
    found = read_safetensors(len(header).to_bytes(8, "little") + header + bytes(8) + one.tobytes())
    assert set(found) == {"one"}
    assert np.array_equal(found["one"], one)


def test_the_shipped_model_is_the_scripts_and_computes_in_integers() -> None:
    path = model_files(None).weights
    weights = read_encoder(path)
    assert encoder(weights).SerializeToString(deterministic=True) == onnx.load(path).SerializeToString(
        deterministic=True
    )
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert (kinds.count("MatMulIntegerToFloat"), kinds.count("MatMul")) == (24, 0)
    for name, integers in weights.items():
        if integers.dtype == np.int8 and integers.shape[0] < 30_000:
            pairs = np.abs(integers[0::2].astype(int)) + np.abs(integers[1::2].astype(int))
            assert (255 * pairs).max() < 2**15, name


@pytest.mark.timed
def test_integers_save_a_quarter_of_the_time_of_float_at_nearly_equal_vectors(tmp_path: Path) -> None:
    texts = [one["q"] for one in questions()[:60]]
    shipped, reference = MiniLM(model_files(None)), float_model(tmp_path)
    cosines = np.sum(matrix(shipped, texts) * matrix(reference, texts), axis=1)
    assert cosines.mean() > 0.997
    assert cosines.min() > 0.99
    integers, float_ = cpu_per_question([shipped, reference], texts, 5)
    assert integers / float_ < 0.75  # half on a quiet machine


def test_floats_restore_what_quantized_took_away() -> None:
    weights = made_weights()
    for name, array in joined(weights).items():
        restored = floats(quantized(weights))[name]
        assert np.abs(restored - array).max() <= np.abs(array).max() / 60
