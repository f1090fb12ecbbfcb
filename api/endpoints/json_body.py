"""JSON from a client, in bounded time: a body of many small lists or objects is refused before it is decoded.

Decoding holds the interpreter's lock, so a thread would not help. A mebibyte of text takes a millisecond; a mebibyte of
empty lists takes 100, a third of a million objects for the garbage collector among them.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from api.endpoints.validation import refused

MOST_CONTAINERS: Final = 10_000
"""Lists and objects in a body. A conversation of 1,000 turns has about 1,000."""
MOST_TOKENS: Final = 100_000
"""Strings, lists and objects in a body with many brackets. A bound on the work of counting them."""

_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]', re.DOTALL)
"""A string, with its end or without, or the beginning of a list or an object. Never tries a byte twice."""


def json_of(body: bytes, what: str = "The body", most_containers: int = MOST_CONTAINERS) -> Any:
    """The value of a body, or of `what` it is. Raises `InvalidRequest`."""
    refuse_too_many_values(body, most_containers)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise refused("", f"{what} is not valid JSON.") from None


def refuse_too_many_values(body: bytes, most_containers: int = MOST_CONTAINERS) -> None:
    """Raises `InvalidRequest` for a body with more lists and objects than any request needs."""
    if body.count(b"[") + body.count(b"{") > most_containers and not _is_within(body, most_containers):
        raise refused("", f"The body has more than {most_containers} lists and objects, or too many strings.")


def _is_within(body: bytes, most_containers: int) -> bool:
    """Counts outside strings: the text of a document may have many brackets."""
    containers = 0
    for tokens, token in enumerate(_TOKEN.finditer(body)):
        containers += body[token.start()] != ord('"')
        if containers > most_containers or tokens >= MOST_TOKENS:
            return False
    return True
