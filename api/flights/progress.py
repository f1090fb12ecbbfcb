"""An answer as it grows, and those who read along, each at its own pace."""

from __future__ import annotations

import asyncio
from typing import Final

from api.errors import UpstreamError
from api.faults import UpstreamFault
from api.model import Landed, StoredElsewhere, Token

AHEAD: Final = 16
"""Pieces that an answer may be ahead of its fastest reader: where all readers are slow, so is the language model."""


Ended = Landed | StoredElsewhere | BaseException


class Progress:
    """The pieces so far, and the end. `attempt` counts how often the answer began anew."""

    def __init__(self) -> None:
        self.attempt = 0
        self.parts: list[str] = []
        self.end: Ended | None = None
        self._readers: set[Reader | Tail] = set()
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._moved = asyncio.Event()

    def add(self, text: str) -> None:
        """One more piece."""
        self.parts.append(text)
        self._tell()

    def restart(self) -> None:
        """What was given is void."""
        self.attempt += 1
        self.parts = []
        self._tell()

    def finish(self, end: Ended) -> None:
        """The end, which comes once. An answer that was followed with gaps is made whole by its own text."""
        if self.end is not None:
            return
        if isinstance(end, Landed):
            text = "".join(self.parts)
            if not end.text.startswith(text):
                self.restart()
                text = ""
            if len(text) < len(end.text):
                self.parts.append(end.text[len(text) :])
        self.end = end
        self._ended.set()
        self._tell()

    @property
    def length(self) -> int:
        """Characters so far."""
        return sum(map(len, self.parts))

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

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Reader:
    """Gives every `Token` once, then `Landed` or `StoredElsewhere`; raises what ended the answer else.

    A cancelled `anext` loses nothing. Where the answer begins anew in the words that were given, it goes on from there.
    `whole`: no tokens, only the end.
    """

    def __init__(self, progress: Progress, *, whole: bool) -> None:
        self._progress = progress
        self._whole = whole
        self._attempt = progress.attempt
        self._parts = progress.parts
        self._index = 0
        self._given: list[str] = []
        self._skip = 0  # characters of the present attempt that were given in an earlier one

    def __aiter__(self) -> Reader:
        return self

    async def __anext__(self) -> Token | Landed | StoredElsewhere:
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

    def _ready(self) -> Token | Landed | StoredElsewhere | None:
        piece = None if self._whole else self._piece()
        if piece is not None:
            self._given.append(piece)
            return Token(piece)
        end = self._progress.end
        if isinstance(end, BaseException):
            raise end
        if isinstance(end, StoredElsewhere) and self._given:
            raise _broken()
        return end

    def _piece(self) -> str | None:
        if self._attempt != self._progress.attempt and not self._begin_anew():
            return None
        while self._index < len(self._parts):
            part = self._parts[self._index]
            piece, self._skip = part[self._skip :], max(0, self._skip - len(part))
            self._index += 1
            if piece:
                return piece
        return None

    def _begin_anew(self) -> bool:
        """Goes over to the new attempt, where that says what was given already. False while that is not known."""
        given, text = "".join(self._given), "".join(self._progress.parts)
        landed_short = isinstance(self._progress.end, Landed) and len(text) < len(given)
        if landed_short or not text.startswith(given[: len(text)]):
            raise _broken()
        if len(text) < len(given):
            return False
        self._attempt, self._parts = self._progress.attempt, self._progress.parts
        self._index, self._skip = 0, len(given)
        return True


class Tail:
    """A reader that takes, whenever it likes, all that is new: who tells others of the answer."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._attempt = progress.attempt
        self._index = 0

    @property
    def lag(self) -> int:
        """Pieces that it has not taken."""
        return len(self._progress.parts) - self._index

    def take(self) -> tuple[int, int, str]:
        """The attempt, the characters before what is new, and what is new; that may be empty."""
        if self._attempt != self._progress.attempt:
            self._attempt, self._index = self._progress.attempt, 0
        parts, index = self._progress.parts, self._index
        self._index = len(parts)
        self._progress.moved()
        return self._attempt, sum(map(len, parts[:index])), "".join(parts[index:])


def _broken() -> UpstreamError:
    detail = "The answer was broken off where it was made, and the one that replaces it begins in other words."
    return UpstreamError(UpstreamFault.STREAM_TRUNCATED, detail)
