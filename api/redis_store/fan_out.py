"""What is asked of every partition of the cache at once. Look-ups and stores are not: each concerns one partition."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from api.errors import StoreUnavailable

T = TypeVar("T")


async def on_all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What each gives. Where one fails the others are carried out to their end; then it is raised."""
    ends = await asyncio.gather(*calls, return_exceptions=True)
    faults = [end for end in ends if isinstance(end, BaseException)]
    # What is not a fault of Redis is one of the code's own, and says more.
    for fault in sorted(faults, key=lambda one: isinstance(one, StoreUnavailable)):
        raise fault
    return [end for end in ends if not isinstance(end, BaseException)]
