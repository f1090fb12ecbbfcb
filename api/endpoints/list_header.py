"""Headers whose value is a list."""

from __future__ import annotations

from starlette.datastructures import Headers


def list_header(headers: Headers, name: str) -> str:
    """The whole list, empty for none: a proxy may have added a line of its own (RFC 9110, section 5.3)."""
    return ",".join(headers.getlist(name))
