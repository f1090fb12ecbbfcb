"""A verifier of two layers that trains in seconds, and pairs that it can learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

HIDDEN: Final = 48
WORDS: Final = [f"w{number}" for number in range(40)]
SPECIAL: Final = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}


def tokenizer_file(path: Path) -> Path:
    """Writes a tokenizer that splits at blanks."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    vocabulary = {**SPECIAL, **{word: number for number, word in enumerate(WORDS, len(SPECIAL))}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", SPECIAL["[CLS]"]), ("[SEP]", SPECIAL["[SEP]"])],
    )
    tokenizer.save(str(path))
    return path


def tiny_weights(seed: int = 0, layers: int = 2) -> dict[str, Any]:
    """Returns random weights of the real network's shape, in small."""
    from training.network import head

    random = np.random.default_rng(seed)

    def matrix(*shape: int) -> Any:
        return random.normal(0, 0.3 / np.sqrt(shape[0]), shape).astype(np.float32)

    def norm(name: str) -> dict[str, Any]:
        return {f"{name}.weight": np.ones(HIDDEN, np.float32), f"{name}.bias": np.zeros(HIDDEN, np.float32)}

    weights = {
        "embed.words": random.normal(0, 1, (len(SPECIAL) + len(WORDS), HIDDEN)).astype(np.float32),
        "embed.positions": 0.1 * matrix(128, HIDDEN),
        "embed.types": matrix(2, HIDDEN),
        **norm("embed.norm"),
    }
    sizes = dict.fromkeys(("query", "key", "value", "attended"), (HIDDEN, HIDDEN))
    sizes |= {"wide": (HIDDEN, 2 * HIDDEN), "narrow": (2 * HIDDEN, HIDDEN)}
    for layer in range(layers):
        for name, shape in sizes.items():
            weights[f"layers.{layer}.{name}.weight"] = matrix(*shape)
            weights[f"layers.{layer}.{name}.bias"] = np.zeros(shape[1], np.float32)
        weights |= norm(f"layers.{layer}.attended_norm") | norm(f"layers.{layer}.norm")
    return weights | head(HIDDEN, seed)


def tiny_model(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """Writes an untrained model."""
    from training.judge import Calibration
    from training.model_folder import ModelFacts, write_model

    folder.mkdir(parents=True, exist_ok=True)
    source = tokenizer_file(folder / "source.json")
    write_model(folder, tiny_weights(seed, layers), source)
    ModelFacts("tiny", {}).completed(folder, Calibration(1.0, 0.0), {})
    source.unlink()
    return folder


def learnable_pairs(path: Path, count: int, seed: int = 0, *, shuffled: bool = False) -> Path:
    """Writes pairs with one answer if and only if their first words are equal. `shuffled`: with random labels."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        same = bool(random.random() < 0.5)
        first = random.integers(20)
        second = first if same else (first + 1 + random.integers(19)) % 20
        texts = [f"w{word} w{20 + random.integers(20)} w{20 + random.integers(20)}" for word in (first, second)]
        rows.append({"a": texts[0], "b": texts[1], "same": bool(random.random() < 0.5) if shuffled else same})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return path
