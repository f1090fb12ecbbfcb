"""Builds a tiny cross-encoder that prefers texts with one word and rejects texts with another.

Its vocabulary has only the words `likes` and `dislikes`. A pair's logit is 2 for each liked word minus 2 for each
disliked one, in question and text together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "likes": 4, "dislikes": 5, "breaks": 6}
WORTH = [0.0, 0.0, 0.0, 0.0, 2.0, -2.0]
"""By token. `breaks` is out of range, which makes the runtime fail."""

Output = Literal["one", "two", "flat", "three", "hidden"]


def write_cross_encoder(folder: Path, output: Output = "one", *, worth: list[float] | None = None) -> str:
    """Writes model.onnx and tokenizer.json to `folder` and returns its path. `output` is the model's
    output per pair.
    """
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(_model(output, worth or WORTH), folder / "model.onnx")
    _tokenizer().save(str(folder / "tokenizer.json"))
    return str(folder)


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    special = [(token, VOCABULARY[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special)
    return tokenizer


def _model(output: Output, worth: list[float]) -> onnx.ModelProto:
    """Sums each token's worth over the pair."""
    tables: dict[str, np.ndarray] = {
        "worth": np.array([[one] for one in worth], dtype=np.float32),
        "axis": np.array([1], dtype=np.int64),
    }
    nodes = [helper.make_node("Gather", ["worth", "input_ids"], ["hidden"], axis=0)]
    if output != "hidden":
        nodes.append(helper.make_node("ReduceSum", ["hidden", "axis"], ["summed"], keepdims=0))
    last = {"one": "summed", "flat": "flat", "two": "both", "three": "both", "hidden": "hidden"}[output]
    if output == "flat":
        nodes.append(helper.make_node("Squeeze", ["summed", "axis"], ["flat"]))
    if output in ("two", "three"):
        nodes.append(helper.make_node("Sub", ["summed", "summed"], ["zero"]))
        parts = ["zero", "summed"] if output == "two" else ["zero", "summed", "zero"]
        nodes.append(helper.make_node("Concat", parts, ["both"], axis=1))
    nodes.append(helper.make_node("Identity", [last], ["logits"]))
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["pairs", "tokens"])
    shapes: dict[str, list[str | int | None]] = {"flat": ["pairs"], "hidden": ["pairs", "tokens", 1]}
    sizes = shapes.get(output, ["pairs", "numbers"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, sizes)
    initializers = [numpy_helper.from_array(table, name) for name, table in tables.items()]
    graph = helper.make_graph(nodes, "small", [ids], [logits], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model
