"""Other words for the same thing, put into one form before any guard compares: 2FA, cashpoints, spans of time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from api.guards.vocabulary import SMALL, TENS
from api.languages.function_words import words_in

_PHRASES: Final = """
mfa = 2fa
two factor authentication = 2fa
2 factor authentication = 2fa
multi factor authentication = 2fa
multifactor authentication = 2fa
two step verification = 2fa
2 step verification = 2fa
two factor = 2fa
2 factor = 2fa
cashpoint = atm
cashpoints = atms
cash machine = atm
cash machines = atms
cash point = atm
cash points = atms
mon fri = weekdays
mon to fri = weekdays
monday to friday = weekdays
monday through friday = weekdays
monday friday = weekdays
mondays to fridays = weekdays
say no to = decline
says no to = declines
saying no to = declining
said no to = declined
noon = 12 pm
midday = 12 pm
midnight = 12 am
half an hour = 30 minutes
an hour and a half = 90 minutes
a fortnight = 14 days
one fortnight = 14 days
"""
HALVES: Final = {
    ("in", "the", "morning"): "am",
    ("in", "the", "afternoon"): "pm",
    ("in", "the", "evening"): "pm",
    ("at", "night"): "pm",
}
"""After an hour: seven in the morning."""
WEEKS: Final = words_in("week weeks")
YEARS: Final = words_in("year years")
HOURS: Final = words_in("hour hours hr hrs")
SPANS: Final = WEEKS | YEARS | HOURS


def _phrases() -> dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]]:
    """By first word, the longest first."""
    table: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = {}
    for line in filter(None, _PHRASES.splitlines()):
        phrase, _, same = line.partition(" = ")
        words = tuple(phrase.split())
        table.setdefault(words[0], []).append((words, tuple(same.split())))
    for phrases in table.values():
        phrases.sort(key=lambda one: -len(one[0]))
    return table


PHRASES: Final = _phrases()
TRIGGERS: Final = (
    frozenset({"factor", "step", "mfa", "multi", "multifactor", "fri", "friday", "fridays", "say", "says", "saying"})
    | {"said", "noon", "midday", "midnight", "fortnight", "hour", "machine", "machines", "cashpoint", "cashpoints"}
    | {"point", "points", "morning", "afternoon", "evening", "night"}
    | SPANS
)
"""Without one of these there is nothing to put."""


@dataclass(slots=True)
class Rewritten:
    """`words` in one form. `places`: where each of the old words went. `spans`: how a span of time was written."""

    words: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    spans: dict[int, str] = field(default_factory=dict)


def rewritten(words: Sequence[str]) -> Rewritten:
    """One walk over the words."""
    result = Rewritten()
    place = 0
    while place < len(words):
        taken, same = _phrase(words, place)
        if not taken:
            taken, same = _hour(words, place)
        if not taken:
            taken, same = _span(words, place)
            if taken:
                result.spans[len(result.words)] = " ".join(words[place : place + taken])
        result.places += [len(result.words)] * max(taken, 1)
        result.words += same if taken else (words[place],)
        place += max(taken, 1)
    return result


def moved(places: Iterable[int], result: Rewritten) -> frozenset[int]:
    """Places among the new words."""
    return frozenset(result.places[place] if place < len(result.places) else len(result.words) for place in places)


def _phrase(words: Sequence[str], place: int) -> tuple[int, tuple[str, ...]]:
    for phrase, same in PHRASES.get(words[place], ()):
        if tuple(words[place : place + len(phrase)]) == phrase:
            return len(phrase), same
    return 0, ()


def _hour(words: Sequence[str], place: int) -> tuple[int, tuple[str, ...]]:
    """seven in the morning, 7 am, seven am: 7 am."""
    value, size = _value(words, place)
    if not size or not 1 <= value <= 12 or value != int(value):
        return 0, ()
    place += size
    for half, mark in HALVES.items():
        if tuple(words[place : place + len(half)]) == half:
            return size + len(half), (f"{value:g}", mark)
    if words[place : place + 1] and words[place] in ("am", "pm") and not words[place - 1][0].isdigit():
        return size + 1, (f"{value:g}", words[place])
    return 0, ()


def _span(words: Sequence[str], place: int) -> tuple[int, tuple[str, ...]]:
    """two weeks: 14 days; a year in months, hours in minutes or in days."""
    value, size = _value(words, place)
    unit = words[place + size] if size and place + size < len(words) else ""
    if unit not in SPANS:
        return 0, ()
    if unit in WEEKS:
        return size + 1, (f"{7 * value:g}", "days")
    if unit in YEARS:
        return size + 1, (f"{12 * value:g}", "months")
    if value % 24 == 0:
        return size + 1, (f"{value / 24:g}", "days")
    return size + 1, (f"{60 * value:g}", "minutes")


def _value(words: Sequence[str], place: int) -> tuple[float, int]:
    """The number that begins here and how many words it has: figures up to four digits, or words up to ninety-nine."""
    word = words[place]
    if word[0].isdigit():
        plain = len(word) <= 5 and word.isascii() and word.replace(".", "", 1).isdigit() and word[-1] != "."
        return (float(word), 1) if plain else (0.0, 0)
    if word in TENS:
        unit = SMALL.get(words[place + 1], 0) if place + 1 < len(words) else 0
        return (float(TENS[word] + unit), 2) if 0 < unit < 10 else (float(TENS[word]), 1)
    return (float(SMALL[word]), 1) if word in SMALL else (0.0, 0)
