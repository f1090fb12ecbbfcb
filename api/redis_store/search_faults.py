"""What goes wrong with search indexes, in the words of the search module and of redisvl."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

from redis.exceptions import RedisError, ResponseError
from redisvl.exceptions import RedisSearchError
from redisvl.index import AsyncSearchIndex

T = TypeVar("T")


async def created(index: AsyncSearchIndex) -> None:
    """Makes it, unless it exists: many workers may do so at once. Raises Redis's own errors."""
    try:
        await unwrapped(index.create(overwrite=False))
    except ResponseError as error:
        if "already exists" not in str(error).lower():
            raise


async def unwrapped(called: Awaitable[T]) -> T:
    """redisvl wraps Redis's faults in its own: unwrapped again, so that the gate can tell a lost Redis."""
    try:
        return await called
    except RedisSearchError as error:
        if isinstance(error.__cause__, RedisError):
            raise error.__cause__ from None
        raise ResponseError(str(error)) from error


def says_missing(reply: Any) -> bool:
    """Whether a reply is the refusal of one who has no such index: the module words it in one way or the other."""
    text = str(reply).lower() if isinstance(reply, ResponseError) else ""
    return "unknown index" in text or "no such index" in text
