"""Which answers are worth keeping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.model import Generation


def is_complete(generation: Generation, options: Mapping[str, Any]) -> bool:
    """Not empty, and ended by the model itself, or by the length that the caller asked for."""
    reason = generation.end.done_reason
    ended = reason == "stop" or (reason == "length" and "num_predict" in options)
    return ended and bool(generation.text.strip())
