"""The prompt. Its template is part of the cache's scope: a changed prompt never serves answers of the old one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from api.model import ChatMessage

Template = Literal["plain-1", "raw"]

VERSION: Final = "plain-1"
RAW: Final = "raw"
"""The turns as the client sent them, with its own system message or none."""
SYSTEM: Final = "Answer the question directly and briefly. If you do not know the answer, say that you do not know."


def build(
    question: str, history: Sequence[ChatMessage], template: Template = VERSION, system: str | None = None
) -> tuple[ChatMessage, ...]:
    """The turns for the language model: an instruction, earlier turns, the question.

    The instruction is ours; with the template `raw` it is `system`, where the client sent one.
    """
    instruction = system if template == RAW else SYSTEM
    before = () if instruction is None else (ChatMessage("system", instruction),)
    return (*before, *history, ChatMessage("user", question))
