"""Maps httpx's exceptions and Ollama's error responses to `UpstreamError`. Pure."""

from __future__ import annotations

import email.utils
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import httpx
import orjson

from api.errors import UpstreamError, UpstreamFault

DETAIL_LIMIT: Final = 300
"""Characters of Ollama's message that a client sees."""

CALLERS_FAULT_IN_500: Final = (
    "invalid format:",
    "must be of type",
    "error parsing tool call",
    "invalid tool call arguments",
    "template:",
    "failed to create new sequence",
    "only supports one image",
    "decode webp image",
    "detokenize error",
)
"""Ollama answers 500 to these, though it works: `option "x" must be of type integer`, a template of the client's that
does not parse, a call of a tool that the model wrote badly, an image or a `context` that cannot be read.
"""

NOT_A_NUMBER: Final = ("unsupported value: nan", "unsupported value: +inf", "unsupported value: -inf")
"""Words of a 400 or 500 from /api/embed if the model's output for one text was not a number."""

CALLERS_FAULT_IN_EMBED: Final = (
    "does not support embed",
    "context length",
    "invalid input",
    "missing request body",
    "must be of type",
)
"""Words of a 400 from /api/embed that blame the request; any other 400 there is a failed runner."""


def from_exception(error: httpx.HTTPError, *, stale: bool = False) -> UpstreamError:
    """Maps an exception of httpx. `stale`: the connection was reused and had received no byte of the response."""
    for kinds, fault, words in _TRANSPORT:
        if isinstance(error, kinds):
            return UpstreamError(fault, f"{words}{_reason(error)}.")
    if stale and isinstance(error, _BROKEN):
        return UpstreamError(UpstreamFault.CONNECTION_STALE, f"Ollama had closed the kept connection{_reason(error)}.")
    return UpstreamError(UpstreamFault.CONNECTION_LOST, f"The connection to Ollama broke{_reason(error)}.")


def from_response(status: int, headers: Mapping[str, str], body: bytes, *, path: str, model: str) -> UpstreamError:
    """Maps a status of 300 or above. `headers` are case-insensitive or lower case; `body` may be truncated."""
    message = _message(body)
    if status == 404:
        return _not_found(message, path, model)
    fault = _fault(status, message.lower(), embedding=path == "/api/embed")
    retry_after = retry_after_from(headers.get("retry-after")) if fault is UpstreamFault.BUSY else None
    said = f": {message}" if message else "."
    return UpstreamError(fault, f"Ollama answered {status}{said}", retry_after=retry_after)


SINCE: Final = {"/v1/responses": "0.13.3", "/v1/messages": "0.14.0", "/v1/audio/transcriptions": "0.20.0"}
"""The releases of Ollama that added a path."""


def _not_found(message: str, path: str, model: str) -> UpstreamError:
    """Ollama's router answers `404 page not found` for a path that it lacks."""
    if "page not found" in message:
        newer = f" It came with Ollama {SINCE[path]}." if path in SINCE else ""
        return UpstreamError(UpstreamFault.PATH_NOT_FOUND, f"This Ollama does not serve {path}.{newer}")
    return UpstreamError(UpstreamFault.MODEL_NOT_FOUND, f"model '{model}' not found: run `ollama pull {model}`")


def given_up(message: str) -> UpstreamError:
    """Maps an error in the middle of a stream."""
    wrong_request = any(words in message.lower() for words in CALLERS_FAULT_IN_500)
    fault = UpstreamFault.REQUEST_REJECTED if wrong_request else UpstreamFault.STREAM_ERROR
    return UpstreamError(fault, f"Ollama gave up: {message[:DETAIL_LIMIT]}")


def retry_after_from(value: str | None, *, now: datetime | None = None) -> float | None:
    """Returns the seconds of a `Retry-After`: delta-seconds or an HTTP date (past: 0); None if missing or invalid."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        seconds = float(text[:12])
        return seconds if math.isfinite(seconds) and seconds <= _LONGEST_WAIT else None
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    wait = (moment - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, wait) if wait <= _LONGEST_WAIT else None


_LONGEST_WAIT: Final = 24 * 3600
"""Seconds. A longer `Retry-After` is ignored."""

_BROKEN: Final = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.CloseError)

_TRANSPORT: Final[tuple[tuple[type[httpx.HTTPError], UpstreamFault, str], ...]] = (
    (httpx.ConnectTimeout, UpstreamFault.CONNECT_TIMEOUT, "Ollama did not accept the connection in time"),
    (httpx.PoolTimeout, UpstreamFault.POOL_TIMEOUT, "No connection to Ollama became free in time"),
    (httpx.TimeoutException, UpstreamFault.TOTAL_TIMEOUT, "Ollama did not answer in time"),
    (httpx.ConnectError, UpstreamFault.CONNECT_FAILED, "Ollama cannot be reached"),
    (httpx.DecodingError, UpstreamFault.INVALID_RESPONSE, "Ollama's answer cannot be decoded"),
)


def _fault(status: int, message: str, *, embedding: bool) -> UpstreamFault:
    if status in {401, 403}:
        return UpstreamFault.UNAUTHORIZED
    if status in {429, 503}:
        return UpstreamFault.BUSY
    if embedding and status in {400, 500} and any(words in message for words in NOT_A_NUMBER):
        return UpstreamFault.TEXT_NOT_EMBEDDED
    if status >= 500:
        wrong_request = status == 500 and any(words in message for words in CALLERS_FAULT_IN_500)
        return UpstreamFault.REQUEST_REJECTED if wrong_request else UpstreamFault.SERVER_ERROR
    if status < 400:
        return UpstreamFault.INVALID_RESPONSE
    if status == 400 and embedding and not any(words in message for words in CALLERS_FAULT_IN_EMBED):
        return UpstreamFault.EMBED_FAILED
    return UpstreamFault.REQUEST_REJECTED


def _message(body: bytes) -> str:
    """Ollama's `{"error": "..."}`, else the text as it came (a proxy's page), shortened to one line."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = body.decode("utf-8", "replace")
    if isinstance(answer, dict):
        answer = answer.get("error", "")
    return " ".join(str(answer).split())[:DETAIL_LIMIT]


_WORDS: Final = re.compile(r"(Ollama answered \d+|Ollama gave up): .*|\((?=[^)]*b(?:ytearray\()?['\"]).*", re.DOTALL)


def without_words(error: str) -> str:
    """Returns an error's text for the log: without what Ollama said, and without bytes of a broken answer.

    Both may quote a question or an answer.
    """
    return _WORDS.sub(lambda found: f"{found[1]}." if found[1] else "", error)


def _reason(error: httpx.HTTPError) -> str:
    return f" ({error})" if str(error) else ""
