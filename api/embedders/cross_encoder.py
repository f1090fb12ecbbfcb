"""A cross-encoder as ONNX: a question and a text in, read together, a verdict out. Synchronous; who calls it brings
the thread.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from api.embedders.onnx_files import ModelFiles, load_session, load_tokenizer
from api.errors import SettingsError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Encoding, Tokenizer

SETTING: Final = "RERANK_MODEL_PATH"
MAX_TOKENS: Final = 512
"""Of a question and a text together, where the tokenizer's file says nothing else."""
INPUTS: Final = frozenset(("input_ids", "attention_mask", "token_type_ids"))

Logits: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


class Pair(NamedTuple):
    """What is read together."""

    question: str
    text: str


class CrossEncoder:
    """The loaded model, one thread of computation. Safe to call from one thread at a time."""

    def __init__(self, files: ModelFiles) -> None:
        """Loads, and reads two pairs as a trial. Raises `SettingsError` that says what is wrong with the files."""
        self._files = files
        self._tokenizer = load_tokenizer(files.tokenizer, SETTING)
        self.max_tokens = _cuts(self._tokenizer)
        self._session = load_session(files.weights, SETTING)
        self._inputs = _inputs(self._session, files.weights)
        self._output = _output(self._session)
        self._try()

    @property
    def digest(self) -> str:
        """12 hex digits over weights and tokenizer (0.1 s for 100 MB)."""
        digest = hashlib.sha256()
        for path in (self._files.weights, self._files.tokenizer):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:12]

    def judge(self, pairs: Sequence[Pair]) -> list[float]:
        """How relevant each text is to its question, 0 to 1, in order. What is too long is cut, the longer part first.

        Pairs of equal length are read together, so that none is padded and a verdict does not depend on the company of
        its pair. Raises whatever the runtime raises, and `ValueError` for a verdict that is no number.
        """
        encodings = [self._tokenizer.encode(_valid(one.question), _valid(one.text)) for one in pairs]
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for place, encoding in enumerate(encodings):
            by_length[len(encoding.ids)].append(place)
        verdicts = [0.0] * len(pairs)
        for places in by_length.values():
            logits = self._run([encodings[place] for place in places])
            for place, verdict in zip(places, _verdicts(logits), strict=True):
                verdicts[place] = verdict
        return verdicts

    def _run(self, encodings: Sequence[Encoding]) -> Logits:
        """(pairs, whatever the model has)."""
        ids = np.array([one.ids for one in encodings], dtype=np.int64)
        types = np.array([one.type_ids for one in encodings], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
        (found,) = self._session.run([self._output], {name: feed[name] for name in self._inputs})
        logits: Logits = np.asarray(found, dtype=np.float64)
        return logits

    def _try(self) -> None:
        """What a model is can be seen by what it does: its file need not tell the shape of its output."""
        short = [self._tokenizer.encode("What is it?", "It is this.")] * 2
        long = [self._tokenizer.encode("What is it?", "this " * self.max_tokens)]
        try:
            logits = self._run(short)
            self._run(long)
        except Exception as error:  # the runtime's errors share no public base below Exception
            reason = str(error).partition("\n")[0]
            raise SettingsError(
                f"{SETTING}: {self._files.weights} can not read a question with a text: {reason}"
            ) from error
        if logits.shape not in {(2,), (2, 1), (2, 2)}:
            raise SettingsError(
                f"{SETTING}: {self._files.weights} is no cross-encoder: for two pairs its output has the shape "
                f"{logits.shape}, not one or two numbers for each"
            )


def _valid(text: str) -> str:
    """A lone surrogate (JSON can carry one) is no valid text: it must not fail the batch it is in."""
    return text.encode("utf-8", "replace").decode()


def _cuts(tokenizer: Tokenizer) -> int:
    """Has it cut what is too long; where."""
    own = tokenizer.truncation
    limit = int(own["max_length"]) if own else MAX_TOKENS
    tokenizer.enable_truncation(limit, strategy="longest_first")
    return limit


def _inputs(session: InferenceSession, weights: Path) -> tuple[str, ...]:
    names = tuple(node.name for node in session.get_inputs())
    if "input_ids" not in names or not INPUTS.issuperset(names):
        expected = ", ".join(sorted(INPUTS))
        raise SettingsError(
            f"{SETTING}: {weights} is no cross-encoder: it takes {', '.join(names)}, not input_ids of {expected}"
        )
    return names


def _output(session: InferenceSession) -> str:
    names: list[str] = [node.name for node in session.get_outputs()]
    return "logits" if "logits" in names else names[0]


def _verdicts(logits: Logits) -> list[float]:
    """One number is a logit (sigmoid), two are those of irrelevant and relevant (softmax)."""
    if not np.isfinite(logits).all():
        raise ValueError("a verdict is no number")
    rows = logits.reshape(len(logits), -1)
    logit = rows[:, 1] - rows[:, 0] if rows.shape[1] == 2 else rows[:, 0]
    verdicts: list[float] = (0.5 * (1 + np.tanh(logit / 2))).tolist()  # the sigmoid, without its overflow
    return verdicts
