"""The verifier's network in JAX: a BERT encoder over both questions and a small head. One logit per pair.

Weights are a flat dict of float32 arrays. Linear weights have the shape (inputs, outputs), as ONNX's MatMul takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

HIDDEN: Final = 384
HEADS: Final = 12
HEAD: Final = 128
EPSILON: Final = 1e-12
MASKED: Final = -1e4
"""Added to the attention of padding."""
LAYERS: Final[Mapping[int, tuple[int, ...]]] = {3: (0, 2, 4), 6: (0, 1, 2, 3, 4, 5)}
"""The layers of a network of six that one of each size starts from."""

Weights: TypeAlias = dict[str, Any]


class Tokens(NamedTuple):
    """A batch of pairs: token IDs, which of the two questions each is of (0, 1), and what is not padding (1)."""

    ids: Any
    types: Any
    mask: Any


def layer_count(weights: Mapping[str, Any]) -> int:
    """Returns the number of encoder layers."""
    return sum(name.endswith(".query.weight") for name in weights)


def shallower(weights: Weights, layers: int) -> Weights:
    """Returns the network with `layers` of its layers. Raises `ValueError` if it does not have them."""
    if layers == layer_count(weights):
        return weights
    if layer_count(weights) != max(LAYERS) or layers not in LAYERS:
        raise ValueError(f"cannot make {layers} layers from a model of {layer_count(weights)}")
    kept = {name: one for name, one in weights.items() if not name.startswith("layers.")}
    for place, layer in enumerate(LAYERS[layers]):
        kept |= {f"layers.{place}.{name}": one for name, one in _named(weights, f"layers.{layer}").items()}
    return kept


def logits(weights: Weights, tokens: Tokens, dropout: float = 0.0, key: Any = None) -> Any:
    """Returns one logit per pair: above 0 the answer to one question serves the other."""
    drop = partial(_drop, rate=dropout)
    keys = iter(jax.random.split(key, 2 * layer_count(weights) + 1)) if dropout else iter(())
    mask = tokens.mask.astype(jnp.float32)
    bias = (1 - mask)[:, None, None, :] * MASKED
    x = _embed(weights, tokens)
    for layer in range(layer_count(weights)):
        one = _named(weights, f"layers.{layer}")
        x = _norm(one, "attended_norm", x + drop(_attention(one, x, bias), key=next(keys, None)))
        inner = jax.nn.gelu(_linear(one, "wide", x), approximate=False)
        x = _norm(one, "norm", x + drop(_linear(one, "narrow", inner), key=next(keys, None)))
    features = drop(_features(x, mask, tokens.types.astype(jnp.float32)), key=next(keys, None))
    hidden = jax.nn.gelu(_linear(weights, "head.hidden", features), approximate=False)
    return _linear(weights, "head.out", hidden)[:, 0]


def _embed(weights: Weights, tokens: Tokens) -> Any:
    positions = weights["embed.positions"][None, : tokens.ids.shape[1]]
    summed = weights["embed.words"][tokens.ids] + positions + weights["embed.types"][tokens.types]
    return _norm(weights, "embed.norm", summed)


def _attention(one: Weights, x: Any, bias: Any) -> Any:
    pairs, length, hidden = x.shape
    split = (pairs, length, HEADS, hidden // HEADS)
    query, keys, values = (_linear(one, name, x).reshape(split) for name in ("query", "key", "value"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys) / np.sqrt(hidden // HEADS) + bias
    attended = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), values)
    return _linear(one, "attended", attended.reshape(x.shape))


def _features(x: Any, mask: Any, types: Any) -> Any:
    """Returns the first token, and the sum, distance and product of the questions' mean tokens."""
    first, second = (_mean(x, mask * share) for share in (1 - types, types))
    return jnp.concatenate([x[:, 0], first + second, jnp.abs(first - second), first * second], axis=1)


def _mean(x: Any, mask: Any) -> Any:
    return (x * mask[..., None]).sum(1) / jnp.maximum(mask.sum(1, keepdims=True), 1)


def _linear(weights: Weights, name: str, x: Any) -> Any:
    return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _norm(weights: Weights, name: str, x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
    return centred * scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _drop(x: Any, *, rate: float, key: Any) -> Any:
    if not rate:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


def _named(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(f"{prefix}."): one for name, one in weights.items() if name.startswith(f"{prefix}.")}


_EMBEDDINGS: Final = {
    "embed.words": "word_embeddings.weight",
    "embed.positions": "position_embeddings.weight",
    "embed.types": "token_type_embeddings.weight",
    "embed.norm.weight": "LayerNorm.weight",
    "embed.norm.bias": "LayerNorm.bias",
}
_LAYER: Final = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "attended_norm": "attention.output.LayerNorm",
    "wide": "intermediate.dense",
    "narrow": "output.dense",
    "norm": "output.LayerNorm",
}


def pretrained(path: Path, layers: Sequence[int], seed: int) -> Weights:
    """Reads MiniLM's `layers` from a safetensors file, and adds a random head."""
    from safetensors.numpy import load_file

    found = {name.removeprefix("bert."): array.astype(np.float32) for name, array in load_file(path).items()}
    weights: Weights = {ours: found[f"embeddings.{theirs}"] for ours, theirs in _EMBEDDINGS.items()}
    # MiniLM embeds one text and has never trained the type of a second: start near the first.
    first, second = weights["embed.types"]
    weights["embed.types"] = np.stack([first, first + 0.1 * (second - first)])
    for place, layer in enumerate(layers):
        for ours, theirs in _LAYER.items():
            for part in ("weight", "bias"):
                array = found[f"encoder.layer.{layer}.{theirs}.{part}"]
                weights[f"layers.{place}.{ours}.{part}"] = np.ascontiguousarray(array.T)
    return weights | head(HIDDEN, seed)


def head(hidden: int, seed: int) -> Weights:
    """Returns a random head for an encoder of `hidden` numbers per token."""
    random = np.random.default_rng(seed)
    sizes = {"head.hidden": (4 * hidden, HEAD), "head.out": (HEAD, 1)}
    made: Weights = {}
    for name, shape in sizes.items():
        limit = 1 / np.sqrt(shape[0])
        made[f"{name}.weight"] = random.uniform(-limit, limit, shape).astype(np.float32)
        made[f"{name}.bias"] = np.zeros(shape[1], np.float32)
    return made
