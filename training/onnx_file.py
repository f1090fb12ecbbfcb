"""Writes the network's weights as an ONNX model that computes in 8-bit integers, and reads them back from one.

- Weights have one scale per output. Activations are quantized at run time with one scale per token, so a score does not
  depend on the other pairs of a batch.
- Processors without VNNI instructions add pairs of products in 16 bits. Weights are scaled so that no pair overflows,
  and every processor computes the same sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

HEADS: Final = 12
EPSILON: Final = 1e-12
OPSET: Final = 20
IR_VERSION: Final = 9
FUSED: Final = "com.microsoft"
"""The domain of onnxruntime's own operators."""
WORDS: Final = "embed.words"
POSITIONS: Final = "embed.positions"
MAX_TOKENS: Final = 128
"""Of both questions. The longer one is cut first, and positions after these are not stored."""
SCALE: Final = ".scale"
SHARED_BYTES: Final = 65_536
"""Smaller weights are in each model's own file. So are floats, because a place in another file may not be aligned."""


def quantized(weights: Mapping[str, Array], tokens: int = MAX_TOKENS) -> dict[str, Array]:
    """Returns the weights with int8 matrices, each with its scales under the name plus `.scale`.

    `tokens`: how many a pair may have.
    """
    found: dict[str, Array] = {}
    for name, array in weights.items():
        if name == WORDS:
            scale = np.abs(array).max(axis=1, keepdims=True) / 127
        elif name.endswith(".weight") and array.ndim == 2 and array.shape[1] > 1:
            size = np.abs(array)
            scale = np.maximum(size.max(axis=0), (size[0::2] + size[1::2]).max(axis=0)) / 127
        else:
            found[name] = (array[:tokens] if name == POSITIONS else array).astype(np.float32)
            continue
        scale = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
        found[name] = np.rint(array / scale).astype(np.int8)
        found[f"{name}{SCALE}"] = scale
    return found


def floats(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Returns quantized weights as float32."""
    return {
        name: array * weights[f"{name}{SCALE}"] if f"{name}{SCALE}" in weights else array
        for name, array in weights.items()
        if not name.endswith(SCALE)
    }


def write(weights: Mapping[str, Array], path: Path) -> None:
    """Writes the model with int8 weights. Equal weights give equal bytes."""
    import onnx

    onnx.save(build(quantized(weights)), path)


def write_upper(weights: Mapping[str, Array], path: Path, lower: Path, shared: tuple[str, ...], tokens: int) -> None:
    """Writes a model that takes the large int8 weights whose names start with `shared` from the file `lower`.

    Both files must be in one folder. The runtime maps them into memory once for all models of a machine.
    """
    import onnx

    found = {one.name: one for one in onnx.load(lower).graph.initializer}
    content = lower.read_bytes()
    own = quantized(weights, tokens)
    kept = {name: onnx.numpy_helper.to_array(one) for name, one in found.items() if name.startswith(shared)}
    model = build(own | {name: one for name, one in kept.items() if name != POSITIONS and name in own})
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        is_large = tensor.data_type == onnx.TensorProto.INT8 and size >= SHARED_BYTES
        if is_large and tensor.name in kept and tensor.raw_data == found[tensor.name].raw_data:
            place = content.index(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", lower.name), ("offset", place), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString(deterministic=True))


def read(path: Path) -> dict[str, Array]:
    """Returns the float32 weights of a model that `write` made. Raises `ValueError` for another file."""
    import onnx
    from onnx import numpy_helper

    try:
        graph = onnx.load(path).graph
    except Exception as error:  # the library raises its own and protobuf's errors, without a common base
        raise ValueError(f"cannot read {path}: {error}") from error
    found = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    weights = floats({name: one for name, one in found.items() if name.startswith(("embed.", "layers.", "head."))})
    if WORDS not in weights or "head.out.weight" not in weights:
        raise ValueError(f"{path} is not a model that train-verifier made")
    return weights


class _Graph:
    """Collects nodes and constants. `node` returns the name of its output."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        from onnx import helper, numpy_helper

        self.weights = weights
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self._make, self._tensor = helper.make_node, numpy_helper.from_array

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(self._make(kind, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def constant(self, name: str, value: object) -> str:
        if name not in self.constants:
            array = np.asarray(value)
            self.constants[name] = self._tensor(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def axis(self, number: int) -> str:
        return self.constant(f"axis_{number}", np.array([number], np.int64))

    def number(self, value: float) -> str:
        return self.constant(f"number_{value:g}", np.float32(value))


def build(weights: Mapping[str, Array]) -> Any:
    """Returns the ONNX model of the result of `quantized`, or of float weights: the same network, computed in float."""
    from onnx import TensorProto, checker, helper

    graph = _Graph(weights)
    mask = graph.node("Cast", "attention_mask", to=TensorProto.FLOAT)
    types = graph.node("Cast", "token_type_ids", to=TensorProto.FLOAT)
    keys = graph.node("Cast", "attention_mask", to=TensorProto.INT32)
    x = _embedding(graph)
    for layer in range(sum(name.endswith(".query.weight") for name in weights)):
        x = _layer(graph, f"layers.{layer}", x, keys)
    graph.nodes.append(helper.make_node("Identity", [_head(graph, x, mask, types)], ["logits"]))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["pairs", "tokens"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["pairs", 1])
    made = helper.make_graph(graph.nodes, "verifier", inputs, [output], list(graph.constants.values()))
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="ragherd")
    checker.check_model(model)
    return model


def _embedding(graph: _Graph) -> str:
    words = graph.node("Gather", graph.weight(WORDS), "input_ids")
    if f"{WORDS}{SCALE}" in graph.weights:
        scale = graph.node("Gather", graph.weight(f"{WORDS}{SCALE}"), "input_ids")
        words = graph.node("Mul", graph.node("Cast", words, to=1), scale)
    types = graph.node("Gather", graph.weight("embed.types"), "token_type_ids")
    length = graph.node("Shape", "input_ids", start=1, end=2)
    positions = graph.node("Slice", graph.weight("embed.positions"), graph.axis(0), length)
    return _norm(graph, "embed.norm", graph.node("Sum", words, positions, types))


def _layer(graph: _Graph, name: str, x: str, keys: str) -> str:
    """Returns the output of one transformer layer. One Sum is faster than two Adds, which onnxruntime fuses badly."""
    parts = [
        graph.node("Add", _product(graph, x, f"{name}.{part}"), graph.weight(f"{name}.{part}.bias"))
        for part in ("query", "key", "value")
    ]
    mixed = graph.node("MultiHeadAttention", *parts, "", keys, domain=FUSED, num_heads=HEADS)
    attended = _product(graph, mixed, f"{name}.attended")
    x = _norm(graph, f"{name}.attended_norm", graph.node("Sum", attended, x, graph.weight(f"{name}.attended.bias")))
    wide = graph.node("BiasGelu", _product(graph, x, f"{name}.wide"), graph.weight(f"{name}.wide.bias"), domain=FUSED)
    narrow = _product(graph, wide, f"{name}.narrow")
    return _norm(graph, f"{name}.norm", graph.node("Sum", narrow, x, graph.weight(f"{name}.narrow.bias")))


def _product(graph: _Graph, x: str, name: str) -> str:
    """Multiplies by a matrix: in integers if it has scales, else in float. The head, which is small, stays in float."""
    weight = f"{name}.weight"
    if f"{weight}{SCALE}" not in graph.weights:
        return graph.node("MatMul", x, graph.weight(weight))
    if name.startswith("head."):
        scales = graph.weight(f"{weight}{SCALE}")
        return graph.node("MatMul", x, graph.node("DequantizeLinear", graph.weight(weight), scales, axis=1))
    one, zero = graph.number(1), graph.constant("zero", np.uint8(128))
    largest = graph.node("ReduceMax", graph.node("Abs", x), graph.axis(-1), keepdims=1)
    scale = graph.node("Mul", graph.node("Max", largest, graph.number(1e-9)), graph.number(1 / 127))
    integers = graph.node("QuantizeLinear", graph.node("Div", x, scale), one, zero)
    inputs = (integers, graph.weight(weight), one, graph.weight(f"{weight}{SCALE}"), zero)
    return graph.node("Mul", graph.node("MatMulIntegerToFloat", *inputs, domain=FUSED), scale)


def _norm(graph: _Graph, name: str, x: str) -> str:
    parts = graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias")
    return graph.node("LayerNormalization", x, *parts, axis=-1, epsilon=EPSILON)


def _head(graph: _Graph, x: str, mask: str, types: str) -> str:
    second = graph.node("Mul", mask, types)
    means = [_mean(graph, x, share) for share in (graph.node("Sub", mask, second), second)]
    start = graph.node("Squeeze", graph.node("Slice", x, graph.axis(0), graph.axis(1), graph.axis(1)), graph.axis(1))
    apart = graph.node("Abs", graph.node("Sub", *means))
    features = graph.node("Concat", start, graph.node("Add", *means), apart, graph.node("Mul", *means), axis=1)
    hidden = graph.node("Gelu", _linear(graph, "head.hidden", features))
    return _linear(graph, "head.out", hidden)


def _linear(graph: _Graph, name: str, x: str) -> str:
    return graph.node("Add", _product(graph, x, name), graph.weight(f"{name}.bias"))


def _mean(graph: _Graph, x: str, mask: str) -> str:
    weighted = graph.node("Mul", x, graph.node("Unsqueeze", mask, graph.axis(2)))
    total = graph.node("ReduceSum", weighted, graph.axis(1), keepdims=0)
    count = graph.node("Max", graph.node("ReduceSum", mask, graph.axis(1), keepdims=1), graph.number(1))
    return graph.node("Div", total, count)
