"""Whether the guards for other languages than English read a question at all."""

from __future__ import annotations

from api.guards.words import Words
from api.languages.function_words import ENGLISH


def is_read(question: Words) -> bool:
    """Where another language prevails, and where no English word of grammar tells (`Alarm einschalten`)."""
    return not question.english or ENGLISH.isdisjoint(question.words)
