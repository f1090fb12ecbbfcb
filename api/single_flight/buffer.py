"""One worker's side of a flight: a buffer with one producer, and readers that each read at their own pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

from api.errors import RagherdError, UpstreamError, UpstreamFault, without_frames
from api.ports.answer_cache import Claim
from api.ports.coordination import UNKNOWN, AskEarly, FlightEvent, GenerateAnswer
from api.values import (
    CompletedAnswer,
    FlightKey,
    GroundedSources,
    Priority,
    Queued,
    QueuePlace,
    Source,
    StoredElsewhere,
    Token,
)

AHEAD: Final = 16
"""Pieces that the producer may be ahead of the fastest reader. If all readers are slow, generation slows down."""

Ended = CompletedAnswer | StoredElsewhere | BaseException


class AnswerBuffer:
    """The pieces so far, and the end. `attempt` counts how often the answer began again.

    `sources` are the passages that the attempt is grounded in, None while that is not known. `require_wanted` raises
    if nobody waits for the answer any more. `place` is the generation's place in the queue.
    """

    def __init__(
        self, require_wanted: Callable[[], Awaitable[None]] | None = None, priority: Priority = Priority.USER
    ) -> None:
        self.attempt = 0
        self.sources: tuple[Source, ...] | None = None
        self.parts: list[str] = []
        self.length = 0  # characters so far
        self.end: Ended | None = None
        self._require_wanted = require_wanted
        self._readers: set[Reader | Tail] = set()
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._moved = asyncio.Event()
        self.place = QueuePlace(priority, on_move=self._tell)

    def let_go(self) -> None:
        """Forgets its flight after the end. Otherwise only the garbage collector would free the two, hours later."""
        self._require_wanted = self.place.on_move = None

    # -- the producer -------------------------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """True once the attempt has text."""
        return bool(self.parts)

    async def ground(self, sources: tuple[Source, ...]) -> None:
        """Sets the passages that the answer cites, before the language model is called.

        Raises `CancelledError` if no caller waits for the answer any more.
        """
        self.ground_in(sources)
        if self._require_wanted is not None:
            await self._require_wanted()

    async def write(self, text: str) -> None:
        """Writes a piece of text, not empty. Waits while every reader lags behind."""
        self.append(text)
        if self._readers:
            await self.wait_for_readers()

    async def wait_for_readers(self) -> None:
        """Waits until a reader is near the end, or there are no readers."""
        while self._readers and all(reader.lag > AHEAD for reader in self._readers):
            self._moved.clear()
            await self._moved.wait()

    def restart(self) -> None:
        """Discards what was written: the answer starts again with the same sources."""
        sources = self.sources
        self.begin_again()
        if sources is not None:
            self.ground_in(sources)

    # -- written on behalf of another worker's generation -------------------------------------------------------------

    def append(self, text: str) -> None:
        """Appends a piece of text."""
        self.parts.append(text)
        self.length += len(text)
        self._tell()

    def ground_in(self, sources: tuple[Source, ...]) -> None:
        """Sets the sources of the text that follows."""
        self.sources = sources
        self._tell()

    def begin_again(self) -> None:
        """Discards the text and its sources, and starts a new attempt."""
        self.attempt += 1
        self.parts, self.length = [], 0
        self.sources = None
        self._tell()

    def finish(self, end: Ended) -> None:
        """Sets the end, once. If pieces are missing, the completed answer supplies them.

        An error that is no bug forgets where it was raised: that refers to the flight.
        """
        if self.end is not None:
            return
        if isinstance(end, RagherdError):
            without_frames(end)
        if isinstance(end, CompletedAnswer):
            text = "".join(self.parts)
            if not end.text.startswith(text) or self.sources not in (None, end.sources):
                self.begin_again()
                text = ""
            if not self.parts:
                self.sources = end.sources
            if len(text) < len(end.text):
                self.append(end.text[len(text) :])
        self.end = end
        self._ended.set()
        self._tell()

    # -- readers ------------------------------------------------------------------------------------------------------

    def add_reader(self, reader: Reader | Tail) -> None:
        """Adds a reader, which can slow down the producer until it leaves."""
        self._readers.add(reader)

    def leave(self, reader: Reader | Tail) -> None:
        """Removes a reader."""
        self._readers.discard(reader)
        self._moved.set()

    def moved(self) -> None:
        """Notes that a reader has read something."""
        self._moved.set()

    async def changed(self, *, buffered: bool = False) -> None:
        """Returns at the next change; with `buffered`, at the end."""
        await (self._ended if buffered else self._changed).wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Reader:
    """Yields `GroundedSources`, every `Token` once, then `CompletedAnswer` or `StoredElsewhere`.

    Before the first token it yields each position in the queue as `Queued`. Raises the error that ended the answer
    otherwise.

    A cancelled `anext` loses nothing. If the answer restarts with the same sources and the same text as was yielded,
    reading continues from there. `buffered`: yields only the end.
    """

    def __init__(self, buffer: AnswerBuffer, *, buffered: bool = False) -> None:
        buffer.add_reader(self)
        self._buffer = buffer
        self._buffered = buffered
        self._attempt = buffer.attempt
        self._parts = buffer.parts
        self._index = 0
        self._given: list[str] = []
        self._position: int | None = None  # the one given last
        self._sources: tuple[Source, ...] | None = None  # those given
        self._skip = 0  # characters of the present attempt that were given in an earlier one

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> FlightEvent:
        while True:
            event = self._ready()
            if event is not None:
                self._buffer.moved()
                return event
            await self._buffer.changed(buffered=self._buffered)

    def close(self) -> None:
        """Stops reading, for good. It lets go of the buffer: an error that it raised refers to this reader."""
        self._buffer.leave(self)
        del self._buffer

    @property
    def lag(self) -> int:
        """Pieces that it has not taken."""
        return 0 if self._buffered else len(self._buffer.parts) - self._index

    def _ready(self) -> FlightEvent | None:
        event = None if self._buffered or not self._is_up_to_date() else self._next()
        if event is not None:
            return event
        if isinstance(self._buffer.end, BaseException):
            raise self._buffer.end  # not from a name of this frame, which the error refers to
        if isinstance(self._buffer.end, StoredElsewhere) and self._given:
            raise _broken()
        return self._buffer.end

    def _next(self) -> GroundedSources | Queued | Token | None:
        if self._sources is None and self._buffer.sources is not None and not self._given:
            self._sources = self._buffer.sources
            return GroundedSources(self._sources)
        while self._index < len(self._parts):
            part = self._parts[self._index]
            piece, self._skip = part[self._skip :], max(0, self._skip - len(part))
            self._index += 1
            if piece:
                self._given.append(piece)
                return Token(piece)
        place = self._buffer.place
        if place.position not in (None, self._position) and not self._given:
            self._position = place.position
            return Queued(place.position, place.seconds)
        return None

    def _is_up_to_date(self) -> bool:
        return self._attempt == self._buffer.attempt or self._begin_again()

    def _begin_again(self) -> bool:
        """Switches to the new attempt once it repeats all yielded text. Returns False until then."""
        buffer, given = self._buffer, "".join(self._given)
        if not given:
            self._sources = None
        elif buffer.sources is not None and buffer.sources != self._sources:
            raise _broken()
        text = "".join(buffer.parts)
        landed_short = isinstance(buffer.end, CompletedAnswer) and len(text) < len(given)
        if landed_short or not text.startswith(given[: len(text)]):
            raise _broken()
        if len(text) < len(given):
            return False
        self._attempt, self._parts = buffer.attempt, buffer.parts
        self._index, self._skip = 0, len(given)
        return True


class Tail:
    """A reader that takes all new text at once, to publish it to followers."""

    def __init__(self, buffer: AnswerBuffer) -> None:
        buffer.add_reader(self)
        self._buffer = buffer
        self._attempt = buffer.attempt
        self._index = 0
        self._characters = 0  # of what it has taken
        self._grounded_at = -1
        self._position = 0

    @property
    def lag(self) -> int:
        """Pieces that it has not taken."""
        return len(self._buffer.parts) - self._index

    def take_sources(self) -> tuple[int, tuple[Source, ...]] | None:
        """Returns the attempt and its sources, once per attempt."""
        attempt, sources = self._buffer.attempt, self._buffer.sources
        if sources is None or attempt == self._grounded_at:
            return None
        self._grounded_at = attempt
        return attempt, sources

    def take_place(self) -> Queued | None:
        """Returns the position in the queue if it is new; 0 if the call waits no longer."""
        place = self._buffer.place
        position = place.position or 0
        if position == self._position:
            return None
        self._position = position
        return Queued(position, place.seconds)

    def take(self) -> tuple[int, int, str]:
        """Returns the attempt, the offset of the new text, and the new text, which may be empty."""
        if self._attempt != self._buffer.attempt:
            self._attempt, self._index, self._characters = self._buffer.attempt, 0, 0
        new = "".join(self._buffer.parts[self._index :])
        before = self._characters
        self._index, self._characters = len(self._buffer.parts), before + len(new)
        self._buffer.moved()
        return self._attempt, before, new


class Flight:
    """One worker's part in a flight. `leads`: this worker generates. `claim`: its lead in Redis, None without one.

    `place` is its place among the followers if another worker leads. `ending`: a check whether anybody still waits is
    in progress. `abandoned`: the lead was given up in Redis, and only a new caller may take it again. `early` asks for
    the permit of the generation.
    """

    def __init__(
        self,
        key: FlightKey,
        generate: GenerateAnswer,
        asked_ms: int,
        not_before_ms: int,
        require_wanted: Callable[[Flight], Awaitable[None]],
        priority: Priority = Priority.USER,
        early: AskEarly | None = None,
    ) -> None:
        self.key = key
        self.early = early
        self.generate = generate
        self.asked_ms = asked_ms
        self.not_before_ms = not_before_ms
        self.buffer = AnswerBuffer(partial(require_wanted, self), priority)
        self.subscribers = 0
        self.first: FlightReader | None = None
        self.leads = False
        self.claim: Claim | None = None
        self.place = ""
        self.ending = False
        self.abandoned = False
        self.renewed = time.monotonic()
        self.decided = asyncio.Event()
        self.woken = asyncio.Event()
        self.is_published = False
        self.task: asyncio.Task[None] | None = None

    def begin(self, flying: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        """Starts the flight's task, which is among `tasks` until it ends."""
        self.task = task = asyncio.create_task(flying, name="flight")
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A cancelled task keeps its error, whose traceback refers to this flight."""
        self.task = None

    def may_share(self, not_before_ms: int) -> bool:
        """Returns whether a new caller may get this answer, whose documents may have changed at `not_before_ms`.

        If its look-up failed, it may only share what cites no documents, as far as that is known.
        """
        if self.buffer.end is not None:
            return False
        if not_before_ms == UNKNOWN:
            return not self.asked_ms and not self.buffer.sources
        return not not_before_ms or self.asked_ms > not_before_ms

    @property
    def joining(self) -> tuple[FlightKey, int, int, Priority]:
        """What the store needs to know of a worker that joins."""
        return self.key, self.asked_ms, self.not_before_ms, self.buffer.place.priority

    def follow(self, place: str) -> None:
        """Notes that another worker leads. `place` is this worker's place among its followers."""
        self.place = place
        self.decided.set()


class FlightReader(Reader):
    """Implements `ports.FlightSubscription`. `first`: the flight was begun for this caller.

    `unchecked`: the documents may have changed before this caller asked. If the answer cites any, the caller must ask
    the cache again.
    """

    def __init__(self, flight: Flight, *, buffered: bool, first: bool, unchecked: bool = False) -> None:
        super().__init__(flight.buffer, buffered=buffered)
        self._unchecked = unchecked
        self.led = False
        """True if this caller caused the generation and this worker did it. Known with the first event."""
        if first:
            flight.first = self

    def _ready(self) -> FlightEvent | None:
        if self._unchecked and self._buffer.sources and not self._given:
            return StoredElsewhere()
        return super()._ready()


def _broken() -> UpstreamError:
    detail = "The answer was broken off where it was made, and the one that replaces it begins in other words."
    return UpstreamError(UpstreamFault.STREAM_TRUNCATED, detail)
