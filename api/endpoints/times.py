"""Times as clients see them."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(moment_ms: int) -> str:
    """Milliseconds since the epoch, as RFC 3339 has it, in UTC."""
    return datetime.fromtimestamp(moment_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
