"""Replies of Redis, typed. The clients of the tests decode nothing, and redis-py's annotations say `bytes | str`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def raw(reply: object) -> bytes:
    """A reply that is there."""
    assert isinstance(reply, bytes)
    return reply


def text(reply: object) -> str:
    """The same as text."""
    return raw(reply).decode()


def texts(replies: Iterable[object]) -> list[str]:
    """The names of a list, a set or a hash's fields."""
    return [text(reply) for reply in replies]


def fields(reply: Mapping[bytes | str, bytes | str]) -> dict[str, bytes]:
    """A hash whose values may be binary."""
    return {text(name): raw(value) for name, value in reply.items()}
