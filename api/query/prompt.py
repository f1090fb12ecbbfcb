"""The prompt. Its template is part of the cache's scope: a changed prompt never serves answers of the old one."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Final, Literal

from api.model import ChatMessage, Source
from api.query import citations
from api.query.fence import Fence
from api.query.prompt_template import PromptTemplate
from api.query.reference_numbers import rewritten

Template = Literal["grounded", "raw"]

GROUNDED: Final = "grounded"
"""As the template file words them."""
RAW: Final = "raw"
"""The turns as the client sent them, with its own system message or none."""


def raw(question: str, history: Sequence[ChatMessage], system: str | None) -> tuple[ChatMessage, ...]:
    """As the client sent them. `system` is its own instruction, where it has one."""
    before = () if system is None else (ChatMessage("system", system),)
    return (*before, *history, ChatMessage("user", question))


class Prompts:
    """The turns of `POST /query`, as one template file words them."""

    def __init__(self, template: PromptTemplate) -> None:
        self._template = template
        self._passage = string.Template(template.passage)
        self._user = string.Template(template.user)
        self._fence = Fence(f"{template.passage}\n{template.user}")

    @property
    def nothing_relevant(self) -> str:
        """The answer where the documents hold nothing that is near the question."""
        return self._template.nothing_relevant

    def plain(self, question: str, history: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
        """An instruction, earlier turns, the question."""
        return ChatMessage("system", self._template.plain_system), *history, ChatMessage("user", question)

    def grounded(
        self, question: str, history: Sequence[ChatMessage], sources: Sequence[Source]
    ) -> tuple[ChatMessage, ...]:
        """An instruction, earlier turns, and the question behind the passages: `[1]` is the first of `sources`.

        Earlier answers come without their citations, whose numbers meant other passages. Reference numbers of the
        passages themselves come in parentheses, so that no answer repeats them as citations.
        """
        passages = "\n\n".join(self._one(number, source) for number, source in enumerate(sources, start=1))
        asked = self._user.substitute(passages=passages, question=self._fence.text(question))
        said = (_without_citations(turn) for turn in history)
        return ChatMessage("system", self._template.grounded_system), *said, ChatMessage("user", asked)

    def _one(self, number: int, source: Source) -> str:
        title, text = self._fence.title(rewritten(source.title)), self._fence.text(rewritten(source.text))
        return self._passage.substitute(number=number, title=title, text=text)


def _without_citations(turn: ChatMessage) -> ChatMessage:
    if turn.role != "assistant":
        return turn
    return ChatMessage("assistant", citations.clean(turn.content, 0))
