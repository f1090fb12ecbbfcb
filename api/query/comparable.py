"""Whether the vectors of two questions stand for all of them: only then does a high similarity mean anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from api.guards.agreement import Disagreement
from api.languages.languages import EVERY, Languages
from api.model import CachedAnswer

PLAIN_WORD: Final = 100
"""Letters of the longest word that every embedder reads."""
PLAIN_TEXT: Final = 250
"""Characters that are surely read, however many tokens they make."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as the semantic tier compares it.

    `unread`: what the embedder could not read of it. `languages`: those that the embedder was made for.
    """

    question: str
    unread: tuple[str, ...] = ()
    languages: Languages = EVERY
    not_told: tuple[str, ...] = field(init=False)
    """All that the vector does not tell: what was not read, and words of scripts that the languages do not have."""
    language: str = field(init=False)
    """The question's language, where the embedder was not made for it; else an empty text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "not_told", _not_told(self.question, self.unread, self.languages))
        object.__setattr__(self, "language", self.languages.outside(self.question))


def incomparable(asked: Asked, stored: CachedAnswer) -> Disagreement | None:
    """Why a stored question must not be compared by its vector, where that is so."""
    unread = _unread(stored)
    if unread is None:
        return Disagreement("unread", "not known of the cached question")
    told = _not_told(stored.question, unread, asked.languages)
    if told != asked.not_told:
        return Disagreement("unread", f"{' '.join(asked.not_told) or 'nothing'} / {' '.join(told) or 'nothing'}")
    language = asked.languages.outside(stored.question)
    return Disagreement("language", f"the cached question is in {language}") if language else None


def _not_told(question: str, unread: tuple[str, ...], languages: Languages) -> tuple[str, ...]:
    return (*unread, *(word for word in languages.words_outside(question) if word not in unread))


def _unread(stored: CachedAnswer) -> tuple[str, ...] | None:
    """None where it is not known: older releases did not store it."""
    if stored.unread is not None:
        return stored.unread
    text = stored.question
    is_plain = text.isascii() and len(text) <= PLAIN_TEXT and all(len(word) <= PLAIN_WORD for word in text.split())
    return () if is_plain else None
