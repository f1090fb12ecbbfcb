"""English words for numbers."""

from __future__ import annotations

from typing import Final

from api.languages.function_words import words_in


def ranked(text: str, start: int) -> dict[str, int]:
    """Words that count up from `start`."""
    return {word: value for value, word in enumerate(text.split(), start)}


SMALL: Final = ranked(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""",
    start=0,
)
TENS: Final = {
    word: 10 * value for word, value in ranked("twenty thirty forty fifty sixty seventy eighty ninety", start=2).items()
}
SCALES: Final = {"hundred": 100, "thousand": 1000, "k": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
ORDINALS: Final = ranked("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth", start=1)
OTHERS: Final = {
    "half": "0.5",
    "zero": "0",
    "dozen": "12",
    "ii": "2",
    "iii": "3",
    "iv": "4",
    "vii": "7",
    "viii": "8",
    "ix": "9",
}
SOFT: Final = {"one": "1", "second": "2", "twice": "2", "once": "1"}
"""May be a number (two of one kind) or not (which one, wait a second): dropped where that makes the two agree."""
SUFFIXES: Final = words_in("st nd rd th")
HOURS: Final = words_in("am pm")
WORDS: Final = frozenset((*SMALL, *TENS, *SCALES, *ORDINALS, *OTHERS, *SOFT, "minus"))
