"""Every log line is one JSON object, from any logger."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

START = "import logging, structlog\nfrom api.observability.logs import configure_logging\n"


def _lines(program: str, level: str = "info") -> list[dict[str, Any]]:
    """Returns the log lines of a new process, because logging is configured once per process."""
    done = subprocess.run(
        [sys.executable, "-c", f"{START}configure_logging({level!r})\n{program}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_line_has_time_logger_and_request_id() -> None:
    [line] = _lines(
        "structlog.contextvars.bind_contextvars(request_id='r1')\n"
        "structlog.get_logger('api.query').info('Answered', status='hit', seconds=0.5)"
    )

    assert line.pop("timestamp").endswith("Z")
    assert line.pop("pid") > 0
    assert line == {
        "event": "Answered",
        "level": "info",
        "logger": "api.query",
        "request_id": "r1",
        "seconds": 0.5,
        "status": "hit",
    }


@pytest.mark.parametrize("name", ["gunicorn.error", "uvicorn.error", "asyncio", "anything.else"])
def test_the_standard_library_writes_the_same_kind_of_line(name: str) -> None:
    [line] = _lines(
        "structlog.contextvars.bind_contextvars(request_id='r1')\n"
        f"logging.getLogger({name!r}).warning('Worker %s\\nis gone', 7)"
    )

    assert (line["event"], line["level"], line["logger"]) == ("Worker 7\nis gone", "warning", name)
    assert line["request_id"] == "r1"
    assert line["timestamp"].endswith("Z")


def test_an_exception_is_one_line_without_local_variables() -> None:
    [structured, standard] = _lines(
        "def fail(question):\n"
        "    raise ValueError(question)\n"
        "for log in (structlog.get_logger('a').exception, logging.getLogger('b').exception):\n"
        "    try:\n"
        "        fail('a sec' 'ret')\n"
        "    except ValueError:\n"
        "        log('It failed')"
    )

    for line in (structured, standard):
        assert line["level"] == "error"
        assert line["exception"].startswith("Traceback (most recent call last):\n")
        assert line["exception"].splitlines()[-1] == "ValueError", "its message may quote a text"
        assert ", in fail" in line["exception"]
        assert "secret" not in json.dumps(line)


# Newer Pythons show the lines of the program, too, so no line has the text as it is logged.
FAILING = """
def fail():
    text = 'a sec' 'ret'
    try:
        {}[text]
    except KeyError as error:
        raise ExceptionGroup(text, [ValueError(text), AttributeError('no attribute x')]) from error
try:
    fail()
except Exception:
    logging.getLogger('b').exception('It failed')
"""


def test_causes_and_groups_are_logged_without_messages_too() -> None:
    [line] = _lines(FAILING)
    kinds = [text for text in line["exception"].splitlines() if not text.startswith((" ", "Traceback", "The above"))]
    assert [text for text in kinds if text] == [
        "KeyError",
        "ExceptionGroup",
        "ValueError",
        "AttributeError: no attribute x",
    ]
    assert "secret" not in line["exception"]


def test_with_questions_messages_are_logged() -> None:
    program = f"{START}configure_logging('debug', texts=True)\n{FAILING}\nlogging.getLogger('c').debug('a detail')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    [failed, detail] = map(json.loads, result.stderr.splitlines())
    assert "ValueError: a secret" in failed["exception"]
    assert detail["event"] == "a detail"


def test_a_task_that_nobody_waited_for_is_logged_without_its_error() -> None:
    program = """
import asyncio, gc
async def fail():
    raise ValueError('a sec' 'ret')
async def main():
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task
    gc.collect()
asyncio.run(main())
"""
    [line] = _lines(program)
    assert line["event"] == "Task exception was never retrieved"
    assert line["exception"].endswith("ValueError")
    assert "secret" not in json.dumps(line)


def test_libraries_never_log_their_steps_which_may_have_texts() -> None:
    program = "logging.getLogger('some.library').debug('chunk: a secret')\nstructlog.get_logger('a').debug('own')"
    assert [line["event"] for line in _lines(program, level="debug")] == ["own"]


def test_the_level_applies_to_all_loggers() -> None:
    lines = _lines(
        "for log in (structlog.get_logger('a'), logging.getLogger('gunicorn.error'), logging.getLogger('b')):\n"
        "    log.info('quiet')\n"
        "    log.warning('loud')",
        level="warning",
    )

    assert [line["event"] for line in lines] == ["loud"] * 3


def test_the_access_log_of_uvicorn_is_off() -> None:
    assert _lines("assert not logging.getLogger('uvicorn.access').hasHandlers()") == []


def test_libraries_that_log_every_request_are_quiet() -> None:
    lines = _lines("logging.getLogger('httpx').info('quiet')\nlogging.getLogger('httpx').warning('loud')")

    assert [line["event"] for line in lines] == ["loud"]


@pytest.mark.parametrize("value", ["2 ** 80", "'\\ud800'", "{1: 2}", "object()", "b'raw'", "{1, 2}"])
def test_any_value_can_be_logged(value: str) -> None:
    [line] = _lines(f"structlog.get_logger('a').info('Odd', value={value})")

    assert line["event"] == "Odd"
    assert "value" in line


def test_warnings_are_logged_as_lines() -> None:
    [line] = _lines("import warnings\nwarnings.warn('old', UserWarning, stacklevel=1)")

    assert line["logger"] == "py.warnings"
    assert "UserWarning: old" in line["event"]


def test_gunicorn_accepts_the_configuration() -> None:
    from api.observability.logs import stdlib_logging

    configuration = stdlib_logging("debug")

    assert configuration["disable_existing_loggers"] is False
    assert configuration["loggers"]["gunicorn.error"]["level"] == "DEBUG"
    assert configuration["root"]["level"] == "INFO"


def test_a_failed_write_stops_nothing() -> None:
    """A full disk loses log lines, but no request fails."""
    program = f"{START}configure_logging('info')\nstructlog.get_logger('api').info('lost')\nprint('goes on')"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            check=False,
        )
    assert done.stdout == "goes on\n"
