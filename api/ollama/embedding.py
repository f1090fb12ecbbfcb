"""The embedder behind Ollama's /api/embed, and /api/embed as a client calls it.

Probes find out which scripts a model can read: it gives different vectors to different texts of such a script.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import re
import time
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import numpy as np
import orjson

from api.cancellation import LagTimeout, cancel_and_wait, log_failure, raise_if_cancelled
from api.errors import EmbeddingUnavailable, StoreUnavailable, UpstreamError, UpstreamFault, without_frames
from api.languages.identify import ANY_SCRIPT, LATIN, script_of, scripts_of
from api.ollama.models import OllamaModels, Pinned
from api.ollama.pool import OllamaPool, with_one_retry
from api.values import EmbedderIdentity, Embedding, EmbeddingRequest, Embeddings, Retry, full_model_name

PROBES: Final = {
    "HAN": ("天空很蓝", "报销发票", "狗咬邮差"),
    "KANA": ("そらがあおい", "いぬとさんぽ", "おかねをはらう"),
    "HANGUL": ("하늘이 파랗다", "비용을 청구함", "개가 물었어요"),
    "CYRILLIC": ("голубое небо", "оплата счёта", "злая собака"),
    "GREEK": ("γαλάζιος ουρανός", "πληρωμή λογαριασμού", "άγριο σκυλί"),
    "ARABIC": ("السماء زرقاء", "دفع الفاتورة", "كلب شرس"),
    "HEBREW": ("השמיים כחולים", "תשלום חשבון", "כלב נושך"),
    "DEVANAGARI": ("आसमान नीला", "बिल भुगतान", "कुत्ता काटा"),
    "BENGALI": ("আকাশ নীল", "বিল পরিশোধ", "কুকুর কামড়"),
    "TAMIL": ("வானம் நீலம்", "கட்டணம் செலுத்து", "நாய் கடி"),
    "TELUGU": ("ఆకాశం నీలం", "బిల్లు చెల్లింపు", "కుక్క కాటు"),
    "THAI": ("ท้องฟ้าสีคราม", "จ่ายใบแจ้งหนี้", "สุนัขกัดคน"),
    "KHMER": ("មេឃពណ៌ខៀវ", "បង់វិក្កយបត្រ", "ឆ្កែខាំមនុស្ស"),
    "GEORGIAN": ("ცისფერი ცა", "ანგარიშის გადახდა", "ავი ძაღლი"),
    "ARMENIAN": ("կապույտ երկինք", "հաշվի վճարում", "չար շուն"),
}
"""Three unrelated texts of about equal length for each script: a blue sky, a bill, a dog."""
ALIKE: Final = 0.9
"""The cosine from which the model cannot tell two of them apart. Multilingual models stay below 0.85."""
LONG_WORD: Final = 100
"""Letters of the longest word that WordPiece splits."""
PIECES: Final = 200
"""Words and marks of a text that every model reads: the smallest models stop at 256 tokens."""

_PIECE: Final = re.compile(r"\w+|[^\w\s]")
_LONG: Final = re.compile(rf"\w{{{LONG_WORD + 1},}}")


def scripts_to_read(texts: Iterable[str]) -> set[str]:
    """Returns the scripts of the texts, except Latin, which every model reads."""
    return {script for text in texts if not text.isascii() for script in scripts_of(text)} - {LATIN}


def is_read(vectors: np.ndarray[Any, np.dtype[np.float32]]) -> bool:
    """Returns whether a model reads a script: no two of the unit vectors of its probes are alike."""
    cosines = vectors @ vectors.T
    return bool(np.all(cosines[~np.eye(len(vectors), dtype=bool)] < ALIKE))


def unread_of(text: str, read: Collection[str]) -> tuple[str, ...]:
    """Returns the parts of a text that a model may not be able to read, in order and case-folded.

    These are letters of scripts that are not in `read`, symbols, very long words, and the end of a very long text.
    """
    end = _surely_read(text)
    runs = [] if text.isascii() else list(_strange_runs(text[:end], read))
    if len(text) > LONG_WORD:
        runs += (found.span() for found in _LONG.finditer(text[:end]))
    unread = [text[start:stop].casefold() for start, stop in sorted(runs)]
    if rest := text[end:].strip():
        unread.append(rest.casefold())
    return tuple(unread)


def _surely_read(text: str) -> int:
    if len(text) > PIECES:
        for count, piece in enumerate(_PIECE.finditer(text)):
            if count == PIECES:
                return piece.start()
    return len(text)


def _strange_runs(text: str, read: Collection[str]) -> Iterator[tuple[int, int]]:
    start = -1
    for place, character in enumerate(text):
        if _is_strange(character, read) or (start >= 0 and unicodedata.category(character)[0] == "M"):
            start = place if start < 0 else start
        elif start >= 0:
            yield start, place
            start = -1
    if start >= 0:
        yield start, len(text)


def _is_strange(character: str, read: Collection[str]) -> bool:
    if character.isascii():
        return False
    script = script_of(character)
    if script == ANY_SCRIPT:
        return unicodedata.category(character)[0] == "S"
    return script != LATIN and script not in read


OnIdentity = Callable[[EmbedderIdentity], Awaitable[None]]

RESOLVE_PAUSE: Final = 2.0
"""Seconds between a failed attempt to learn the identity and the next."""
LOAD_LIMIT: Final = 300.0
"""Seconds that a call which outlived its deadline may go on, so that Ollama finishes loading the model."""
ANSWER_LIMIT: Final = 64 * 1024 * 1024
NOT_ONE_A_TEXT: Final = "Ollama's embeddings are not one vector a text."


class OllamaEmbedder:
    """Implements `ports.BackendEmbedder`. Made by `OllamaEmbedder.open`."""

    def __init__(
        self,
        pool: OllamaPool,
        model: str,
        timeout: float,
        remembered: EmbedderIdentity | None = None,
        on_identity: OnIdentity | None = None,
        resolve_pause: float = RESOLVE_PAUSE,
        pinned: Pinned | None = None,
        retry: Retry = "here",
    ) -> None:
        self._keep_alive = (pinned or Pinned()).keep_alive_field
        self._retry = retry
        self._pool = pool
        self._model = model
        self._timeout = timeout
        self._remembered = remembered
        self._on_identity = on_identity
        self._resolve_pause = resolve_pause
        self._models = OllamaModels(pool, timeout)
        self.known: EmbedderIdentity | None = None
        """The embedder's identity, once Ollama has confirmed it."""
        self._resolving = asyncio.Lock()
        self._failure: EmbeddingUnavailable | None = None
        self._failed_at = 0.0
        self._loading: asyncio.Task[bytes] | None = None
        self._scripts: dict[str, bool] = {}
        """True for each script that the model reads; scripts not probed yet are missing."""
        self._probed_at = -math.inf

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        pool: OllamaPool,
        model: str,
        timeout: float,  # noqa: ASYNC109 - of `embed`
        *,
        remembered: EmbedderIdentity | None = None,
        on_identity: OnIdentity | None = None,
        resolve_pause: float = RESOLVE_PAUSE,
        pinned: Pinned | None = None,
        retry: Retry = "here",
    ) -> AsyncIterator[OllamaEmbedder]:
        """`model` is EMBED_MODEL, `timeout` the seconds that one `embed` may take unless it brings its own.

        `remembered` is used until Ollama has answered once; `on_identity` is then called with its answer. No I/O.
        """
        embedder = cls(pool, model, timeout, remembered, on_identity, resolve_pause, pinned, retry)
        try:
            yield embedder
        finally:
            if embedder._loading is not None:
                await cancel_and_wait([embedder._loading])

    async def identity(self) -> EmbedderIdentity:
        """Returns the embedder's identity, asking Ollama once. Raises `EmbeddingUnavailable` while it is unknown."""
        if self.known is None:
            async with self._resolving:
                if self.known is None:
                    return await self._resolved()
        return self.known

    async def embed(
        self,
        texts: Sequence[str],
        *,
        tenant: str,
        timeout: float | None = None,  # noqa: ASYNC109
        retry: Retry | None = None,
    ) -> list[Embedding]:
        """Returns one embedding for each text, in order. The error raised has the `UpstreamError` as its cause.

        `timeout` and `retry` override those of the constructor.
        """
        if not texts:
            return []
        seconds = self._timeout if timeout is None else timeout
        ends = time.monotonic() + seconds
        vectors = await self._embedded(texts, seconds, retry or self._retry)
        known = self.known or self._remembered
        if known is not None and vectors.shape[1] != known.dimension:
            # Another model answers under this name: learn who it is before the next vector is believed.
            self.known = self._remembered = None
            self._scripts.clear()
            detail = f"'{self._model}' gave {vectors.shape[1]} dimensions, not {known.dimension}"
            raise EmbeddingUnavailable(detail) from UpstreamError(UpstreamFault.MODEL_NOT_FOUND, detail)
        read = await self._scripts_read(texts, ends)
        return [Embedding(row.tobytes(), unread_of(text, read)) for row, text in zip(vectors, texts, strict=True)]

    async def _scripts_read(self, texts: Sequence[str], ends: float) -> set[str]:
        """Tests each script once, before `ends`. A script that was not tested yet counts as unread."""
        missing = [one for one in scripts_to_read(texts) if one in PROBES and one not in self._scripts]
        left = ends - time.monotonic()
        if missing and left > 0 and time.monotonic() - self._probed_at >= self._resolve_pause:
            probes = [text for script in missing for text in PROBES[script]]
            try:
                rows = await self._embedded(probes, left, "spent")
            except EmbeddingUnavailable:
                self._probed_at = time.monotonic()
            else:
                self._scripts |= {
                    script: is_read(own) for script, own in zip(missing, np.split(rows, len(missing)), strict=True)
                }
        return {script for script, is_known in self._scripts.items() if is_known}

    async def _resolved(self) -> EmbedderIdentity:
        """The identity as Ollama says it, else the remembered one. After a failure Ollama is left alone for a while."""
        if self._failure is None or time.monotonic() - self._failed_at >= self._resolve_pause:
            try:
                identity = await self._resolve()
            except EmbeddingUnavailable as error:
                self._failure, self._failed_at = without_frames(error), time.monotonic()
            else:
                self.known, self._failure = identity, None
                if self._on_identity is not None:
                    with contextlib.suppress(StoreUnavailable):
                        await self._on_identity(identity)
                return identity
        if self._remembered is not None:
            return self._remembered
        raise EmbeddingUnavailable(str(self._failure)) from (self._failure and self._failure.__cause__)

    async def _resolve(self) -> EmbedderIdentity:
        try:
            found = await self._models.find(self._model)
        except UpstreamError as error:
            raise EmbeddingUnavailable(error.detail) from error
        dimension = (await self._embedded(["dimension"], self._timeout, self._retry)).shape[1]
        digest = found.digest if found is not None else ""
        material = f"{full_model_name(self._model)}\n{digest}\n{dimension}"
        fingerprint = hashlib.sha256(material.encode()).hexdigest()[:10]
        return EmbedderIdentity(self._model, dimension, fingerprint)

    async def _embedded(self, texts: Sequence[str], seconds: float, retry: Retry) -> Rows:
        """(texts, dimension) rows of unit length, within so many seconds. Raises `EmbeddingUnavailable`."""
        body = orjson.dumps(
            {"model": self._model, "input": [_valid(text) for text in texts], **self._keep_alive},
        )
        call = asyncio.create_task(self._called(body, retry))
        log_failure(call, UpstreamError)  # it may outlive its deadline
        try:
            with LagTimeout(seconds):
                answer = await asyncio.shield(call)
            return _rows(answer, len(texts))
        except TimeoutError:
            self._let_it_load(call)
            detail = f"Embedding took longer than {seconds:.3g} s."
            raise EmbeddingUnavailable(detail) from UpstreamError(UpstreamFault.TOTAL_TIMEOUT, detail)
        except UpstreamError as error:
            raise EmbeddingUnavailable(error.detail) from error
        except asyncio.CancelledError:
            call.cancel()
            raise
        finally:
            del call  # it holds its error, which refers to this frame

    def _let_it_load(self, call: asyncio.Task[bytes]) -> None:
        """One call at a time outlives its deadline: a client that leaves makes Ollama give up loading the model."""
        if self._loading is None or self._loading.done():
            self._loading = call
            asyncio.get_running_loop().call_later(LOAD_LIMIT, call.cancel)
        else:
            call.cancel()

    async def _called(self, body: bytes, retry: Retry) -> bytes:
        try:
            return await self._call(body, retry)
        except UpstreamError as error:
            if not await self._pool.retries.may_retry(error, retry):
                raise
        return await self._call(body, "spent")

    async def _call(self, body: bytes, retry: Retry) -> bytes:
        self._pool.retries.called(retry)
        async with self._pool.exchange("/api/embed", body, model=self._model) as exchange:
            await exchange.open()
            return await exchange.read(ANSWER_LIMIT)


Rows = np.ndarray[Any, np.dtype[np.float32]]


def _valid(text: str) -> str:
    """Replaces lone surrogates: JSON can contain them, but they cannot be encoded."""
    return text.encode("utf-8", "replace").decode()


def as_rows(vectors: Any, count: int) -> Rows:
    """A row a text. Raises `ValueError` or `TypeError` for what is not one vector of numbers for each."""
    rows: Rows = np.asarray(vectors, dtype="<f4")
    if rows.ndim != 2 or len(rows) != count or not rows.shape[1] or not np.isfinite(rows).all():
        raise ValueError(rows.shape)
    return rows


def _rows(answer: bytes, count: int) -> Rows:
    """The embeddings of an answer, normalized. Raises `UpstreamError` when they are not `count` usable vectors."""
    try:
        rows = as_rows(orjson.loads(answer)["embeddings"], count)
    except (KeyError, TypeError, ValueError) as error:
        raise UpstreamError(UpstreamFault.INVALID_RESPONSE, NOT_ONE_A_TEXT) from error
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not np.all(np.isfinite(lengths) & (lengths > 0)):
        raise UpstreamError(UpstreamFault.INVALID_RESPONSE, NOT_ONE_A_TEXT)
    unit: Rows = (rows / lengths).astype("<f4")
    return unit


_NANOSECONDS: Final = 1_000_000_000


class OllamaEmbeddingModel:
    """Implements `ports.EmbeddingModel` over one Ollama."""

    def __init__(self, pool: OllamaPool, pinned: Pinned) -> None:
        self._pool = pool
        self._keep_alive = pinned.keep_alive_field

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """One vector per text, in order. Raises `UpstreamError`.

        One retry inside, where the request allows it.
        """
        fields = {**self._keep_alive, **request.extra, "model": request.model, "input": request.texts}
        call = partial(self._call, orjson.dumps(fields), request.model)
        deadline = asyncio.timeout(request.timeout)
        try:
            async with deadline:
                answer = await with_one_retry(call, self._pool.retries, request.retry)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise UpstreamError(UpstreamFault.TOTAL_TIMEOUT, "Ollama did not embed in time.") from error
        try:
            return _embeddings(orjson.loads(answer), len(request.texts))
        except (ValueError, KeyError, TypeError) as error:
            raise UpstreamError(UpstreamFault.INVALID_RESPONSE, NOT_ONE_A_TEXT) from error

    async def _call(self, body: bytes, model: str) -> bytes:
        async with self._pool.exchange("/api/embed", body, model=model) as exchange:
            raise_if_cancelled()  # a caller that has left sends nothing
            await exchange.open()
            return await exchange.read(ANSWER_LIMIT)


def _embeddings(fields: dict[str, Any], count: int) -> Embeddings:
    vectors = fields["embeddings"] or []  # null stands for an empty list: of no texts, it is right
    rows = as_rows(vectors, count) if count or vectors else ()
    return Embeddings(
        [row.tobytes() for row in rows],
        int(fields.get("prompt_eval_count", 0)),
        fields.get("total_duration", 0) / _NANOSECONDS,
        fields.get("load_duration", 0) / _NANOSECONDS,
    )
