r"""Removes citations that name no passage from a streamed answer, and replaces brackets in passages.

| in the answer, of 3 passages | becomes |
|---|---|
| `policy [7].` | `policy.` |
| `[1, 7]`, `[2-7]`, `[5-7]` | `[1]`, `[2-3]`, nothing |
| `[1], [7]`, `([7])`, `[1]([7])` | `[1]`, nothing, `[1]` |
| `[x]`, `[2024]`, `[0, 1]`, `[7](https://...)`, anything in backticks | as it is |

`[1]` names the first passage. A document's own `[2]` becomes `(2)` in the prompt, since a model that copied it would
cite another document.

| in a passage or a title | in the prompt |
|---|---|
| `[2]`, `[1, 3]`, `[2-4]`, `［２］`, `【2】`, `\[2\]` | `(2)`, `(1, 3)`, `(2-4)`, `(２)`, `(2)`, `(2)` |
| `[2024]`, `[x]`, `[0, 1]`, `[2](https://...)`, anything in backticks | as it is: no answer is read so either |
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

from api.knowledge.quotes import closest, sentences
from api.unicode_text import INVISIBLE
from api.values import Source


class CodeMarks:
    """Tracks code in Markdown, character by character.

    A span ends with as many backticks as it began with, or at the paragraph's end; blocks have three or more. So a
    single stray backtick affects only its paragraph.
    """

    def __init__(self) -> None:
        self.inside = False
        """True if the last characters were code, the backticks included."""
        self._opened = 0
        self._marks = 0
        self._last = ""

    def read(self, character: str) -> None:
        """Reads the next character."""
        if character == "`":
            self._marks += 1
            self.inside = True
        else:
            if self._marks:
                self._turn()
            if self._opened in (1, 2) and character == self._last == "\n":
                self._opened = 0
            self.inside = self._opened > 0
        self._last = character

    def _turn(self) -> None:
        """Opens or closes code at the end of a run of backticks."""
        if not self._opened:
            self._opened = self._marks
        elif self._marks == self._opened or self._marks > self._opened > 2:
            self._opened = 0
        self._marks = 0


LONGEST: Final = 40
"""Characters from the bracket on that are held back while they may become a citation."""
MAX_GLUE: Final = 16
"""Characters of white space before a bracket that are held back."""

_ITEM: Final = r"[0-9]{1,3}(?: *[-–—] *[0-9]{1,3})?"
_CITATION: Final = re.compile(rf"\[ *{_ITEM}(?: *[,;] *{_ITEM})* *\]")
_PART: Final = re.compile(r"([0-9]+)(?: *([-–—]) *([0-9]+))?")
_INSIDE: Final = frozenset("0123456789 ,;-–—")
_SPACE: Final = frozenset(" \t")
_SEPARATORS: Final = frozenset(",;")
_CLOSING: Final = frozenset(".:!?)]}…”»。！？、，")


_Last = Literal["start", "citation", "text"]
"""The kind of the last output: `start` of the answer or of a line."""


def clean(text: str, count: int) -> str:
    """Returns `text` without citations that name none of `count` passages."""
    filtered = Citations(count)
    return filtered.feed(text) + filtered.end()


def cited(text: str, count: int) -> frozenset[int]:
    """Returns the numbers of the passages, of `count`, that a finished answer cites."""
    if "[" not in text:
        return frozenset()
    filtered = Citations(count)
    filtered.feed(text)
    filtered.end()
    return frozenset(filtered.cited)


def with_quotes(sources: Sequence[Source], answer: str) -> tuple[Source, ...]:
    """Returns the sources, those that the answer cites with the sentence that its citations rest on."""
    claims: defaultdict[int, list[str]] = defaultdict(list)
    for sentence in sentences(answer):
        for number in cited(sentence, len(sources)):
            claims[number].append(sentence)
    found = {number: closest(" ".join(said), sources[number - 1].text) for number, said in claims.items()}
    return tuple(
        replace(source, quote=found.get(number) or source.quote) for number, source in enumerate(sources, start=1)
    )


class Citations:
    """Filters one answer piece by piece; the result does not depend on how it is cut. Numbers run from 1 to `count`.

    `cited`: the passages named so far. `removed`: numbers and ranges taken out or shortened so far.
    """

    def __init__(self, count: int) -> None:
        self.cited: set[int] = set()
        self.removed = 0
        self._count = count
        self._code = CodeMarks()
        self._open = ""  # a bracket that may become a citation
        self._whole = ""  # a citation, unless it is the text of a link, as `(` behind it would have it
        self._glue = ""  # what stands before it: white space, a separator, an opening parenthesis
        self._behind: str | None = None  # the same behind one that was taken out, which is between the two
        self._last: _Last = "start"

    def feed(self, text: str) -> str:
        """Returns the new part of the answer that is certain by now."""
        return "".join(map(self._step, text))

    def end(self) -> str:
        """Returns the rest of the answer."""
        out = (self._settle("[") if self._whole else "") + self._release()
        return out + self._unglued("\n")

    def _step(self, character: str) -> str:
        was_code = self._code.inside
        self._code.read(character)
        if was_code and character != "`" and self._code.inside:
            return self._given(character)
        if character == "(" and self._whole.endswith("]"):
            self._whole += character
            return ""
        out = self._settle(character) if self._whole else ""
        if self._open:
            if character == "]" and _CITATION.fullmatch(f"{self._open}]"):
                self._whole, self._open = f"{self._open}]", ""
                return out
            if character in _INSIDE and len(self._open) < LONGEST:
                self._open += character
                return out
            out += self._release()
        return out + self._outside(character)

    def _outside(self, character: str) -> str:
        """Handles a character outside of brackets."""
        if character == "[":
            self._open = character
            return ""
        if character == ")" and self._behind is not None and self._glue.endswith("("):
            self._glue, self._behind = self._glue[:-1], ""
            return ""
        if self._sticks(character):
            return ""
        out = self._given(self._unglued(character))
        return out if self._sticks(character) else out + self._given(character)

    def _sticks(self, character: str) -> bool:
        """Returns whether to hold the character back, because it may be removed with a citation next to it."""
        held = self._glue if self._behind is None else self._behind
        if character in _SPACE and self._behind is not None and len(held) >= MAX_GLUE:
            return True  # and is dropped: there are enough
        fits = (
            (character in _SPACE and len(held) < MAX_GLUE)
            or (character in _SEPARATORS and not _SEPARATORS & set(held))
            or (character == "(" and self._behind is None)
        )
        if not fits or held.endswith("("):
            return False
        if self._behind is None:
            self._glue += character
        else:
            self._behind += character
        return True

    def _settle(self, following: str) -> str:
        """Decides on a citation that is complete. The text after `(` tells a link from another citation."""
        whole, self._whole = self._whole, ""
        citation = whole.removesuffix("(")
        if whole == citation or following == "[":
            return self._cite(citation) + (self._outside("(") if whole != citation else "")
        return self._given(self._unglued(whole) + whole)

    def _cite(self, citation: str) -> str:
        """Returns the remaining part of a citation."""
        kept = self._kept(citation)
        if not kept:
            self._behind = ""
            return ""
        out = self._unglued(kept, citation=True) + kept
        self._last = "citation"
        return out

    def _release(self) -> str:
        """Returns a bracket that is not a citation."""
        if not self._open:
            return ""
        held, self._open = self._open, ""
        return self._given(self._unglued(held) + held)

    def _given(self, text: str) -> str:
        """Returns `text`, which is not a citation, as output."""
        if text:
            self._last = "start" if text[-1] == "\n" else "text"
        return text

    def _unglued(self, following: str, *, citation: bool = False) -> str:
        """Returns the held-back characters before `following`: all, unless a citation was removed between them."""
        before, behind = self._glue, self._behind
        self._glue, self._behind = "", None
        if behind is None or before.endswith("("):
            return before
        separated = bool(_SEPARATORS & set(behind))
        listed = self._last == "citation" and bool(_SEPARATORS & set(before))
        if following in _CLOSING or following == "\n":
            return behind.rstrip() if separated else ""
        if citation:
            return before
        if separated or listed:
            return behind
        return before or ("" if self._last == "start" else behind)

    def _kept(self, citation: str) -> str:
        """Returns `citation` with only the numbers that name a passage; empty if none does."""
        parts = _PART.findall(citation)
        numbers = [int(number) for first, _, last in parts for number in (first, last) if number]
        if 0 in numbers[1:] or numbers[:1] == [0] != numbers:
            return citation  # an interval
        kept = [self._part(first, dash, last) for first, dash, last in parts]
        changed = sum(text != "".join(part) for text, part in zip(kept, parts, strict=True))
        self.removed += changed
        return citation if not changed else f"[{', '.join(filter(None, kept))}]" if any(kept) else ""

    def _part(self, first: str, dash: str, last: str) -> str:
        """Returns a number or a range, limited to the existing passages."""
        low, high = sorted((int(first), int(last or first)))
        names = range(max(low, 1), min(high, self._count) + 1)
        self.cited.update(names)
        if len(names) == high - low + 1:
            return f"{first}{dash}{last}"
        if len(names) > 1:
            return f"{names[0]}{dash}{names[-1]}"
        return str(names[0]) if names else ""


_GAP: Final = f"[{INVISIBLE}]{{0,8}}"
_REFERENCE_ITEM: Final = rf"\d{{1,3}}(?:{_GAP}[-\u2010-\u2015\u2212~]{_GAP}\d{{1,3}})?"
_NUMBERS: Final = re.compile(
    rf"\\?[\[\uff3b\u3010\u3014\u27e6](?P<inside>{_GAP}{_REFERENCE_ITEM}(?:{_GAP}[,;\uff0c\uff1b\u060c\u3001]{_GAP}{_REFERENCE_ITEM})*{_GAP})"
    r"\\?[\]\uff3d\u3011\u3015\u27e7]"
    r"(?!\([^\[])"  # the text of a link, but for a citation in parentheses behind a citation
)
_ZERO: Final = re.compile(r"(?<!\d)0+(?!\d)")


def rewritten(text: str) -> str:
    """Returns `text` with its bracketed numbers in parentheses, except in code."""
    if _NUMBERS.search(text) is None:
        return text
    code = _code(text)
    return _NUMBERS.sub(lambda found: found[0] if code[found.start()] else _in_parentheses(found), text)


def _in_parentheses(found: re.Match[str]) -> str:
    inside = found["inside"]
    interval = _ZERO.search(inside) is not None and not inside.strip().isdecimal()
    return found[0] if interval else f"({inside})"


def _code(text: str) -> bytearray:
    """Returns for each character whether it is code; for none if a block is cut off and the code is ambiguous."""
    marks = CodeMarks()
    code = bytearray(len(text))
    if "`" not in text:
        return code
    for place, character in enumerate(text):
        marks.read(character)
        code[place] = marks.inside
    marks.read("\n")
    return bytearray(len(text)) if marks.inside else code
