"""Numbers: the same ones, in the same order."""

from __future__ import annotations

import re
from typing import Final

from api.guards.reading import Reading

_NUMBER: Final = re.compile(r"^v?(\d[\d.,:/-]*)([a-z]{0,3})$")
_UNITS: Final = frozenset(
    "k m b kg g mg km cm mm mi ft lb lbs oz l ml gb mb tb kb hz mhz ghz w kw h hr hrs min s sec ms am pm st nd rd th c "
    "f x".split()
)
_SCALE: Final = {"k": 1_000, "b": 1_000_000_000}
_WORDS: Final = {
    word: value
    for value, word in enumerate(
        "zero _ two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen".split()
    )
    if word != "_"
} | {word: value * 10 for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_LARGE: Final = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_ORDINALS: Final = {
    word: value for value, word in enumerate("first _ third fourth fifth sixth seventh eighth ninth tenth".split(), 1)
}


def numbers(reading: Reading) -> tuple[str, ...]:
    """Each number in a form that does not depend on how it was written, in their order."""
    found: list[str] = []
    for word in reading.words:
        if word in _LARGE and found and found[-1].isdigit():
            found[-1] = str(int(found[-1]) * _LARGE[word])
        else:
            found += _read(word)
    return tuple(found)


def unit_of(word: str) -> str | None:
    """The unit that is written together with its number (`5kg`); None where `word` is no such thing."""
    match = _NUMBER.match(word)
    return match.group(2) if match and match.group(2) in _UNITS else None


def is_number(word: str) -> bool:
    """Whether `word` is a number, a version or a date, with a unit or without."""
    match = _NUMBER.match(word)
    return match is not None and (not match.group(2) or match.group(2) in _UNITS)


def _read(word: str) -> list[str]:
    if word in _WORDS:
        return [str(_WORDS[word])]
    if word in _ORDINALS:
        return [str(_ORDINALS[word])]
    if word in _LARGE:
        return [str(_LARGE[word])]
    if "-" in word and all(part in _WORDS for part in word.split("-")):
        return [str(sum(_WORDS[part] for part in word.split("-")))]
    if not is_number(word):
        return []
    match = _NUMBER.match(word)
    assert match is not None
    return _digits(match.group(1).strip(".,:/-"), _SCALE.get(match.group(2), 1))


def _digits(text: str, scale: int) -> list[str]:
    """`1,000` is one number, `2023-01-02` three, `3.11` one: a version is not what it amounts to."""
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    parts = re.split(r"[,:/-]+", text)
    if scale == 1 or not re.fullmatch(r"\d+(\.\d+)?", text):
        return [part.lstrip("0") or "0" for part in parts if part]
    whole, _, fraction = text.partition(".")
    value = int(whole) * scale + (int(fraction) * scale // 10 ** len(fraction) if fraction else 0)
    return [str(value)]


def objection(one: Reading, other: Reading) -> str:
    """What differs; empty where nothing does."""
    mine, theirs = numbers(one), numbers(other)
    return "" if mine == theirs else f"{' '.join(mine) or '-'} / {' '.join(theirs) or '-'}"
