"""Streams answers from Ollama, with a deadline for each stage."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from types import TracebackType
from typing import Any, Final

import httpx
import orjson

from api.cancellation import log_failure, raise_if_cancelled
from api.errors import UpstreamError, UpstreamFault
from api.ollama.exchange import Exchange
from api.ollama.failures import given_up
from api.ollama.forwarded import LINE_LIMIT, AnswerPart, ForwardedAnswer, end_of, invalid
from api.ollama.models import OllamaModels, Pinned
from api.ollama.pool import OllamaPool
from api.values import ChatMessage, ForwardedRequest, GenerationEnd, GenerationRequest, Retry, Thought, Token


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds. How long connecting may take is the pool's: `PoolLimits.connect_timeout`."""

    first_token: float = 30.0
    cold_first_token: float = 300.0
    inter_token: float = 15.0
    total: float = 300.0


class Clock:
    """Deadlines of one generation, retries included. The total starts with this object and excludes pauses."""

    def __init__(self, deadlines: Deadlines, timeout: float | None = None, reading: float = 0.0) -> None:
        """`timeout`: seconds that only ever shorten the total. `reading`: seconds that Ollama needs for the prompt."""
        self._deadlines = deadlines
        if reading:
            first, cold = deadlines.first_token + reading, deadlines.cold_first_token + reading
            self._deadlines = replace(deadlines, first_token=first, cold_first_token=cold)
        self._loop = asyncio.get_running_loop()
        self._total = deadlines.total if timeout is None else min(timeout, deadlines.total)
        self._total_at = self._loop.time() + self._total

    def now(self) -> float:
        """Returns the time of the event loop."""
        return self._loop.time()

    def excludes(self, since: float) -> None:
        """Excludes the time since then from the deadlines, since a slow reader says nothing about Ollama."""
        self._total_at += self._loop.time() - since

    def inter_token(self) -> _Wait:
        """Limits the wait for the next line. Raises `UpstreamError`."""
        seconds = self._deadlines.inter_token
        return _Wait(self, self._loop.time() + seconds, UpstreamFault.INTER_TOKEN_TIMEOUT, _FELL_SILENT, seconds)

    def whole(self) -> _Wait:
        """Limits any wait to the total, if Ollama may be silent for long. Raises `UpstreamError`."""
        return _Wait(self, self._total_at)

    def first_token(self, resident: Callable[[], Awaitable[bool]]) -> _FirstWait:
        """Limits sending and the wait for the first line. Raises `UpstreamError`.

        Past the warm deadline `resident()` is asked, once: a model that is still being loaded gets the cold one. Where
        the total ends first, a slow load is still what it was, and says nothing against Ollama.
        """
        return _FirstWait(self, self._deadlines, resident)

    def at_most(self, seconds: float) -> float:
        """Returns the seconds, but no more than the total."""
        return min(seconds, self._total)

    def end_of(self, moment: float) -> float:
        """Returns the moment, but no later than the total."""
        return min(moment, self._total_at)

    def too_long(self, moment: float) -> UpstreamError | None:
        """Returns the error if a wait that ended at `moment` has used the total."""
        if moment < self._total_at:
            return None
        return UpstreamError(UpstreamFault.TOTAL_TIMEOUT, f"The whole answer took longer than {self._total:g} s.")


_FELL_SILENT: Final = "Ollama sent no further token for {:g} s."
_SILENT: Final = "Ollama sent no first token within {:.3g} s."
_NOT_LOADED: Final = "The model was not loaded within {:g} s."


class _Wait:
    """Limits a wait (`async with`). If the time ends first, raises `UpstreamError` with `fault`, or for the total."""

    def __init__(
        self,
        clock: Clock,
        moment: float,
        fault: UpstreamFault = UpstreamFault.TOTAL_TIMEOUT,
        detail: str = "",
        seconds: float = 0.0,
    ) -> None:
        self._clock = clock
        self._timeout = asyncio.timeout_at(clock.end_of(moment))
        self._fault, self._detail, self._seconds = fault, detail, seconds
        self._outlives_total = False
        """True if this error is raised even if the total expires first."""

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise self._too_late() from late

    def _too_late(self) -> UpstreamError:
        of_total = None if self._outlives_total else self._clock.too_long(self._timeout.when() or 0.0)
        return of_total or UpstreamError(self._fault, self._detail.format(self._seconds))


class _FirstWait(_Wait):
    """The wait for the first line. Its error may change while it lasts."""

    def __init__(self, clock: Clock, deadlines: Deadlines, resident: Callable[[], Awaitable[bool]]) -> None:
        cold = max(deadlines.cold_first_token, deadlines.first_token)
        until = clock.now() + cold
        super().__init__(clock, until, UpstreamFault.COLD_START_TIMEOUT, _NOT_LOADED, clock.at_most(cold))
        self._warm_seconds = deadlines.first_token
        self._resident = resident
        self._asking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        await super().__aenter__()
        self._warm = asyncio.get_running_loop().call_later(self._warm_seconds, self._ask)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._warm.cancel()
        if self._asking is not None:
            self._asking.cancel()  # a late reply of Ollama changes nothing
            self._asking = None  # it keeps its error, which refers to this wait
        await super().__aexit__(kind, error, trace)

    def _ask(self) -> None:
        self._asking = asyncio.create_task(self._judge())
        log_failure(self._asking)

    async def _judge(self) -> None:
        if not await self._resident():
            self._outlives_total = True
        elif not self._timeout.expired():
            self._fault, self._detail = UpstreamFault.FIRST_TOKEN_TIMEOUT, _SILENT
            self._seconds = self._warm_seconds
            self._timeout.reschedule(self._clock.now())


ASSUMED_SPEED: Final = 50.0
"""Tokens per second that a backend reads before it has reported its speed: that of a slow CPU."""
ASSUMED_FREE: Final = 1000
"""Tokens that need no time of their own before the speed is known: the first-token deadline covers them."""
LEAST_TOKENS: Final = 16
"""Shorter prompts say nothing about the speed."""
LEAST_SECONDS: Final = 1.0
"""Shorter readings are part of the first-token deadline."""
FADING: Final = 0.05
"""How fast a slow reading is forgotten, per faster one. A prompt whose beginning Ollama has kept is read very fast."""
MODELS: Final = 64


class ReadingSpeeds:
    """How long one backend takes to read prompts, by model: the slowest of the latest readings that it reported.

    The fleet shares them, so that a new worker knows how long a long prompt may take.
    """

    def __init__(self) -> None:
        self._seconds_per_token: dict[str, float] = {}
        self._unsent: set[str] = set()

    def learn(self, model: str, end: GenerationEnd) -> None:
        """Notes what Ollama reports about one prompt."""
        tokens = end.usage.prompt_tokens
        if tokens < LEAST_TOKENS or end.prompt_eval_duration <= 0:
            return
        measured = end.prompt_eval_duration / tokens
        known = self._seconds_per_token.pop(model, 0.0)
        self._seconds_per_token[model] = max(measured, known + (measured - known) * FADING)
        self._unsent.add(model)
        while len(self._seconds_per_token) > MODELS:
            del self._seconds_per_token[next(iter(self._seconds_per_token))]

    def take_unsent(self) -> dict[str, float]:
        """Returns what was learned since the last call of this method, in seconds per token by model."""
        unsent, self._unsent = self._unsent, set()
        return {model: self._seconds_per_token[model] for model in unsent if model in self._seconds_per_token}

    def adopt(self, shared: Mapping[str, float]) -> None:
        """Takes over what other workers know of models that this one has not asked yet."""
        for model, seconds in shared.items():
            if model not in self._seconds_per_token and len(self._seconds_per_token) < MODELS:
                self._seconds_per_token[model] = seconds

    def seconds(self, model: str, tokens: int) -> float:
        """Returns the seconds to allow for a prompt of so many tokens; 0 if it takes less than a second."""
        known = self._seconds_per_token.get(model)
        found = max(0, tokens - ASSUMED_FREE) / ASSUMED_SPEED if known is None else tokens * known
        return found if found >= LEAST_SECONDS else 0.0


async def lines_of(parts: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Yields the lines that a part completes, however the parts are cut. The last may lack its line feed."""
    rest = b""
    async for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        if len(rest) > LINE_LIMIT:
            raise UpstreamError(UpstreamFault.INVALID_RESPONSE, f"A line of Ollama's is over {LINE_LIMIT} bytes.")
        if lines := [line for line in whole if line.strip()]:
            yield lines
    if rest.strip():
        yield [rest]


class ChatAnswer:
    """Reads one answer of `/api/chat`. `pieces` cuts it, and `events` reads each piece in turn."""

    def __init__(self, model: str) -> None:
        self._model = model

    def pieces(self, parts: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
        """Yields the lines that arrive together."""
        return lines_of(parts)

    def events(self, piece: bytes) -> Sequence[AnswerPart]:
        """Returns thoughts, tokens and the end, or nothing. Raises `UpstreamError`."""
        return events(piece, self._model)


def events(line: bytes, model: str) -> list[AnswerPart]:
    """Parses one line into thoughts, tokens and the end, or nothing. `model` is the requested model.

    Raises `UpstreamError`: STREAM_ERROR for Ollama's `{"error": ...}`, INVALID_RESPONSE for a malformed line.
    """
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise invalid() from error
    if not isinstance(fields, dict):
        raise invalid()
    if "error" in fields:
        raise given_up(str(fields["error"]))
    try:
        return _events(fields, model)
    except (TypeError, ValueError, AttributeError) as error:
        raise invalid() from error


def _events(fields: dict[str, Any], model: str) -> list[AnswerPart]:
    message = fields.get("message") or {}
    thinking, content = message.get("thinking") or "", message.get("content") or ""
    if not (isinstance(thinking, str) and isinstance(content, str)):
        raise TypeError
    found: list[AnswerPart] = [Thought(thinking)] if thinking else []
    if content:
        found.append(Token(content))
    if fields.get("done") is True:
        found.append(end_of(fields, model))
    return found


DRAIN: Final = 0.25
"""Seconds that the end of the HTTP body may lag behind the last line; past it the connection is closed, not kept."""


class OllamaModel:
    """Implements `ports.LanguageModel` over one Ollama."""

    def __init__(
        self,
        pool: OllamaPool,
        deadlines: Deadlines,
        pinned: Pinned | None = None,
        speeds: ReadingSpeeds | None = None,
    ) -> None:
        self._pool = pool
        self._deadlines = deadlines
        pinned = pinned or Pinned()
        self._options, self._keep_alive = pinned.options, pinned.keep_alive_field
        self._models = OllamaModels(pool)
        self._speeds = speeds or ReadingSpeeds()

    def reading_seconds(self, request: GenerationRequest) -> float:
        """Returns the seconds to allow for reading the prompt, at the speed that this backend has reported."""
        return self._speeds.seconds(request.model, request.prompt_tokens)

    async def answer_one_token(self, model: str, seconds: float) -> None:
        """Asks for one token, and waits for it. Counts in no figures. Raises `UpstreamError`.

        The fault is FIRST_TOKEN_TIMEOUT if a model in memory gives no token within `seconds`.
        """
        request = GenerationRequest(model, (ChatMessage("user", "."),), {"num_predict": 1})
        body = {**orjson.loads(self._body(request)), "stream": False}
        try:
            await self._pool.load("/api/chat", orjson.dumps(body), model, seconds)
        except UpstreamError as error:
            if error.fault is not UpstreamFault.TOTAL_TIMEOUT or not await self._resident(model):
                raise
            detail = f"Ollama gave no token within {seconds:g} s."
            raise UpstreamError(UpstreamFault.FIRST_TOKEN_TIMEOUT, detail) from error

    def stream(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[AnswerPart]]:
        """Tokens and thoughts, then one `GenerationEnd`. Nothing is sent before the first of them is asked for.

        Leaving the context closes the connection of an unfinished answer, and Ollama then stops generating. A fault
        before the first line may be retried once, unseen. Raises `UpstreamError`.
        """
        return aclosing(self._answer(request))

    async def _answer(self, request: GenerationRequest) -> AsyncGenerator[AnswerPart, None]:
        clock = Clock(self._deadlines, request.timeout, self.reading_seconds(request))
        is_silent = request.forwarded is not None and request.forwarded.is_silent
        async with AsyncExitStack() as stack:
            try:
                started = await self._begin(request, clock, request.retry)
            except UpstreamError as error:
                if not await self._pool.retries.may_retry(error, request.retry):
                    raise
                started = await self._begin(request, clock, "spent")
            stack.push_async_exit(started.stack)
            pieces: list[bytes] | None = started.first
            while pieces is not None:
                for event in chain.from_iterable(map(started.answer.events, pieces)):
                    if isinstance(event, GenerationEnd):
                        self._pool.generated(event)
                        self._speeds.learn(request.model, event)
                        await _drain(started.pieces)
                        yield event
                        return
                    since = clock.now()
                    yield event
                    clock.excludes(since)
                try:
                    async with clock.whole() if is_silent else clock.inter_token():
                        pieces = await anext(started.pieces, None)
                except httpx.HTTPError as error:  # here, because a stack keeps an error that replaces another in it
                    raise started.exchange.failure(error) from error
            raise UpstreamError(UpstreamFault.STREAM_TRUNCATED, "Ollama's stream ended without its end.")

    async def _begin(self, request: GenerationRequest, clock: Clock, retry: Retry) -> _Started:
        """Sends, and waits for the first piece. The caller closes the result; an error closes everything."""
        async with AsyncExitStack() as stack:
            forwarded = request.forwarded
            path = "/api/chat" if forwarded is None else forwarded.path
            body = self._body(request) if forwarded is None else self._forwarded_body(forwarded)
            answer = ChatAnswer(request.model) if forwarded is None else ForwardedAnswer(forwarded, request.model)
            self._pool.retries.called(retry)
            kind = "" if forwarded is None else forwarded.content_type
            exchange = await stack.enter_async_context(
                self._pool.exchange(path, body, model=request.model, content_type=kind)
            )
            is_silent = forwarded is not None and forwarded.is_silent
            try:
                async with clock.whole() if is_silent else clock.first_token(partial(self._resident, request.model)):
                    raise_if_cancelled()  # a caller that has left sends nothing
                    await exchange.open(forwarded=forwarded is not None)
                    pieces = answer.pieces(exchange.parts())
                    first = await anext(pieces, None)
            except httpx.HTTPError as error:
                raise exchange.failure(error) from error
            return _Started(stack.pop_all(), exchange, answer, pieces, first)

    def _body(self, request: GenerationRequest) -> bytes:
        # `think` is sent because models that can think do so unless told otherwise.
        return orjson.dumps(
            {
                "model": request.model,
                "messages": [{"role": message.role, "content": message.content} for message in request.messages],
                "options": {**request.options, **self._options},
                "stream": True,
                "think": False,
                **self._keep_alive,
                **({} if request.format is None else {"format": request.format}),
            }
        )

    def _forwarded_body(self, forwarded: ForwardedRequest) -> bytes:
        """Adds what the fleet pins, where Ollama's API has fields for it. A request to unload a model does so."""
        pinned = {} if forwarded.only_loads else self._keep_alive
        if forwarded.path.startswith("/v1/") or not (self._options or pinned):
            return forwarded.body
        fields = {**forwarded.fields, **pinned}
        given = fields.get("options") or {}
        if self._options and isinstance(given, Mapping):
            fields = {**fields, "options": {**given, **self._options}}
        return orjson.dumps(fields)

    async def _resident(self, model: str) -> bool:
        try:
            return await self._models.resident(model)
        except UpstreamError:
            return True  # an Ollama that does not even say what it has in memory is not loading: it hangs


class _Started:
    """An answer whose first pieces are there: the rest of them, and what closes it."""

    def __init__(
        self,
        stack: AsyncExitStack,
        exchange: Exchange,
        answer: ChatAnswer | ForwardedAnswer,
        pieces: AsyncIterator[list[bytes]],
        first: list[bytes] | None,
    ) -> None:
        self.stack = stack
        self.exchange = exchange
        self.answer = answer
        self.pieces = pieces
        self.first = first


async def _drain(pieces: AsyncIterator[list[bytes]]) -> None:
    """Reads the end of the body, so that the connection can serve again."""
    with contextlib.suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(DRAIN):
            async for _ in pieces:
                pass
