"""Requests of commands to a running service: the address, the key, and errors.

A service that cannot be reached ends a command with exit code 3, a refusal with 1. Neither prints a key, nor the user
and password of a URL. A program that is not Ragherd is recognized by what its answers lack.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any, Final

import httpx
import typer
from rich.console import Console
from rich.table import Table

from api.errors import SettingsError
from api.settings import load_settings
from ragherd.exits import FAILED, INTERRUPTED, UNREACHABLE, USAGE_ERROR, exit_with

KEY_VARIABLE: Final = "RAGHERD_API_KEY"
CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 30.0
PIPE_WIDTH: Final = 240
PROXY_ERRORS: Final = frozenset({502, 503, 504})
"""Without `X-Worker`, these come from a proxy that cannot reach the service."""

Url = Annotated[str | None, typer.Option("--url", help="URL of the service. Default: HOST and PORT.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


class CallerPriority(StrEnum):
    """Values of the request header `X-Ragherd-Priority`."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


PriorityOption = Annotated[
    CallerPriority | None,
    typer.Option(
        "--priority", help="batch waits for Ollama behind interactive questions. Default: what the key allows."
    ),
]


def priority_header(priority: CallerPriority | None) -> dict[str, str]:
    """Returns the request header, if a priority is given."""
    return {} if priority is None else {"X-Ragherd-Priority": priority.value}


_USER: Final = re.compile(r"^([\w+.-]*://)?.*@")
_MARKUP: Final = re.compile(r"\s*(?:<!|<\?|<html)", re.IGNORECASE)
_CONTROLS: Final = {code: None for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}


class Unreachable(Exception):
    """The service cannot be reached. The message is one line with the address and the reason."""


class RequestRefused(Exception):
    """The service answered with an error. The message is one line with the reason."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ServiceClient:
    """Sends requests to one service. Use `connected` or `opened` to create one."""

    def __init__(self, http: httpx.Client, *, has_key: bool) -> None:
        self._http = http
        self._has_key = has_key

    @property
    def url(self) -> str:
        """The address of the service, without credentials."""
        return str(self._http.base_url.copy_with(userinfo=b"")).rstrip("/")

    def get(self, path: str, *, field: str = "", **params: Any) -> Any:
        """Returns the JSON of a GET request. Parameters that are None are left out."""
        return self.send("GET", path, field=field, params=_given(params))

    def health(self) -> Any:
        """Returns the body of GET /health, also of an unhealthy service."""
        return self.send("GET", "/health", accepted=frozenset({503}), field="database")

    def metrics(self) -> str:
        """Returns the metrics of the replica that answers, in Prometheus's text format."""
        return self._checked(self._response("GET", "/metrics")).text

    def send(
        self, method: str, path: str, *, accepted: frozenset[int] = frozenset(), field: str = "", **sent: Any
    ) -> Any:
        """Returns the JSON object of a response, which has a `field`.

        Raises `RequestRefused` for an error status that is not `accepted`, and for other answers. Reading a field
        that the object lacks raises it too.
        """
        response = self._checked(self._response(method, path, **sent), accepted)
        found = parsed(response.content, self._foreign(path))
        if not isinstance(found, dict) or (field and field not in found):
            raise self._foreign(path)
        return found

    @contextmanager
    def stream(self, path: str, **sent: Any) -> Iterator[Iterator[tuple[str, Any]]]:
        """Sends a POST request and yields the server-sent events as pairs of name and data."""
        with self._faults(path), self._http.stream("POST", path, **sent) as response:
            if not response.is_success:
                response.read()
            self._checked(response)
            yield self._events(path, response)

    def _response(self, method: str, path: str, **sent: Any) -> httpx.Response:
        with self._faults(path):
            return self._http.request(method, path, **sent)

    @contextmanager
    def _faults(self, path: str) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise Unreachable(f"{self.url}: cannot be reached: {str(error) or type(error).__name__}") from None
        except httpx.DecodingError:
            raise self._foreign(path) from None
        except UnicodeEncodeError:
            raise exit_with("the text is not UTF-8", USAGE_ERROR) from None

    def _events(self, path: str, response: httpx.Response) -> Iterator[tuple[str, Any]]:
        name = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data = parsed(line[6:], self._foreign(path))
                if name != "sources" and not isinstance(data, dict):
                    raise self._foreign(path)
                yield name, data

    def _foreign(self, path: str) -> RequestRefused:
        return RequestRefused(f"{self.url}: {path} is not an answer of Ragherd", httpx.codes.OK)

    def _checked(self, response: httpx.Response, accepted: frozenset[int] = frozenset()) -> httpx.Response:
        status = response.status_code
        if status in PROXY_ERRORS and "X-Worker" not in response.headers:
            url = response.request.url.copy_with(query=None, userinfo=b"")
            raise Unreachable(f"{url}: {status}: {detail_of(response)}")
        if not response.is_success and status not in accepted:
            raise RequestRefused(
                f"{response.request.url.path}: {status}: {detail_of(response)}{self._hint(status)}", status
            )
        return response

    def _hint(self, status: int) -> str:
        if status == 401:
            return f" {KEY_VARIABLE} has an unknown key." if self._has_key else f" Set {KEY_VARIABLE}."
        if status == 403:
            return f" {KEY_VARIABLE} needs an admin key." if self._has_key else f" Set {KEY_VARIABLE} to an admin key."
        return ""


def parsed(text: str | bytes, foreign: Exception) -> Any:
    """Returns JSON. Raises `foreign` if it is none, and when somebody reads a field that an object lacks."""

    class Fields(dict[str, Any]):
        def __missing__(self, _name: str) -> Any:
            raise foreign

    try:
        return json.loads(text, object_hook=Fields)
    except ValueError:
        raise foreign from None


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def detail_of(response: httpx.Response) -> str:
    """Returns the reason of an error response, in one line."""
    try:
        return clean(str(response.json()["detail"]))
    except (ValueError, KeyError, TypeError):
        text = "" if _MARKUP.match(response.text) else clean(response.text[:200])
        return text or response.reason_phrase or "an empty answer"


@contextmanager
def opened(url: str | None, *, read_seconds: float = READ_SECONDS) -> Iterator[ServiceClient]:
    """Yields a client. Raises `Unreachable` and `RequestRefused`. Ends the command if the URL or key is unusable."""
    address, headers = target(url)
    timeout = httpx.Timeout(read_seconds, connect=CONNECT_SECONDS)
    with httpx.Client(base_url=address, headers=headers, timeout=timeout, trust_env=False) as http:
        yield ServiceClient(http, has_key=bool(headers))


def target(url: str | None) -> tuple[httpx.URL, dict[str, str]]:
    """Returns the address of the service and the header with the key. Ends the command if one is unusable."""
    key = usable_key(os.environ.get(KEY_VARIABLE, ""))
    return _address(url), {"Authorization": f"Bearer {key}"} if key else {}


@contextmanager
def connected(url: str | None, *, read_seconds: float = READ_SECONDS) -> Iterator[ServiceClient]:
    """Yields a client for a command. Its errors end the command with one line and the exit code."""
    try:
        with opened(url, read_seconds=read_seconds) as client:
            yield client
    except Unreachable as error:
        raise exit_with(str(error), UNREACHABLE) from None
    except RequestRefused as error:
        raise exit_with(str(error), FAILED) from None


def usable_key(given: str) -> str:
    """Returns a key without spaces around it. Ends the command if no header can carry it."""
    key = given.strip()
    if any(not 32 < ord(character) < 127 for character in key):
        raise exit_with(f"{KEY_VARIABLE}: a key has only printable ASCII characters, without spaces", USAGE_ERROR)
    return key


def without_user(url: str) -> str:
    """Returns what may not be a URL without the user and password that it may have, for output."""
    return _USER.sub(r"\1***@", url)


def _address(url: str | None) -> httpx.URL:
    if url is None:
        return httpx.URL(own_address())
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        address = httpx.URL("")
    if address.scheme not in {"http", "https"} or not address.host or (address.port or 0) > 65_535:
        raise exit_with(f"--url {without_user(url)}: must be http://HOST:PORT or https://HOST:PORT", USAGE_ERROR)
    return address


def own_address() -> str:
    """Returns the address of a service on this machine with the settings HOST and PORT."""
    try:
        server = load_settings().server
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    return local_url(server.host, server.port)


def local_url(host: str, port: int) -> str:
    """Returns the URL of a service on this machine that listens there."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound here
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def confirm(question: str, unasked: str, *, otherwise: str = "--yes") -> None:
    """Asks on standard error. Ends the command if the answer is no, or if nobody can answer."""
    if not sys.stdin.isatty():
        raise exit_with(f"{unasked}; give {otherwise}", USAGE_ERROR)
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort as error:
        code = INTERRUPTED if isinstance(error.__context__, KeyboardInterrupt) else FAILED
        raise exit_with("nothing was changed", code) from None
    if not agreed:
        raise exit_with("nothing was changed")


# -- Output ------------------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Removes control characters. Texts of models and users could otherwise control the terminal."""
    return text.translate(_CONTROLS)


def terminal(*, stderr: bool = False) -> Console:
    """Returns a console that prints texts as they are, without markup. A pipe or a file gets wide lines."""
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_WIDTH
    return console


def new_table(*titles: str) -> Table:
    """Returns a table without lines."""
    return Table(*titles, box=None, pad_edge=False)


def moment(time: str | None) -> str:
    """Returns an RFC 3339 time without fractions of a second."""
    return "" if time is None else re.sub(r"\.\d+(?=Z$)", "", time)


def print_document(document: Any) -> None:
    """Prints a document as JSON."""
    typer.echo(json.dumps(document))
