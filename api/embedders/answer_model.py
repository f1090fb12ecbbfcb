"""The comparator's model: a cross-encoder that reads a question and two answers, and scores whether they say the same.

It shares its vocabulary and lower layers with the shipped verifier: its file refers to the verifier's, in the same
folder. It is loaded in its thread when it is first asked. A worker that compares no answers loads nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import math
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from api.embedders.minilm import load_session, shared_tokenizer
from api.embedders.reranker import ScoringQueue, TextPair
from api.embedders.verifier import SHIPPED
from api.errors import ComparingUnavailable

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

MODEL: Final = "answers.onnx"
"""In the folder of the shipped verifier."""
NAME: Final = "the comparator's model"
MAX_TOKENS: Final = 256
"""Of the question and both answers, with the tokens between them. Longer ones are not scored."""
MAX_CHARACTERS: Final = 6 * MAX_TOKENS
"""Of the question and both answers. Longer ones are not read at all."""
SECONDS: Final = 2.0
"""For one pair, including its wait. Nobody waits for comparisons."""
PACKAGES: Final = ("onnxruntime", "tokenizers")


class AnswerScorer:
    """The loaded model with one computing thread. Not thread-safe."""

    def __init__(self, folder: Path = SHIPPED) -> None:
        """Raises `SettingsError` if the files or the packages are missing, or do not load."""
        self._folder = folder
        self._tokenizer: Tokenizer = shared_tokenizer(folder / "tokenizer.json", NAME)
        self._session: InferenceSession = load_session(folder / MODEL, NAME)

    @property
    def version(self) -> str:
        """Identifies the model."""
        return version_of(self._folder)

    async def score(self, question: str, one: str, other: str) -> float | None:
        """Returns the mean logit of both orders, at once; None for answers that are too long.

        For commands: in a worker it would block the event loop.
        """
        pairs = both_orders(question, one, other)
        return _mean(self.logits(pairs)) if pairs else None

    def logits(self, pairs: Sequence[TextPair]) -> list[float]:
        """Returns the logit of each question and answer with another answer; NaN for those that are too long."""
        return [self._logit(pair) for pair in pairs]

    def _logit(self, pair: TextPair) -> float:
        encoding = self._tokenizer.encode(_valid(pair.question), _valid(pair.text))
        if len(encoding.ids) > MAX_TOKENS:
            return float("nan")
        ids, types = (np.array([row], np.int64) for row in (encoding.ids, encoding.type_ids))
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
        return float(np.asarray(self._session.run(["logits"], feed)[0]).item())


class AnswerModel:
    """The model in a worker's thread. Use `AnswerModel.open`."""

    def __init__(self, folder: Path, version: str, thread: ThreadPoolExecutor) -> None:
        self.version = version
        self._folder = folder
        self._scorer: AnswerScorer | None = None
        self._queue = ScoringQueue(self._scored, thread, NAME.removeprefix("the "), ComparingUnavailable, batch=2)

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path = SHIPPED) -> AsyncIterator[AnswerModel]:
        """Opens the shipped model and closes it on exit. Loads nothing yet."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="comparator")
        model = cls(folder, await asyncio.to_thread(version_of, folder), thread)
        try:
            yield model
        finally:
            await model._queue.close()
            await asyncio.to_thread(thread.shutdown)

    async def score(self, question: str, one: str, other: str) -> float | None:
        """Returns the mean logit of both orders: above 0 the answers probably say the same. None if they are too long.

        Raises `ComparingUnavailable` after a fault and at its deadline.
        """
        pairs = both_orders(question, one, other)
        return _mean(await self._queue.scores(pairs, SECONDS, background=True)) if pairs else None

    def _scored(self, pairs: Sequence[TextPair]) -> list[float]:
        self._scorer = self._scorer or AnswerScorer(self._folder)
        return self._scorer.logits(pairs)


def is_installed() -> bool:
    """Returns whether the packages and the file are there. Without them the rules decide alone."""
    return (SHIPPED / MODEL).is_file() and all(importlib.util.find_spec(name) for name in PACKAGES)


def version_of(folder: Path) -> str:
    """Returns the first 12 hex digits of the SHA-256 of the model's own file (10 ms)."""
    return hashlib.sha256((folder / MODEL).read_bytes()).hexdigest()[:12]


def both_orders(question: str, one: str, other: str) -> list[TextPair]:
    """Returns what the model reads; nothing for answers that are too long."""
    if len(question) + len(one) + len(other) > MAX_CHARACTERS:
        return []
    return [TextPair(f"{question}\n{first}", second) for first, second in ((one, other), (other, one))]


def _mean(logits: Sequence[float]) -> float | None:
    mean = sum(logits) / len(logits)
    return None if math.isnan(mean) else mean


def _valid(text: str) -> str:
    """Replaces lone surrogates (JSON may contain them), which are not valid text."""
    return text.encode("utf-8", "replace").decode()
