"""Scores pairs with a verifier's files, as the service does: int8 and without padding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from api.embedders.minilm import load_session, load_tokenizer
from api.errors import SettingsError
from training.model_folder import TOKENIZER, WEIGHTS, InvalidModel
from training.onnx_file import MAX_TOKENS, Array
from training.pairs import Pair

PAIRS_AT_ONCE: Final = 32


class Scorer:
    """A loaded verifier with one computing thread."""

    def __init__(self, folder: Path) -> None:
        """Loads the model. Raises `InvalidModel`."""
        try:
            self._tokenizer = load_tokenizer(folder / TOKENIZER, "tokenizer")
            self._session = load_session(folder / WEIGHTS, "verifier")
        except SettingsError as error:
            raise InvalidModel(str(error)) from error
        limit = (self._tokenizer.truncation or {}).get("max_length", MAX_TOKENS)
        self._tokenizer.enable_truncation(limit, strategy="longest_first")
        self._inputs = [node.name for node in self._session.get_inputs()]

    def logits(self, pairs: Sequence[Pair]) -> Array:
        """Returns one logit per pair, in order. The cached question is the first of a pair."""
        encodings = [self._tokenizer.encode(pair.first, pair.second) for pair in pairs]
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for place, encoding in enumerate(encodings):
            by_length[len(encoding.ids)].append(place)
        found = np.zeros(len(pairs))
        for places in by_length.values():
            for start in range(0, len(places), PAIRS_AT_ONCE):
                batch = places[start : start + PAIRS_AT_ONCE]
                ids = np.array([encodings[place].ids for place in batch], np.int64)
                types = np.array([encodings[place].type_ids for place in batch], np.int64)
                feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
                (rows,) = self._session.run(None, {name: feed[name] for name in self._inputs})
                found[batch] = np.asarray(rows, np.float64).reshape(len(batch), -1)[:, -1]
        return found


def labels(pairs: Sequence[Pair]) -> Array:
    """Returns 1 for each positive pair and 0 for each other one."""
    return np.array([pair.same for pair in pairs], np.float64)
