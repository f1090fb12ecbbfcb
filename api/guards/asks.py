"""What is asked for: who, when, where, why, how many. A question that says none of these may mean any."""

from __future__ import annotations

from typing import Final

from api.guards.reading import Reading

_WORDS: Final = {"who": "who", "whom": "who", "whose": "who", "when": "when", "where": "where", "why": "why"}
_AFTER_HOW: Final = {
    "many": "how many",
    "much": "how much",
    "long": "how long",
    "old": "how old",
    "far": "how far",
    "often": "how often",
    "tall": "how tall",
    "big": "how big",
    "come": "why",
}
_AFTER_WHAT: Final = {"time": "when", "date": "when", "year": "when", "day": "when", "city": "where", "place": "where"}


def asked_for(reading: Reading) -> str:
    """The kind of the question, by its first word that tells; empty for what and how."""
    words = reading.words
    for index, word in enumerate(words):
        after = words[index + 1] if index + 1 < len(words) else ""
        if word in _WORDS:
            return _WORDS[word] if index == 0 or words[index - 1] not in {"people", "those", "someone"} else ""
        if word == "how":
            return _AFTER_HOW.get(after, "")
        if word in {"what", "which"}:
            return _AFTER_WHAT.get(after, "")
    return ""


def objection(one: Reading, other: Reading) -> str:
    """What differs; empty where nothing does."""
    mine, theirs = asked_for(one), asked_for(other)
    return f"{mine} / {theirs}" if mine and theirs and mine != theirs else ""
