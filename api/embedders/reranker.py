"""The re-ranker in the worker's process (RERANK_MODEL_PATH): an ONNX cross-encoder in one thread.

`CrossEncoder` scores pairs of a question and a text, synchronously. `ScoringQueue` runs callers one after the other,
because in parallel none would finish in time.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from api.cancellation import LagTimeout
from api.embedders.minilm import ModelFiles, files_at, load_session, load_tokenizer
from api.errors import RerankingUnavailable, SettingsError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Encoding, Tokenizer

SETTING: Final = "RERANK_MODEL_PATH"
MAX_TOKENS: Final = 512
"""Of a question and a text together, unless the tokenizer's file has a limit."""
INPUTS: Final = frozenset(("input_ids", "attention_mask", "token_type_ids"))

Logits: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


class TextPair(NamedTuple):
    """A question and a text that the model reads together."""

    question: str
    text: str


class CrossEncoder:
    """The loaded model with one computing thread. Not thread-safe."""

    def __init__(self, files: ModelFiles, setting: str = SETTING) -> None:
        """Loads the model and scores sample pairs.

        Raises `SettingsError` that names `setting` and says what is wrong with the files.
        """
        self._files = files
        self._setting = setting
        self._tokenizer = load_tokenizer(files.tokenizer, setting)
        self.max_tokens = _truncate(self._tokenizer)
        self._session = load_session(files.weights, setting)
        self._inputs = _inputs(self._session, files.weights, setting)
        self._output = _output(self._session)
        self._verify()

    @property
    def digest(self) -> str:
        """The first 12 hex digits of a SHA-256 over weights and tokenizer (0.1 s for 100 MB)."""
        digest = hashlib.sha256()
        for path in (self._files.weights, self._files.tokenizer):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:12]

    def score(self, pairs: Sequence[TextPair]) -> list[float]:
        """Returns the relevance of each text to its question, 0 to 1, in order, as `logits` computes it."""
        return [0.5 * (1 + math.tanh(logit / 2)) for logit in self.logits(pairs)]  # a sigmoid that cannot overflow

    def logits(self, pairs: Sequence[TextPair]) -> list[float]:
        """Returns the logit of each pair, in order. Truncates the longer part of long pairs first.

        Pairs of equal length run together, so none is padded and a score does not depend on the other pairs of a batch.
        Raises the runtime's errors, and `ValueError` if a score is not finite.
        """
        encodings = [self._tokenizer.encode(_valid(one.question), _valid(one.text)) for one in pairs]
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for place, encoding in enumerate(encodings):
            by_length[len(encoding.ids)].append(place)
        scored = [0.0] * len(pairs)
        for places in by_length.values():
            found = self._run([encodings[place] for place in places])
            for place, one in zip(places, _one_logit_each(found), strict=True):
                scored[place] = one
        return scored

    def _run(self, encodings: Sequence[Encoding]) -> Logits:
        """Returns the raw output: (pairs, outputs of the model)."""
        ids = np.array([one.ids for one in encodings], dtype=np.int64)
        types = np.array([one.type_ids for one in encodings], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}
        (found,) = self._session.run([self._output], {name: feed[name] for name in self._inputs})
        logits: Logits = np.asarray(found, dtype=np.float64)
        return logits

    def _verify(self) -> None:
        """Tests the model with sample pairs, because the file may not declare the output's shape."""
        short = [self._tokenizer.encode("What is it?", "It is this.")] * 2
        long = [self._tokenizer.encode("What is it?", "this " * self.max_tokens)]
        try:
            logits = self._run(short)
            self._run(long)
        except Exception as error:  # the runtime's errors share no public base below Exception
            reason = str(error).partition("\n")[0]
            raise SettingsError(
                f"{self._setting}: {self._files.weights} cannot score a question and a text: {reason}"
            ) from error
        if logits.shape not in {(2,), (2, 1), (2, 2)}:
            raise SettingsError(
                f"{self._setting}: {self._files.weights} is not a cross-encoder: for two pairs its output has the "
                f"shape {logits.shape}, not one or two numbers per pair"
            )


def _valid(text: str) -> str:
    """Replaces lone surrogates (JSON may contain them), which are not valid text and would fail the whole batch."""
    return text.encode("utf-8", "replace").decode()


def _truncate(tokenizer: Tokenizer) -> int:
    """Enables truncation and returns the limit."""
    own = tokenizer.truncation
    limit = int(own["max_length"]) if own else MAX_TOKENS
    tokenizer.enable_truncation(limit, strategy="longest_first")
    return limit


def _inputs(session: InferenceSession, weights: Path, setting: str) -> tuple[str, ...]:
    names = tuple(node.name for node in session.get_inputs())
    if "input_ids" not in names or not INPUTS.issuperset(names):
        expected = ", ".join(sorted(INPUTS))
        raise SettingsError(
            f"{setting}: {weights} is not a cross-encoder: its inputs are {', '.join(names)}, not among {expected}"
        )
    return names


def _output(session: InferenceSession) -> str:
    names: list[str] = [node.name for node in session.get_outputs()]
    return "logits" if "logits" in names else names[0]


def _one_logit_each(logits: Logits) -> list[float]:
    """Returns the logit of relevant, or the difference if the model also has one of irrelevant."""
    if not np.isfinite(logits).all():
        raise ValueError("a score is not finite")
    rows = logits.reshape(len(logits), -1)
    found: list[float] = (rows[:, 1] - rows[:, 0] if rows.shape[1] == 2 else rows[:, 0]).tolist()
    return found


PAIRS_PER_BATCH: Final = 4
"""Small batches, so that the thread soon notices a cancelled caller or a waiting user."""
SMOOTHING: Final = 0.2
"""Weight of the last batch in the estimated time per pair."""


@dataclass(eq=False, slots=True)
class _ScoreCall:
    pairs: Sequence[TextPair]
    result: asyncio.Future[list[float]]
    scored: list[float] = field(default_factory=list)

    @property
    def left(self) -> int:
        return 0 if self.result.done() else len(self.pairs) - len(self.scored)


class ScoringQueue:
    """Runs `score` in `thread`, one batch at a time. Callers run in order, users before background work.

    A call that would not finish in time fails at once. Under overload some calls succeed, and none waits only to fail.
    """

    def __init__(
        self,
        score: Callable[[Sequence[TextPair]], list[float]],
        thread: Executor,
        name: str = "re-ranker",
        unavailable: type[Exception] = RerankingUnavailable,
        batch: int = PAIRS_PER_BATCH,
    ) -> None:
        """`unavailable`: the error for callers. `batch`: the most pairs that run together."""
        self._score = score
        self._thread = thread
        self._name = name
        self._unavailable = unavailable
        self._batch = batch
        self._users: deque[_ScoreCall] = deque()
        self._background: deque[_ScoreCall] = deque()
        self._batches: asyncio.Task[None] | None = None
        self._pair_seconds = 0.0
        self._closed = False

    async def scores(self, pairs: Sequence[TextPair], seconds: float, *, background: bool = False) -> list[float]:
        """Returns a score per pair, in order, within `seconds`. Raises `unavailable`."""
        if self._closed:
            raise self._error("is closed")
        if not pairs:
            return []
        self._require_capacity(len(pairs), seconds, background=background)
        call = _ScoreCall(pairs, asyncio.get_running_loop().create_future())
        (self._background if background else self._users).append(call)
        if self._batches is None or self._batches.done():
            self._batches = asyncio.create_task(self._run_batches())
        try:
            with LagTimeout(seconds):
                return await call.result
        except TimeoutError as error:
            raise self._error(f"took longer than {seconds:g} s") from error

    async def close(self) -> None:
        """Fails the waiting callers. A running batch finishes in the thread, and its result is dropped."""
        self._closed = True
        if self._batches is not None:
            self._batches.cancel()
            await asyncio.wait([self._batches])
        for call in (*self._users, *self._background):
            self._fail(call, "is closed")

    def _require_capacity(self, pairs: int, seconds: float, *, background: bool) -> None:
        """Always accepts a call if the queue is empty, because only running it updates the estimate."""
        ahead = sum(call.left for call in (*self._users, *(self._background if background else ())))
        if ahead and (ahead + pairs) * self._pair_seconds > seconds:
            raise self._error(f"cannot finish within {seconds:g} s")

    async def _run_batches(self) -> None:
        while (call := self._next_call()) is not None:
            await self._run_batch(call)

    def _next_call(self) -> _ScoreCall | None:
        """Returns the next call, and removes calls that have their result or gave up."""
        for queue in (self._users, self._background):
            while queue and not queue[0].left:
                queue.popleft()
            if queue:
                return queue[0]
        return None

    async def _run_batch(self, call: _ScoreCall) -> None:
        start = len(call.scored)
        pairs = call.pairs[start : start + self._batch]
        began = time.perf_counter()
        try:
            scored = await asyncio.get_running_loop().run_in_executor(self._thread, self._score, pairs)
        except Exception as error:  # noqa: BLE001 - the runtime's errors have no common base; the caller needs each
            self._fail(call, f"failed: {error}")
            return
        self._update_estimate((time.perf_counter() - began) / len(pairs))
        call.scored += scored
        if len(call.scored) == len(call.pairs) and not call.result.done():
            call.result.set_result(call.scored)

    def _update_estimate(self, seconds: float) -> None:
        known = self._pair_seconds
        self._pair_seconds = seconds if known == 0 else known + SMOOTHING * (seconds - known)

    def _error(self, why: str) -> Exception:
        return self._unavailable(f"the {self._name} {why}")

    def _fail(self, call: _ScoreCall, why: str) -> None:
        if not call.result.done():
            call.result.set_exception(self._error(why))


class OnnxReranker:
    """A re-ranker. Use `OnnxReranker.open`."""

    def __init__(self, fingerprint: str, queue: ScoringQueue, timeout: float) -> None:
        self.fingerprint = fingerprint
        self._queue = queue
        self._timeout = timeout

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str, timeout: float) -> AsyncIterator[OnnxReranker]:  # noqa: ASYNC109 - of `scores`
        """Loads the model in its thread and closes it on exit.

        `path` is RERANK_MODEL_PATH. `timeout` is the time in seconds for one call of `scores`, including its wait.
        Raises `SettingsError` if the model cannot be loaded or is not a cross-encoder.
        """
        files = files_at(path, SETTING)
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reranker")
        try:
            model, fingerprint = await asyncio.get_running_loop().run_in_executor(thread, _load, files)
            queue = ScoringQueue(model.score, thread)
            try:
                yield cls(fingerprint, queue, timeout)
            finally:
                await queue.close()
        finally:
            await asyncio.to_thread(thread.shutdown)

    async def scores(self, question: str, texts: Sequence[str], *, background: bool = False) -> list[float]:
        """Returns the relevance of each text to the question, 0 to 1, in order. Raises `RerankingUnavailable`."""
        return await self._queue.scores(
            [TextPair(question, text) for text in texts], self._timeout, background=background
        )


def _load(files: ModelFiles) -> tuple[CrossEncoder, str]:
    model = CrossEncoder(files)
    return model, model.digest
