"""Numbers and durations in their surface forms: 24 hours, twenty-four hours, 1 day."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Final

WORDS: Final[Mapping[int, str]] = {
    **dict(
        enumerate(
            ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
        )
    ),
    14: "fourteen",
    15: "fifteen",
    20: "twenty",
    24: "twenty-four",
    30: "thirty",
    48: "forty-eight",
    60: "sixty",
}
MINUTES: Final[Mapping[str, int]] = {"minute": 1, "hour": 60, "day": 1440, "week": 10080, "month": 43200}
EXACT: Final = (("minute", "hour", 60), ("hour", "day", 24), ("day", "week", 7))
"""Units of which a whole number makes another unit."""


MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip


def spoken(number: int, random: Random) -> str:
    """Returns the number in figures, or sometimes in words."""
    return WORDS[number] if number in WORDS and random.random() < 0.4 else str(number)


def minutes(count: int, unit: str) -> int:
    """Returns the length of a duration, which is equal for its forms."""
    return count * MINUTES[unit]


def duration(count: int, unit: str, random: Random) -> str:
    """Returns a form of a duration. Its unit may be another one that it fills exactly."""
    forms = [(count, unit)]
    for small, large, ratio in EXACT:
        if unit == large:
            forms.append((count * ratio, small))
        elif unit == small and count % ratio == 0:
            forms.append((count // ratio, large))
    number, name = random.choice(forms)
    return f"{spoken(number, random)} {name}{'' if number == 1 else 's'}"
