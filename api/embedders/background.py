"""Embeds what nobody waits for, such as documents: in a thread of its own that gives way to all others.

A question is embedded in another thread meanwhile: it waits for no passage, and the system prefers it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from api.embedders.micro_batch import MicroBatcher
from api.model import EmbedderIdentity, Embedding
from api.ports.models import CurrentIdentity

NICE: Final = 5
"""What the thread's share of a busy processor is: about a third of another's."""


class BackgroundEmbedder:
    """Implements `ports.Embedder`. Without a deadline: who asks has time, and half the work would be for nothing."""

    def __init__(self, identity: EmbedderIdentity, batcher: MicroBatcher[Embedding]) -> None:
        self.current = CurrentIdentity(identity)
        self._identity = identity
        self._batcher = batcher

    async def identity(self) -> EmbedderIdentity:
        """Who embeds: known from the start."""
        return self._identity

    async def embed(self, texts: Sequence[str], *, tenant: str) -> list[Embedding]:
        """One embedding for each text, in order. Raises `EmbeddingUnavailable` on a fault."""
        return await self._batcher.encode(texts)


def give_way() -> None:
    """The calling thread, from now on. On Linux only: elsewhere a thread has no priority of its own."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
