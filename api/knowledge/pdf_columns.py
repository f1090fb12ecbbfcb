"""Reads the columns of a PDF page one after the other if the file draws them line by line.

PDFium returns text as the file draws it. Some programs draw the first lines of all columns, then the second lines.
Only columns of sentences are taken apart, so rows of tables stay together. Scripts without spaces are left alone.
"""

from __future__ import annotations

import ctypes
import math
import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from statistics import fmean, median
from typing import Final, NamedTuple

import pypdfium2
import pypdfium2.raw as pdfium

LONGEST: Final = 50_000
"""Characters of a page. Pages with more are drawings, maps or lists."""
WIDEST: Final = 15_000
"""The largest page of a PDF, in points."""
MOST_COLUMNS: Final = 10
GAP: Final = 0.8
"""Gap between two columns, in heights of a line. Spaces are narrower."""
FEWEST_LINES: Final = 3
SPANNING: Final = 0.2
"""Largest share of the lines that may cross a gap, such as headings over all columns."""
FEWEST_WORDS: Final = 3.0
"""Words in an average line of a column."""
WORDS: Final = 0.75
"""Smallest share of the words in a column that are no numbers or codes."""
LOWER: Final = 0.4
"""Smallest share of the words of a page that are in lower case. Tables and forms have fewer."""
SENTENCES: Final = 0.4
"""Smallest share of a column's lines that end a clause, or whose next line continues in lower case."""
MIXED: Final = 0.5
"""Smallest share of the rows on which the file goes to the next column. Rows of a table below columns are fewer."""
_WORD: Final = re.compile(r"[^\W\d_][\w'’-]*")
_CLAUSE_END: Final = re.compile(r"[.,;:?!][\"'”’)]*$")


class Line(NamedTuple):
    """Words that stand next to each other, with their place on the page."""

    left: float
    bottom: float
    right: float
    top: float
    text: str

    def is_beside(self, other: Line) -> bool:
        """Returns whether this line is on the same row."""
        lowest = min(self.top - self.bottom, other.top - other.bottom)
        return min(self.top, other.top) - max(self.bottom, other.bottom) > 0.5 * lowest


def page_text(page: pypdfium2.PdfTextPage) -> str:
    """Returns the text of a page, with `\\n` between lines."""
    text: str = page.get_text_range()
    if len(text) <= LONGEST and len(text) == page.count_chars() and _may_have_columns(page, text):
        lines = list(_lines(page, text))
        gaps = column_gaps(lines)
        if gaps:
            return in_columns(lines, gaps)
    return text.replace("\r\n", "\n")


def column_gaps(lines: Sequence[Line]) -> list[float]:
    """Returns where columns of sentences meet, from left to right, if they are drawn line by line."""
    gaps = _gaps(lines)
    while 0 < len(gaps) < MOST_COLUMNS:
        columns = _columns(lines, gaps)
        other = next((number for number, column in enumerate(columns) if not _is_prose(column)), None)
        if other is None:
            return gaps if _are_mixed(lines, gaps, min(map(len, columns))) else []
        del gaps[max(other - 1, 0)]
    return []


def in_columns(lines: Sequence[Line], gaps: Sequence[float]) -> str:
    """Returns the text column by column. A line over several columns comes after what stands above it."""
    ordered: list[list[Line]] = []
    waiting: list[list[Line]] = [[] for _ in range(len(gaps) + 1)]
    for line in lines:
        first, last = bisect(gaps, line.left), bisect(gaps, line.right)
        if first == last:
            waiting[first].append(line)
            continue
        ordered += [*waiting[first : last + 1], [line]]
        waiting[first : last + 1] = [[] for _ in range(first, last + 1)]
    return "\n".join(_joined(part) for part in [*ordered, *waiting] if part)


def _joined(lines: Sequence[Line]) -> str:
    parts = [lines[0].text]
    for before, line in pairwise(lines):
        parts += [" " if line.is_beside(before) and line.left > before.left else "\n", line.text]
    return "".join(parts)


# -- Columns -----------------------------------------------------------------------------------------------------------


def _gaps(lines: Sequence[Line]) -> list[float]:
    """The middles of vertical stripes that few lines cross."""
    if len(lines) < 2 * FEWEST_LINES:
        return []
    leftmost, rightmost = min(line.left for line in lines), max(line.right for line in lines)
    if rightmost - leftmost > WIDEST or not math.isfinite(sum(line.left + line.right for line in lines)):
        return []
    first, last = int(leftmost), int(rightmost) + 1
    width = GAP * median(line.top - line.bottom for line in lines)
    steps = [0] * (last - first + 2)
    for line in lines:
        steps[int(line.left) - first] += 1
        steps[int(line.right) - first + 1] -= 1
    found: list[float] = []
    stripe: list[int] = []
    covering = 0
    for place, step in enumerate(steps[: last - first + 1], first):
        covering += step
        if covering <= SPANNING * len(lines):
            stripe.append(covering)
            continue
        if stripe and width <= len(stripe) < place - first:
            found.append(place - len(stripe) + _emptiest(stripe))
        stripe.clear()
    return found


def _emptiest(stripe: Sequence[int]) -> float:
    """The middle of the longest part that fewest lines cross: the ends of long lines reach into a stripe."""
    fewest = min(stripe)
    runs = ((key, list(run)) for key, run in groupby(enumerate(stripe), lambda one: one[1]))
    longest = max((run for key, run in runs if key == fewest), key=len)
    return (longest[0][0] + longest[-1][0] + 1) / 2


def _columns(lines: Sequence[Line], gaps: Sequence[float]) -> list[list[Line]]:
    columns: list[list[Line]] = [[] for _ in range(len(gaps) + 1)]
    for line in lines:
        place = bisect(gaps, line.left)
        if place == bisect(gaps, line.right):
            columns[place].append(line)
    return columns


def _is_prose(column: Sequence[Line]) -> bool:
    if len(column) < FEWEST_LINES:
        return False
    words = [line.text.split() for line in column]
    told = [word for line in words for word in line]
    if fmean(map(len, words)) < FEWEST_WORDS or sum(_WORD.match(word) is not None for word in told) < WORDS * len(told):
        return False
    following = [*(line.text for line in column[1:]), ""]
    sentences = sum(
        _CLAUSE_END.search(line.text) is not None or after[:1].islower()
        for line, after in zip(column, following, strict=True)
    )
    return sentences >= SENTENCES * len(column)


def _are_mixed(lines: Sequence[Line], gaps: Sequence[float], fewest: int) -> bool:
    """Whether the file goes from column to column on many rows."""
    changes = sum(
        before.is_beside(line) and bisect(gaps, before.right) < bisect(gaps, line.left)
        for before, line in pairwise(lines)
    )
    return changes >= max(FEWEST_LINES, MIXED * fewest * len(gaps))


# -- PDFium ------------------------------------------------------------------------------------------------------------


def _may_have_columns(page: pypdfium2.PdfTextPage, text: str) -> bool:
    """Whether pieces of text follow each other on rows, with a gap at the same place. Much quicker than `_lines`."""
    count = page.count_rects()
    words = text.split()
    if count < 2 * FEWEST_LINES or sum(map(str.islower, words)) < LOWER * len(words):
        return False
    lines: list[Line] = []
    for number in range(count):
        left, bottom, right, top = page.get_rect(number)
        piece = Line(left, bottom, right, top, "")
        joined = _joined_line(lines[-1], piece) if lines else None
        lines[-1:] = [joined] if joined is not None else [*lines[-1:], piece]
    gaps = _gaps(lines)
    return bool(gaps) and _are_mixed(lines, gaps, FEWEST_LINES)


def _joined_line(line: Line, word: Line) -> Line | None:
    """The line with its next word, or None if the word stands elsewhere or behind a gap."""
    if not word.is_beside(line):
        return None
    height = min(word.top - word.bottom, line.top - line.bottom)
    if not -height < word.left - line.right < GAP * height:
        return None
    bottom, top = min(line.bottom, word.bottom), max(line.top, word.top)
    return Line(line.left, bottom, max(line.right, word.right), top, f"{line.text} {word.text}")


def _lines(page: pypdfium2.PdfTextPage, text: str) -> Iterator[Line]:
    """The page's lines as the file draws them. A gap divides a line."""
    line: Line | None = None
    for word in _words(page, text):
        joined = None if line is None else _joined_line(line, word)
        if joined is None and line is not None:
            yield line
        line = joined or word
    if line is not None:
        yield line


def _words(page: pypdfium2.PdfTextPage, text: str) -> Iterator[Line]:
    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    for found in re.finditer(r"\S+", text):
        boxes = [
            (left.value, bottom.value, right.value, top.value)
            for number in range(*found.span())
            if pdfium.FPDFText_GetCharBox(page, number, left, right, bottom, top) and right.value > left.value
        ]
        if boxes:
            lefts, bottoms, rights, tops = zip(*boxes, strict=True)
            yield Line(min(lefts), min(bottoms), max(rights), max(tops), found.group())
