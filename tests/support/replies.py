"""Typed replies of Redis: the tests' clients decode nothing, and redis-py's annotations are `bytes | str`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def raw(reply: object) -> bytes:
    """Returns a reply that is not None."""
    assert isinstance(reply, bytes)
    return reply


def text(reply: object) -> str:
    """Returns it as text."""
    return raw(reply).decode()


def texts(replies: Iterable[object]) -> list[str]:
    """Returns the names of a list, a set or a hash's fields."""
    return [text(reply) for reply in replies]


def fields(reply: Mapping[bytes | str, bytes | str]) -> dict[str, bytes]:
    """Returns a hash whose values may be binary."""
    return {text(name): raw(value) for name, value in reply.items()}
