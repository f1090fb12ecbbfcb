"""Names that differ and mean the same: a part of a longer one, or one with a slip of typing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from api.languages.function_words import words_in

GIVEN: Final = words_in(
    """
    albert alexander alfred andrew angela anthony arnold arthur barack benjamin bernie bill bob boris brad bruce
    charles charlie christopher claude daniel david denzel donald douglas edward elon emmanuel eric ernest ferdinand
    frank franklin frederick galileo george gerald giuseppe hans harry henry hugh isaac jack jacques jair james jane
    jeff jeffrey jim jimmy joe johann john jonathan joseph julius justin karl keanu keir kim kurt larry leo leonardo
    lewis lionel louis ludwig marie mark martin matthew max meryl michael mike mohandas morgan napoleon narendra neil
    nelson nicolas nikola olaf oscar oprah pablo patrick paul peter philip pierre quentin rafael ralph ray recep richard
    rishi robert roger ronald sam samuel satya scott sergei sigmund simon stephen steve steven sundar ted theresa thomas
    tiger tim timothy tom tony usain vincent vladimir volodymyr walt walter warren william winston wolfgang xi
    """
)
"""First names of bearers known by their surnames alone. Not of their relatives (Michelle, Hillary, Melania)."""
TITLES: Final = words_in(
    "mr mrs ms miss dr doctor prof professor president chancellor senator sir lord lady dame pope mount minister"
)
MAKERS: Final = words_in("google microsoft adobe samsung mozilla atlassian sony nintendo meta")
"""Their products go by their own names too: Google Chrome, Chrome."""
BEFORE: Final = GIVEN | TITLES | MAKERS
SHORTEST: Final = 7
"""Letters of a name in which one wrong letter is a slip."""
OTHERS: Final = frozenset(
    map(
        frozenset,
        (
            ("columbia", "colombia"),
            ("stanford", "stamford"),
            ("johnson", "johnston"),
            ("peterson", "petersen"),
            ("anderson", "andersen"),
            ("dominica", "dominican"),
        ),
    )
)
"""Different names one letter apart."""


def is_part(missing: Sequence[str], words: Sequence[str], known: Sequence[str]) -> bool:
    """Whether each missing name only stands before one that both know: Donald Trump, Trump."""
    for name in missing:
        if name not in BEFORE or name not in words:
            return False
        after = words[words.index(name) + 1 :][:2]
        if not any(word in known and word not in BEFORE for word in after):
            return False
    return True


def is_slip(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the only names that each lacks are one, with one letter wrong, left out, doubled or swapped."""
    if len(one) != 1 or len(other) != 1:
        return False
    left, right = one[0], other[0]
    if min(len(left), len(right)) < SHORTEST or left[0] != right[0] or not (left.isalpha() and right.isalpha()):
        return False
    return frozenset((left, right)) not in OTHERS and _one_edit(left, right)


def _one_edit(left: str, right: str) -> bool:
    """One letter more, less or another, or two neighbours swapped."""
    if len(left) > len(right):
        left, right = right, left
    start = 0
    while start < len(left) and left[start] == right[start]:
        start += 1
    if len(left) < len(right):
        return left[start:] == right[start + 1 :]
    swapped = left[start : start + 2] == right[start : start + 2][::-1]
    return left[start + 1 :] == right[start + 1 :] or (swapped and left[start + 2 :] == right[start + 2 :])
