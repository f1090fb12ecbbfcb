"""A cross-encoder as ONNX: a question and a text in, read together, a verdict out. Synchronous; who calls it brings
the thread.

Many questions, one thread that judges: one after the other, since together none would be ready in time.

The re-ranker inside the worker's own process (RERANK_MODEL_PATH): a cross-encoder in one thread beside the loop.
"""

from __future__ import annotations

import asyncio
import hashlib
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


SLICE: Final = 4
"""Pairs that the thread judges at a stretch: so soon it sees that a caller has gone, or that a user waits."""
RECENT: Final = 0.2
"""What the last slice weighs in the time that a pair is expected to take."""


@dataclass(eq=False, slots=True)
class _Call:
    pairs: Sequence[Pair]
    result: asyncio.Future[list[float]]
    verdicts: list[float] = field(default_factory=list)

    @property
    def left(self) -> int:
        return 0 if self.result.done() else len(self.pairs) - len(self.verdicts)


class JudgingLine:
    """Runs `judge` in `thread`, a slice at a time. Who comes first is ready first; users go before background work.

    Who would not be ready in time is told so at once: where more is asked than can be done, some is done, and nobody
    waits for nothing.
    """

    def __init__(self, judge: Callable[[Sequence[Pair]], list[float]], thread: Executor) -> None:
        self._judge = judge
        self._thread = thread
        self._users: deque[_Call] = deque()
        self._background: deque[_Call] = deque()
        self._turns: asyncio.Task[None] | None = None
        self._pair_seconds = 0.0
        self._closed = False

    async def judged(self, pairs: Sequence[Pair], seconds: float, *, background: bool = False) -> list[float]:
        """A verdict for each pair, in order, within `seconds`. Raises `RerankingUnavailable`."""
        if self._closed:
            raise RerankingUnavailable("the re-ranker is closed")
        if not pairs:
            return []
        self._expect_room(len(pairs), seconds, background=background)
        call = _Call(pairs, asyncio.get_running_loop().create_future())
        (self._background if background else self._users).append(call)
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._take_turns())
        try:
            with LagTimeout(seconds):
                return await call.result
        except TimeoutError as error:
            raise RerankingUnavailable(f"the re-ranker took longer than {seconds:g} s") from error

    async def close(self) -> None:
        """Fails who still waits; a slice that runs in the thread ends there, its result unused."""
        self._closed = True
        if self._turns is not None:
            self._turns.cancel()
            await asyncio.wait([self._turns])
        for call in (*self._users, *self._background):
            _fail(call, "the re-ranker is closed")

    def _expect_room(self, pairs: int, seconds: float, *, background: bool) -> None:
        """With nobody ahead it is always tried: the time that a pair takes is known from trying alone."""
        ahead = sum(call.left for call in (*self._users, *(self._background if background else ())))
        if ahead and (ahead + pairs) * self._pair_seconds > seconds:
            raise RerankingUnavailable(f"the re-ranker has more to do than {seconds:g} s allow")

    async def _take_turns(self) -> None:
        while (call := self._first()) is not None:
            await self._take(call)

    def _first(self) -> _Call | None:
        """Whose turn it is. Those that have their result, or gave up, leave the line."""
        for line in (self._users, self._background):
            while line and not line[0].left:
                line.popleft()
            if line:
                return line[0]
        return None

    async def _take(self, call: _Call) -> None:
        start = len(call.verdicts)
        pairs = call.pairs[start : start + SLICE]
        began = time.perf_counter()
        try:
            verdicts = await asyncio.get_running_loop().run_in_executor(self._thread, self._judge, pairs)
        except Exception as error:  # noqa: BLE001 - the runtime's errors share no base; the caller must hear of each
            _fail(call, f"the re-ranker failed: {error}")
            return
        self._learn((time.perf_counter() - began) / len(pairs))
        call.verdicts += verdicts
        if len(call.verdicts) == len(call.pairs) and not call.result.done():
            call.result.set_result(call.verdicts)

    def _learn(self, seconds: float) -> None:
        known = self._pair_seconds
        self._pair_seconds = seconds if known == 0 else known + RECENT * (seconds - known)


def _fail(call: _Call, why: str) -> None:
    if not call.result.done():
        call.result.set_exception(RerankingUnavailable(why))


class OnnxReranker:
    """Implements `ports.Reranker`. Made by `OnnxReranker.open`."""

    def __init__(self, fingerprint: str, line: JudgingLine, timeout: float) -> None:
        self.fingerprint = fingerprint
        self._line = line
        self._timeout = timeout

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str, timeout: float) -> AsyncIterator[OnnxReranker]:  # noqa: ASYNC109 - of `scores`
        """Loads the model in its thread and closes it on exit.

        `path` is RERANK_MODEL_PATH, `timeout` the seconds that one `scores` may take, waiting included.
        Raises `SettingsError` when the model is not to be had, or is no cross-encoder.
        """
        files = files_at(path, SETTING)
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reranker")
        try:
            model, fingerprint = await asyncio.get_running_loop().run_in_executor(thread, _load, files)
            line = JudgingLine(model.judge, thread)
            try:
                yield cls(fingerprint, line, timeout)
            finally:
                await line.close()
        finally:
            await asyncio.to_thread(thread.shutdown)

    async def scores(self, question: str, texts: Sequence[str], *, background: bool = False) -> list[float]:
        """The relevance of each text, 0 to 1, in order. `background` work waits behind users.

        Raises `RerankingUnavailable` on a fault or after its deadline: the passages keep their order.
        """
        return await self._line.judged([Pair(question, text) for text in texts], self._timeout, background=background)


def _load(files: ModelFiles) -> tuple[CrossEncoder, str]:
    model = CrossEncoder(files)
    return model, model.digest
