"""Requests of commands to a running service: the address, the key, and errors.

A service that cannot be reached ends a command with exit code 3, a refusal with 1. Neither prints a key.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Final

import httpx
import typer
from rich.console import Console
from rich.table import Table

from api.errors import SettingsError
from api.settings import load_settings
from ragherd.exits import FAILED, UNREACHABLE, USAGE_ERROR, exit_with

KEY_VARIABLE: Final = "RAGHERD_API_KEY"
CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 30.0
PIPE_WIDTH: Final = 240
PROXY_ERRORS: Final = frozenset({502, 503, 504})
"""Without `X-Worker`, these come from a proxy that cannot reach the service."""

Url = Annotated[str | None, typer.Option("--url", help="URL of the service. Default: HOST and PORT.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

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

    def get(self, path: str, **params: Any) -> Any:
        """Returns the JSON of a GET request. Parameters that are None are left out."""
        return self.send("GET", path, params=_given(params))

    def health(self) -> Any:
        """Returns the body of GET /health, also of an unhealthy service."""
        return self.send("GET", "/health", accepted=frozenset({503}))

    def metrics(self) -> tuple[str, str]:
        """Returns the host that answered and its metrics, in Prometheus's text format."""
        response = self._checked(self._response("GET", "/metrics"))
        return response.headers.get("X-Worker", "").rpartition("-")[0].rpartition("-")[0], response.text

    def send(self, method: str, path: str, *, accepted: frozenset[int] = frozenset(), **sent: Any) -> Any:
        """Returns the JSON of a response. Raises `RequestRefused` for an error status that is not `accepted`."""
        response = self._checked(self._response(method, path, **sent), accepted)
        try:
            return response.json()
        except ValueError:
            raise RequestRefused(f"{self.url}: {path} is not an answer of Ragherd", response.status_code) from None

    @contextmanager
    def stream(self, path: str, **sent: Any) -> Iterator[Iterator[tuple[str, Any]]]:
        """Sends a POST request and yields the server-sent events as pairs of name and data."""
        try:
            with self._http.stream("POST", path, **sent) as response:
                if not response.is_success:
                    response.read()
                self._checked(response)
                yield _events(response)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _response(self, method: str, path: str, **sent: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **sent)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(f"{self.url}: cannot be reached: {str(error) or type(error).__name__}")

    def _checked(self, response: httpx.Response, accepted: frozenset[int] = frozenset()) -> httpx.Response:
        status = response.status_code
        if status in PROXY_ERRORS and "X-Worker" not in response.headers:
            raise Unreachable(f"{response.request.url.copy_with(query=None)}: {status}: {detail_of(response)}")
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


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def detail_of(response: httpx.Response) -> str:
    """Returns the reason of an error response, in one line."""
    try:
        return clean(str(response.json()["detail"]))
    except (ValueError, KeyError, TypeError):
        return clean(response.text[:200]) or response.reason_phrase


def _events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


@contextmanager
def opened(url: str | None, *, read_seconds: float = READ_SECONDS) -> Iterator[ServiceClient]:
    """Yields a client. Raises `Unreachable` and `RequestRefused`. Ends the command if the URL or key is unusable."""
    address, headers = target(url)
    timeout = httpx.Timeout(read_seconds, connect=CONNECT_SECONDS)
    with httpx.Client(base_url=address, headers=headers, timeout=timeout, trust_env=False) as http:
        yield ServiceClient(http, has_key=bool(headers))


def target(url: str | None) -> tuple[httpx.URL, dict[str, str]]:
    """Returns the address of the service and the header with the key. Ends the command if one is unusable."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if any(not 32 < ord(character) < 127 for character in key):
        raise exit_with(f"{KEY_VARIABLE}: a key has only printable ASCII characters, without spaces", USAGE_ERROR)
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


def _address(url: str | None) -> httpx.URL:
    if url is None:
        return httpx.URL(own_address())
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise exit_with(f"--url {url}: {error}", USAGE_ERROR) from None
    if address.scheme not in {"http", "https"} or not address.host or (address.port or 0) > 65_535:
        raise exit_with(f"--url {url}: must be http://HOST:PORT or https://HOST:PORT", USAGE_ERROR)
    return address


def own_address() -> str:
    """Returns the address of a service on this machine with the settings HOST and PORT."""
    try:
        server = load_settings().server
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)  # noqa: S104 - not bound here
    return f"http://[{host}]:{server.port}" if ":" in host else f"http://{host}:{server.port}"


# -- Output ------------------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Removes control characters. Texts of models and users could otherwise control the terminal."""
    return text.translate(_CONTROLS)


def terminal() -> Console:
    """Returns a console that prints texts as they are, without markup. A pipe or a file gets wide lines."""
    console = Console(markup=False, highlight=False, emoji=False)
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
