"""One JSON object per line: the service logs through structlog; gunicorn, uvicorn and libraries through logging.

Every line has `timestamp` (RFC 3339, UTC), `level`, `event`, `logger`, `pid` and the values bound in
`structlog.contextvars`, such as `request_id`. Lines go to standard error.

Texts of users are logged only with LOG_QUESTIONS. So an exception is logged without its message, which may quote one,
unless it is one of Python's own that quotes none; and libraries log nothing below `info`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import os
import re
import sys
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, BinaryIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

QUIET_LOGGERS = ("httpcore", "httpx", "mcp", "redisvl", "uvicorn.error")
"""Libraries that log every step at `info`: only their warnings are logged."""


def configure_logging(level: str, stream: BinaryIO | None = None, *, texts: bool = False) -> None:
    """Configures structlog and the standard library's logging for this process.

    `stream` is where structlog writes; the default is standard error. `texts`: lines may contain texts of users.
    """
    logging.config.dictConfig(stdlib_logging(level, texts=texts))
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*_shared_processors(texts), structlog.processors.JSONRenderer(serializer=_to_json)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=_LineLoggers(stream),
        cache_logger_on_first_use=True,
    )


def stdlib_logging(level: str, *, texts: bool = False) -> dict[str, Any]:
    """The configuration for `logging.config.dictConfig`, also for gunicorn's `logconfig_dict`."""
    passed_on: dict[str, Any] = {"handlers": [], "level": "NOTSET", "propagate": True}
    least = "INFO" if level.upper() == "DEBUG" and not texts else level.upper()
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": json_formatter, "texts": texts}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
        "root": {"level": least, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {**passed_on, "level": level.upper()},
            "gunicorn.access": passed_on,
            "uvicorn": passed_on,
            "uvicorn.access": {**passed_on, "propagate": False},  # without a handler uvicorn does not even try
            **{name: {**passed_on, "level": "WARNING"} for name in QUIET_LOGGERS},
        },
    }


def json_formatter(texts: bool = False) -> logging.Formatter:
    """Formats a record of the standard library in the same way."""
    short = [] if texts else [_shorten_asyncio]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *short, *_shared_processors(texts)],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(serializer=_to_text),
        ],
    )


def _shared_processors(texts: bool) -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_origin,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info
        if texts
        else structlog.processors.ExceptionRenderer(lambda exc_info: "\n".join(_traceback(exc_info[1], set()))),
    ]


QUOTELESS = (ArithmeticError, AttributeError, ImportError, IndexError, MemoryError, NameError, OSError, TypeError)
"""Exceptions of Python whose messages quote no values but names of types, attributes and files."""


def _traceback(error: BaseException, seen: set[int]) -> list[str]:
    """Returns the lines of a traceback with its causes: types, files and source lines, without messages."""
    seen.add(id(error))
    lines: list[str] = []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and id(cause) not in seen:
        lines += [*_traceback(cause, seen), "", CAUSED if error.__cause__ else DURING, ""]
    lines += ["Traceback (most recent call last):", "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")]
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    lines.append(f"{name}: {error}" if kind.__module__ == "builtins" and isinstance(error, QUOTELESS) else name)
    if isinstance(error, BaseExceptionGroup):
        lines += [line for one in error.exceptions if id(one) not in seen for line in _traceback(one, seen)]
    return lines


CAUSED = "The above exception was the direct cause of the following exception:"
DURING = "During handling of the above exception, another exception occurred:"


def _shorten_asyncio(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Leaves out the lines that describe what failed, such as `future: <Task ... exception=...>`: they quote errors."""
    if event.get("logger") == "asyncio":
        lines = str(event["event"]).splitlines()
        event["event"] = "\n".join(line for line in lines if not re.match(r"[a-z_]+: ", line))
    return event


def _add_origin(logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event.setdefault("logger", getattr(logger, "name", None) or "ragherd")
    event["pid"] = os.getpid()
    return event


def _to_json(event: EventDict, **options: Any) -> bytes:
    """orjson, or the standard module for values that orjson refuses (huge integers, lone surrogates, odd keys)."""
    try:
        return orjson.dumps(event, **options)
    except TypeError:
        return json.dumps(event, skipkeys=True, **options).encode()


def _to_text(event: EventDict, **options: Any) -> str:
    return _to_json(event, **options).decode()


class LineLogger:
    """Writes lines without a lock, so that a fork cannot leave one locked in the child."""

    __slots__ = ("_stream", "name")

    def __init__(self, name: str, stream: BinaryIO) -> None:
        self.name = name
        self._stream = stream

    def msg(self, line: bytes) -> None:
        """Writes one line at once. If that fails (a full disk, a closed pipe), only the line is lost."""
        with suppress(OSError):
            self._stream.write(line + b"\n")
            self._stream.flush()

    debug = info = warning = warn = error = critical = fatal = exception = err = log = failure = msg


class FrequentEvent:
    """Logs one kind of event at `info`, in half of structlog's time: a line for each request is a cost.

    The lines are like all others, but without `structlog.contextvars`. The lines of one turn of the event loop are
    written together.
    """

    def __init__(self, name: str, event: str, stream: BinaryIO | None = None) -> None:
        """`stream` is where the lines go; the default is standard error."""
        self._name = name
        self._fixed = {"event": event, "level": "info", "logger": name, "pid": os.getpid()}
        self._line = LineLogger(name, stream) if stream is not None else None
        self._root = logging.getLogger()
        self._unwritten: list[bytes] = []

    def __call__(self, facts: dict[str, Any]) -> None:
        """Adds what every line has, and writes it."""
        if not self._root.isEnabledFor(logging.INFO):
            return
        timestamp = datetime.now(UTC).isoformat()[:-6]
        self._unwritten.append(_to_json({**facts, **self._fixed, "timestamp": f"{timestamp}Z"}))
        if len(self._unwritten) > 1:
            return  # the first of them has arranged for all
        try:
            asyncio.get_running_loop().call_soon(self._write)
        except RuntimeError:
            self._write()

    def _write(self) -> None:
        if self._line is None:
            self._line = LineLogger(self._name, sys.stderr.buffer)
        lines, self._unwritten = self._unwritten, []
        self._line.msg(b"\n".join(lines))


class _LineLoggers:
    """structlog's factory of loggers: `get_logger(name)`."""

    def __init__(self, stream: BinaryIO | None) -> None:
        self._stream = stream

    def __call__(self, *args: Any) -> LineLogger:
        return LineLogger(str(args[0]) if args else "ragherd", self._stream or sys.stderr.buffer)
