"""An answer as it grows, and those who read along, each at its own pace."""

from __future__ import annotations

import asyncio
from typing import Final

from api.errors import UpstreamError, UpstreamFault
from api.values import Grounded, Landed, Source, StoredElsewhere, Token

AHEAD: Final = 16
"""Pieces that an answer may be ahead of its fastest reader: where all readers are slow, so is the language model."""


Ended = Landed | StoredElsewhere | BaseException


class Progress:
    """The pieces so far, and the end. `attempt` counts how often the answer began anew.

    `sources` are the passages that the attempt is grounded in, None while that is not known.
    """

    def __init__(self) -> None:
        self.attempt = 0
        self.sources: tuple[Source, ...] | None = None
        self.parts: list[str] = []
        self.length = 0  # characters so far
        self.end: Ended | None = None
        self._readers: set[Reader | Tail] = set()
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._moved = asyncio.Event()

    def add(self, text: str) -> None:
        """One more piece."""
        self._append(text)
        self._tell()

    def ground(self, sources: tuple[Source, ...]) -> None:
        """What the words to come are grounded in."""
        self.sources = sources
        self._tell()

    def restart(self) -> None:
        """What was given is void."""
        self.attempt += 1
        self.parts, self.length = [], 0
        self.sources = None
        self._tell()

    def finish(self, end: Ended) -> None:
        """The end, which comes once. An answer that was followed with gaps is made whole by its own text."""
        if self.end is not None:
            return
        if isinstance(end, Landed):
            text = "".join(self.parts)
            if not end.text.startswith(text) or self.sources not in (None, end.sources):
                self.restart()
                text = ""
            if not self.parts:
                self.sources = end.sources
            if len(text) < len(end.text):
                self._append(end.text[len(text) :])
        self.end = end
        self._ended.set()
        self._tell()

    def reader(self, *, whole: bool = False) -> Reader:
        """One more reader, from the beginning on; to be closed."""
        reader = Reader(self, whole=whole)
        self._readers.add(reader)
        return reader

    def tail(self) -> Tail:
        """One more reader, who takes what is there."""
        tail = Tail(self)
        self._readers.add(tail)
        return tail

    def leave(self, reader: Reader | Tail) -> None:
        """A reader goes."""
        self._readers.discard(reader)
        self._moved.set()

    def moved(self) -> None:
        """A reader took something."""
        self._moved.set()

    async def room(self) -> None:
        """Returns when a reader is near the end, or none is there."""
        while self._readers and all(reader.lag > AHEAD for reader in self._readers):
            self._moved.clear()
            await self._moved.wait()

    async def changed(self, *, whole: bool = False) -> None:
        """Returns at the next change; with `whole`, at the end."""
        await (self._ended if whole else self._changed).wait()

    def _append(self, text: str) -> None:
        self.parts.append(text)
        self.length += len(text)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Reader:
    """Gives `Grounded`, every `Token` once, then `Landed` or `StoredElsewhere`; raises what ended the answer else.

    A cancelled `anext` loses nothing. Where the answer begins anew from the passages and in the words that were given,
    it goes on from there. `whole`: only the end.
    """

    def __init__(self, progress: Progress, *, whole: bool) -> None:
        self._progress = progress
        self._whole = whole
        self._attempt = progress.attempt
        self._parts = progress.parts
        self._index = 0
        self._given: list[str] = []
        self._sources: tuple[Source, ...] | None = None  # those given
        self._skip = 0  # characters of the present attempt that were given in an earlier one

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> Grounded | Token | Landed | StoredElsewhere:
        while True:
            event = self._ready()
            if event is not None:
                self._progress.moved()
                return event
            await self._progress.changed(whole=self._whole)

    def close(self) -> None:
        """Reads no more."""
        self._progress.leave(self)

    @property
    def lag(self) -> int:
        """Pieces that it has not taken."""
        return 0 if self._whole else len(self._progress.parts) - self._index

    def _ready(self) -> Grounded | Token | Landed | StoredElsewhere | None:
        event = None if self._whole or not self._is_up_to_date() else self._next()
        if event is not None:
            return event
        end = self._progress.end
        if isinstance(end, BaseException):
            raise end
        if isinstance(end, StoredElsewhere) and self._given:
            raise _broken()
        return end

    def _next(self) -> Grounded | Token | None:
        if self._sources is None and self._progress.sources is not None and not self._given:
            self._sources = self._progress.sources
            return Grounded(self._sources)
        while self._index < len(self._parts):
            part = self._parts[self._index]
            piece, self._skip = part[self._skip :], max(0, self._skip - len(part))
            self._index += 1
            if piece:
                self._given.append(piece)
                return Token(piece)
        return None

    def _is_up_to_date(self) -> bool:
        return self._attempt == self._progress.attempt or self._begin_anew()

    def _begin_anew(self) -> bool:
        """Goes over to the new attempt, where that says what was given already. False while that is not known."""
        progress, given = self._progress, "".join(self._given)
        if not given:
            self._sources = None
        elif progress.sources is not None and progress.sources != self._sources:
            raise _broken()
        text = "".join(progress.parts)
        landed_short = isinstance(progress.end, Landed) and len(text) < len(given)
        if landed_short or not text.startswith(given[: len(text)]):
            raise _broken()
        if len(text) < len(given):
            return False
        self._attempt, self._parts = progress.attempt, progress.parts
        self._index, self._skip = 0, len(given)
        return True


class Tail:
    """A reader that takes, whenever it likes, all that is new: who tells others of the answer."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._attempt = progress.attempt
        self._index = 0
        self._characters = 0  # of what it has taken
        self._grounded_at = -1

    @property
    def lag(self) -> int:
        """Pieces that it has not taken."""
        return len(self._progress.parts) - self._index

    def take_sources(self) -> tuple[int, tuple[Source, ...]] | None:
        """The attempt and what it is grounded in, once an attempt."""
        attempt, sources = self._progress.attempt, self._progress.sources
        if sources is None or attempt == self._grounded_at:
            return None
        self._grounded_at = attempt
        return attempt, sources

    def take(self) -> tuple[int, int, str]:
        """The attempt, the characters before what is new, and what is new; that may be empty."""
        if self._attempt != self._progress.attempt:
            self._attempt, self._index, self._characters = self._progress.attempt, 0, 0
        new = "".join(self._progress.parts[self._index :])
        before = self._characters
        self._index, self._characters = len(self._progress.parts), before + len(new)
        self._progress.moved()
        return self._attempt, before, new


def _broken() -> UpstreamError:
    detail = "The answer was broken off where it was made, and the one that replaces it begins in other words."
    return UpstreamError(UpstreamFault.STREAM_TRUNCATED, detail)
