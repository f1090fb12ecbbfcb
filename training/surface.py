"""Changes how a question is written and not what it asks: case, courtesy, misspellings, the order of clauses."""

from __future__ import annotations

import re
from random import Random
from typing import Final

GREETINGS: Final = (
    "Hi, ", "Hello! ", "Hey, ", "Quick question: ", "Excuse me, ", "Good morning. ", "Sorry to bother you, ",
    "Hey there, ",
)  # fmt: skip
THANKS: Final = (", please?", " please", "? Thanks", "? thank you", "? Thanks in advance")
NEIGHBOURS: Final = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wqwrtyuioaqsdfghjkzxzcvbbn", strict=True))
"""A key and an adjacent one."""
SWAPPED: Final = re.compile(r"\b([\w-]{3,}) (and|or) ([\w-]{3,})\b")
UNSWAPPED: Final = frozenset(("from", "can", "how", "what", "why", "when", "the", "not"))
CLAUSE: Final = re.compile(
    r"^(?P<question>.{12,}?) (?P<clause>(?:if|when|before|after|without|during|with) [^?.,]{4,40})(?P<end>[?.]?)$"
)
QUESTION_LAST: Final = tuple(
    (re.compile(start + r"(?P<topic>[^?.]{6,60})[?.]?$", re.IGNORECASE), ending)
    for start, ending in (
        (r"^how (?:do|can) i ", ", how do I do that?"),
        (r"^where (?:do|can) i ", ", where can I do that?"),
        (r"^can i ", ", can I do that?"),
        (r"^what is ", ": what is it?"),
        (r"^what are ", ": what are they?"),
        (r"^why is ", ": why is that?"),
    )
)
POLITE: Final = re.compile(
    r"\b(?:please|kindly|just|actually|(?:can you |could you )?tell me|i(?: woul|')d like to know)\b,? ?",
    re.IGNORECASE,
)
ARTICLES: Final = re.compile(r"\b(?:a|an|the|my) ", re.IGNORECASE)
TYPOS: Final = 0.14


def vary(text: str, random: Random) -> str:
    """Returns the question as another person might type it. Positive and negative pairs vary alike."""
    text = text.replace("  ", " ")
    case = random.random()
    if case < 0.18:
        text = text.lower()
    elif case > 0.25:
        text = text[:1].upper() + text[1:]
    if random.random() < 0.2:
        text = text.rstrip("?.")
    if random.random() < 0.09:
        first = text[:1] if text.startswith(("I ", "I'")) else text[:1].lower()
        text = random.choice(GREETINGS) + first + text[1:]
    if random.random() < 0.06:
        text = text.rstrip("?.") + random.choice(THANKS)
    if random.random() < TYPOS:
        text = misspell(text, random)
    return text


def misspell(text: str, random: Random) -> str:
    """Returns the text with one or two typing mistakes, none in a number."""
    for _ in range(random.choice((1, 1, 2))):
        text = random.choice((_swap, _omit, _double, _neighbour, _no_apostrophe))(text, random)
    return text


def reorder(text: str, random: Random) -> str | None:
    """Returns the same question in another order of words, or None."""
    ways = [way for way in (_clause_first, _question_last, _swap_sides) if way(text) is not None]
    return random.choice(ways)(text) if ways else None


def _clause_first(text: str) -> str | None:
    found = CLAUSE.match(text)
    if found is None:
        return None
    clause = found["clause"]
    return f"{clause[:1].upper()}{clause[1:]}, {_lower_first(found['question'])}{found['end']}"


def _question_last(text: str) -> str | None:
    """Turns `How do I close my account?` into `Close my account: how do I do that?`"""
    for pattern, ending in QUESTION_LAST:
        found = pattern.match(text)
        if found is not None:
            topic = found["topic"]
            return f"{topic[:1].upper()}{topic[1:]}{ending}"
    return None


def _swap_sides(text: str) -> str | None:
    found = SWAPPED.search(text)
    if found is None or UNSWAPPED & {found[1].lower(), found[3].lower()}:
        return None
    return f"{text[: found.start()]}{found[3]} {found[2]} {found[1]}{text[found.end() :]}"


def shorten(text: str, random: Random) -> str | None:
    """Drops words that carry no meaning, as people do who type into a search box. Returns None if there are none."""
    kept = POLITE.sub("", text)
    if random.random() < 0.7:
        kept = ARTICLES.sub("", kept)
    kept = " ".join(kept.split())
    return kept if kept != text and len(kept.split()) > 2 else None


def _lower_first(text: str) -> str:
    return text if text.startswith(("I ", "I'")) else text[:1].lower() + text[1:]


def _places(text: str) -> list[int]:
    """Returns places inside of words of four and more letters."""
    return [
        match.start() + place for match in re.finditer(r"[A-Za-z]{4,}", text) for place in range(1, len(match[0]) - 1)
    ]


def _swap(text: str, random: Random) -> str:
    places = _places(text)
    if not places:
        return text
    at = random.choice(places)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def _omit(text: str, random: Random) -> str:
    places = _places(text)
    if not places:
        return text
    at = random.choice(places)
    return text[:at] + text[at + 1 :]


def _double(text: str, random: Random) -> str:
    places = _places(text)
    if not places:
        return text
    at = random.choice(places)
    return text[:at] + text[at] + text[at:]


def _neighbour(text: str, random: Random) -> str:
    places = [place for place in _places(text) if text[place] in NEIGHBOURS]
    if not places:
        return text
    at = random.choice(places)
    return text[:at] + NEIGHBOURS[text[at]] + text[at + 1 :]


def _no_apostrophe(text: str, random: Random) -> str:
    del random
    return text.replace("'", "", 1)
