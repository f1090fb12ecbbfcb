"""Tickets: one names a call from the moment it asks until its permit is back, and its bytes are its place in line.

    user acme 1795441663212000 vm-16499-f46f 9f3c1a7be2d04c55

Priority, tenant (percent-encoded, so that no blank is in it), the moment of asking (microseconds since 1970 by Redis's
clock), worker, and hex digits that make it one of its kind. Sorted as bytes, the tickets of one tenant stand together,
the oldest first: the next tenant in turn is a range away, in Redis and here alike.
"""

from __future__ import annotations

import secrets
import time
from enum import StrEnum
from typing import Final
from urllib.parse import quote, unquote

NOBODY: Final = "-"
"""The tenant of calls that are nobody's own."""


class Priority(StrEnum):
    """Who goes first."""

    USER = "user"
    BACKGROUND = "background"


def tenant_field(tenant: str) -> str:
    """A tenant's name as it stands in a ticket."""
    return quote(tenant, safe="", errors="replace") or NOBODY


def new_id() -> str:
    """The end of a ticket."""
    return secrets.token_hex(8)


def local_ticket(priority: Priority, tenant: str, worker: str) -> str:
    """A ticket by this worker's own clock, for when Redis can not give one."""
    return f"{priority} {tenant_field(tenant)} {time.time_ns() // 1000} {worker} {new_id()}"


def place(ticket: str) -> tuple[Priority, str]:
    """Priority and tenant (still encoded): who takes turns with whom."""
    priority, tenant, _ = ticket.split(" ", 2)
    return Priority(priority), tenant


def tenant_of(ticket: str) -> str:
    """The tenant's name."""
    return unquote(place(ticket)[1])
