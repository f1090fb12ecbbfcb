"""Converts files to Markdown, off the event loop and within a deadline.

Texts up to a mebibyte are decoded in a thread, one at a time: each further thread would keep the GIL from the event
loop for longer. HTML, PDF and .docx need libraries that may hang, crash or exhaust memory on hostile input, so they run
in a process with limits that can be killed. So do longer texts.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from api.errors import PayloadTooLarge, ServiceUnavailable, UnreadableDocument
from api.knowledge.kinds import CODE, LANGUAGES, PLAIN
from api.knowledge.markdown import LONGEST_TITLE
from api.knowledge.plain_text import Parsed, read_text, too_long
from api.languages.documents import language_of_document
from api.module_command import module_command, module_environment
from api.unicode_text import is_blank, one_line

CONCURRENCY: Final = 2
"""Files that one worker reads at a time."""
IN_A_THREAD: Final = 1024 * 1024
"""Largest text that is read in a thread, in bytes."""
_KEPT: Final = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LANG", "LC_ALL", "SYSTEMROOT")


@dataclass(frozen=True, slots=True)
class ParseLimits:
    """`timeout` in seconds. The file may use all of it as CPU time. `ocr_languages`: Tesseract's, or empty.

    `chunk_tokens`: the size of chunks, for files that are cut where they are read.
    """

    pages: int
    characters: int
    timeout: float
    ocr_languages: str = ""
    chunk_tokens: int = 256


class Parser:
    """One worker's reader."""

    def __init__(self, limits: ParseLimits) -> None:
        self._limits = limits
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._thread = asyncio.Semaphore(1)

    async def parse(self, data: bytes, media_type: str, name: str = "") -> Parsed:
        """Reads a file. Source code that the reader cannot split by syntax is text.

        Raises `UnreadableDocument`, `PayloadTooLarge`; `ServiceUnavailable` if its turn does not come in time.
        """
        try:
            return await self._parsed(data, media_type, name)
        except UnreadableDocument:
            if media_type not in LANGUAGES:
                raise
            return await self._parsed(data, CODE, name)

    async def _parsed(self, data: bytes, media_type: str, name: str) -> Parsed:
        if media_type in PLAIN and len(data) <= IN_A_THREAD:
            async with self._turn(self._thread):
                parsed = await self._in_time(asyncio.to_thread(read_text, data, media_type))
        else:
            async with self._turn(self._slots):
                parsed = await self._in_time(self._in_a_process(data, media_type, name))
        if len(parsed.text) > self._limits.characters:
            raise too_long(self._limits.characters)
        if not await asyncio.to_thread(_has_words, parsed.text):
            raise UnreadableDocument("The document contains no text.")
        language = await asyncio.to_thread(language_of_document, parsed.text, parsed.language)
        return replace(parsed, language=language)

    @asynccontextmanager
    async def _turn(self, slots: asyncio.Semaphore) -> AsyncIterator[None]:
        """Waits as long as one file may take. Other slow files say nothing about this one."""
        try:
            async with asyncio.timeout(self._limits.timeout):
                await slots.acquire()
        except TimeoutError:
            raise ServiceUnavailable("Too many files are being read. Try again later.", retry_after=1) from None
        try:
            yield
        finally:
            slots.release()

    async def _in_time(self, reading: Awaitable[Parsed]) -> Parsed:
        try:
            async with asyncio.timeout(self._limits.timeout):
                return await reading
        except TimeoutError:
            raise UnreadableDocument(f"It took longer than {self._limits.timeout:g} s to read.") from None

    async def _in_a_process(self, data: bytes, media_type: str, name: str) -> Parsed:
        limits = self._limits
        seconds = int(limits.timeout) + 1
        numbers = (limits.pages, limits.characters, seconds, limits.chunk_tokens)
        arguments = (media_type, *map(str, numbers), limits.ocr_languages, one_line(name, LONGEST_TITLE))
        process = await asyncio.create_subprocess_exec(
            *module_command("api.knowledge.parse_process", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=module_environment({name: os.environ[name] for name in _KEPT if name in os.environ}),
            start_new_session=True,  # uvloop knows no `process_group`
        )
        try:
            reply, _ = await process.communicate(data)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with Tesseract, which it may have started
                await asyncio.shield(process.wait())
        return _read(reply, process.returncode)


def _has_words(text: str) -> bool:
    return any(character.isalnum() and not is_blank(character) for character in text)


def _read(reply: bytes, code: int | None) -> Parsed:
    try:
        fields: dict[str, Any] = orjson.loads(reply)
    except orjson.JSONDecodeError:
        raise UnreadableDocument(
            f"Reading it ended the reader ({_ended(code)}). The file is damaged or too complex."
        ) from None
    match fields:
        case {"too_large": str(detail)}:
            raise PayloadTooLarge(detail)
        case {"unreadable": str(detail)}:
            raise UnreadableDocument(detail)
        case _:
            lists = {name: tuple(fields[name]) for name in ("tags", "warnings", "page_starts")}
            return Parsed(fields["text"], fields["title"], fields["pages"], **lists, language=fields["language"])


def _ended(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
