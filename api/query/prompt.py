"""The prompt. Its version is part of the cache's scope: a changed prompt never serves answers of the old one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from api.model import ChatMessage

VERSION: Final = "plain-1"
SYSTEM: Final = "Answer the question directly and briefly. If you do not know the answer, say that you do not know."


def build(question: str, history: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """The turns for the language model: the system's instruction, earlier turns, the question."""
    return (ChatMessage("system", SYSTEM), *history, ChatMessage("user", question))
