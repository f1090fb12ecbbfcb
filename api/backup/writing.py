"""Writes a backup as a stream: a line at a time, and at the end what tells a whole file from a truncated one."""

from __future__ import annotations

import gzip
import hashlib
from collections import Counter
from typing import BinaryIO, Final

import orjson

from api.backup.records import Line

LEVEL: Final = 6


class BackupWriter:
    """Writes to `stream`, which stays the caller's to close. `plain`: not compressed."""

    def __init__(self, stream: BinaryIO, *, plain: bool = False) -> None:
        self._gzip = None if plain else gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=LEVEL, mtime=0)
        self._out: BinaryIO | gzip.GzipFile = self._gzip or stream
        self._sha = hashlib.sha256()
        self.counts: Counter[str] = Counter()
        """Lines by kind."""

    def write(self, line: Line) -> None:
        """One more line."""
        text = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        self._sha.update(text)
        self._out.write(text)
        self.counts[line["is"]] += 1

    def end(self) -> None:
        """The last line."""
        end = {"is": "end", "lines": dict(self.counts), "sha256": self._sha.hexdigest()}
        self._out.write(orjson.dumps(end, option=orjson.OPT_APPEND_NEWLINE))
        if self._gzip is not None:
            self._gzip.close()
