"""Guards `numbers` and `symbols`.

`numbers` requires the same numbers, as digits or words, in the same order or context. `symbols` compares operators,
call arguments, and letter case where it matters. Embeddings hardly distinguish these: `x >= 3` and `x <= 3` look the
same. The guard ignores ordinary punctuation.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from api.guards.letter_case import NEVER_EMPHASIS, case_sensitive_words, strip_punctuation
from api.guards.vocabulary import (
    AM_PM,
    AMBIGUOUS_NUMBERS,
    NUMBER_WORDS,
    ORDINAL_SUFFIXES,
    ORDINALS,
    OTHER_NUMBERS,
    SCALES,
    SMALL,
    TENS,
)
from api.guards.words import Words
from api.languages.function_words import words_in


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers as plain decimals. A minus precedes its number; `%`, am and pm follow it."""

    every: tuple[str, ...] = ()
    certain: tuple[str, ...] = ()
    """`every` without ambiguous words such as `one`."""
    before: frozenset[tuple[str, str]] = frozenset()
    """Each number in `certain` with the word before it."""
    after: frozenset[tuple[str, str]] = frozenset()
    """Each number in `certain` with the word after it."""
    shown: tuple[str, ...] = ()
    """All numbers as written."""


NO_NUMBERS: Final = Numbers()


def read_numbers(question: Words) -> Numbers:
    """Returns all numbers of a question in order."""
    words = question.words
    every: list[str] = []
    shown: list[str] = []
    certain: list[str] = []
    before: list[tuple[str, str]] = []
    after: list[tuple[str, str]] = []
    index = 0
    while index < len(words):
        word = words[index]
        if word.isalpha() and not (question.english and word in NUMBER_WORDS):
            index += 1
            continue
        found, ambiguous, end = _number_words(question, index) if word in NUMBER_WORDS else _digits(words, index)
        every += found
        shown += (question.spans[index],) if index in question.spans else found
        if found and not ambiguous:
            certain += found
            before.append((words[index - 1] if index else "", " ".join(found)))
            after.append((" ".join(found), words[end] if end < len(words) else ""))
        index = end
    if not every:
        return NO_NUMBERS
    return Numbers(tuple(every), tuple(certain), frozenset(before), frozenset(after), tuple(shown))


def compare_numbers(one: Numbers, other: Numbers) -> str:
    """Returns the numbers of both questions if they differ, else an empty string."""
    if (
        one.certain == other.certain
        or one.every == other.every
        or one.certain == other.every
        or one.every == other.certain
    ):
        return ""
    if sorted(one.certain) == sorted(other.certain) and (one.before == other.before or one.after == other.after):
        return ""
    return f"{' '.join(one.shown) or 'none'} / {' '.join(other.shown) or 'none'}"


_Read = tuple[list[str], bool, int]
"""The parts read, whether they are ambiguous, and the index after them."""


def _digits(words: Sequence[str], index: int) -> _Read:
    """Reads one number in digits with its scale or suffix (5 million, 5 pm, 1 st). `%` and fractions stand alone."""
    word = words[index]
    if not word[-1].isdecimal():
        return ([word] if word == "%" or word.isnumeric() else []), False, index + 1
    value = _plain(word.removeprefix("-"))
    found = ["-", value] if word[0] == "-" else [value]
    index += 1
    after = words[index] if index < len(words) else ""
    if after in SCALES and value.count(".") < 2:
        found[-1] = f"{float(value) * SCALES[after]:.15g}"
    elif after in AM_PM:
        found.append(after)
    elif after not in ORDINAL_SUFFIXES:
        return found, False, index
    return found, False, index + 1


def _plain(figure: str) -> str:
    """Normalizes digits: 05 is 5 and 5.00 is 5. Versions (3.10) and foreign thousands (1.000) stay as they are."""
    if not figure.isascii():
        figure = "".join(str(int(mark)) if mark.isdecimal() else mark for mark in figure)
    if len(figure) == 2 and figure[0] == "0":
        return figure[1]
    return figure.removesuffix(".00")


def _number_words(question: Words, index: int) -> _Read:
    """Reads a number in words (two hundred and five)."""
    words = question.words
    word = words[index]
    after = words[index + 1] if index + 1 < len(words) else ""
    if word == "first" and (not after or index + 1 in question.clause_starts):
        return ["1"], True, index + 1  # do I need to activate it first?
    if word == "minus":
        return ["-"], False, index + 1
    if word in AMBIGUOUS_NUMBERS and after not in SCALES:
        return [AMBIGUOUS_NUMBERS[word]], True, index + 1
    if word in ORDINALS or word in OTHER_NUMBERS:
        return [OTHER_NUMBERS.get(word) or str(ORDINALS[word])], False, index + 1
    if word == "k":
        return [], False, index + 1
    total, end = _cardinal(words, index)
    return [str(total)], False, end


def _cardinal(words: Sequence[str], index: int) -> tuple[int, int]:
    """Returns the value of a cardinal number and the index after it."""
    total = current = 0
    limit = 10**13  # upper bound of the next addend: 10 after "twenty", 100 after "hundred"
    while index < len(words):
        word = words[index]
        value = SMALL.get(word) or TENS.get(word) or 0
        if word in SCALES and word != "k":
            current = max(current, 1) * SCALES[word]
            limit = SCALES[word]
            if limit > 100:
                total, current = total + current, 0
        elif 0 < value < limit:
            current += value
            limit = 10 if word in TENS else 1
        elif not (word == "and" and limit in SCALES.values() and _is_number(words, index + 1)):
            break
        index += 1
    return total + current, index


def _is_number(words: Sequence[str], index: int) -> bool:
    return index < len(words) and (words[index] in SMALL or words[index] in TENS)


PLAIN_QUESTION: Final = re.compile(r"[A-Z]?[a-z ,?I]*[.?]*")
"""Matches most questions. They contain no symbols, so the slower patterns are skipped."""
MAX_SHOWN: Final = 32
"""Maximum operations per side that the search for a difference compares pair by pair."""
MAY_HAVE_OPERATORS: Final = re.compile(
    r"[^\w\s.,?!'\"’‘“”…–—;:()-]|(?<![^\s(])--?\w|--|\w\(|\w[:;]\w|[\w)]'+\(|\b\w'+(?=[\s(,.?]|$)|\b\w-(?:\w\b|\d)|\d-\d"
    r"|\d!|\b\w!|!\w|::| - "
)
"""Matches anything beyond ordinary punctuation."""
CAPITALS: Final = re.compile("|".join(sorted(NEVER_EMPHASIS)))
IGNORED: Final = re.compile(
    r"(?<![A-Za-z+.-])(?:[A-Za-z][A-Za-z+.-]*://|www\.)\S*|(?<!\S)[^\s@]+@\S+\.\S+|\b24[/-]7\b"  # addresses, always
    r"|(?<!\S)(?:[:;=8xX][-o']?[()DPpO/\\|*3]+|<3+|\^_?\^|={4,})(?=[\s.,!?]|$)"  # :-) <3 ^^ ====
    r"|\[\d{1,3}\]|(?<!\S)\*+(?=\w[^*]*\*)|(?<=\w)\*+(?=[\s.,!?]|$)(?<!\b\w\*)"  # [1], *bold*
    r"|\((?:e?s)\)"  # card(s)
    r"|(?<!\d)\d{1,4}([-/.])\d{1,2}\1\d{1,4}(?!\d)"  # dates
)
TOKEN: Final = re.compile(
    r"(?P<space>\s+)|(?P<word>\w+(?:\.\w+)*(?:['’](?:s|t|re|ve|ll|d|m)\b)?)|(?P<bracket>[()\[\]{}])"
    r"|(?P<comma>,)|(?P<quote>['’]+)|(?P<rest>[.?\"“”‘«»„…`´¿¡。？！，、·•]+)|(?P<run>[^\w\s()\[\]{},'’.?\"“”‘«»„…`´¿¡。？！，、·•]+)"
)
SYMBOL_QUESTION_WORDS: Final = words_in(
    "does is the an use using symbol sign operator character mean means between called"
)
"""Precede a symbol that the question is about: what does + do?"""
CONTRACTION_ENDINGS: Final = words_in("t s m d re ve ll")
"""After a semicolon typed instead of an apostrophe: didn;t."""
DASHES: Final = frozenset("-–—−")
PUNCTUATION: Final = frozenset("+-*&~/#@$%:;")
"""Ordinary punctuation between ordinary words."""
SLASH_ABBREVIATIONS: Final = words_in("n/a w/o y/n r/w i/o a/c b/w c/o s/o w/e")


class Operation(NamedTuple):
    """A run of symbols and its operands. An empty operand is absent; None stands for any word."""

    left: str | None
    run: str
    right: str | None

    def __str__(self) -> str:
        if self.run == ",":
            return f"{self.left or '?'}, {self.right or '?'}"
        tight = self.run in "([{'" or not (self.left and self.right)
        return f"{self.left or ''}{self.run if tight else f' {self.run} '}{self.right or ''}"


@dataclass(frozen=True, slots=True)
class Symbols:
    """The symbols of a question."""

    text: str
    certain: tuple[Operation, ...] = ()
    """Operations in order."""
    ambiguous: tuple[str, ...] = ()
    """Signs between two numbers that may mark a range. Compared only if both questions have some."""
    letters: tuple[str, ...] = ()
    """Single letters in order, if there are operations."""
    cased: tuple[str, ...] = ()
    """Words whose case matters."""
    mixed: bool = False
    """True if the text has both upper-case and lower-case letters."""


NO_SYMBOLS: Final = Symbols("")


def read_symbols(question: Words) -> Symbols:
    """Returns the operations of a question and the words whose case matters."""
    text = question.text
    if PLAIN_QUESTION.fullmatch(text):
        return Symbols(text, mixed=text[0].isupper()) if text else NO_SYMBOLS
    mixed = not (text.islower() or text.isupper())
    cased = case_sensitive_words(text)
    if mixed and CAPITALS.search(text):
        cased += tuple(NEVER_EMPHASIS.intersection(map(strip_punctuation, text.split())))
    if MAY_HAVE_OPERATORS.search(text) is None:
        return Symbols(text, cased=cased, mixed=mixed)
    reader = _SymbolReader(_tokens(IGNORED.sub(" ", text)))
    reader.run()
    letters: tuple[str, ...] = ()
    if reader.certain:
        letters = tuple(token.text for token in reader.tokens if token.kind == "word" and len(token.text) == 1)
    return Symbols(text, tuple(reader.certain), tuple(reader.ambiguous), letters, cased, mixed)


def compare_symbols(one: Symbols, other: Symbols) -> str:
    """Returns the first difference, else an empty string."""
    if one.certain or other.certain or (one.ambiguous and other.ambiguous):
        difference = _operations(one, other)
        if difference:
            return difference
    if one.cased or other.cased:
        return _case(one, other) or " / ".join(reversed(_case(other, one).split(" / ")))
    return ""


def _operations(one: Symbols, other: Symbols) -> str:
    if not _same_operations(one.certain, other.certain):
        left = [
            each for each in one.certain[:MAX_SHOWN] if not any(_same_operation(each, its) for its in other.certain)
        ]
        right = [
            each for each in other.certain[:MAX_SHOWN] if not any(_same_operation(each, its) for its in one.certain)
        ]
        return f"{_shown(left or one.certain)} / {_shown(right or other.certain)}"
    if one.ambiguous and other.ambiguous and one.ambiguous != other.ambiguous:
        return f"{' '.join(one.ambiguous)} / {' '.join(other.ambiguous)}"
    if one.letters != other.letters and sorted(one.letters) == sorted(other.letters):
        return f"{' '.join(one.letters)} / {' '.join(other.letters)}"
    return ""


def _same_operations(one: Sequence[Operation], other: Sequence[Operation]) -> bool:
    """Compares operations pairwise. Bare operators match in any order (the difference between == and ===)."""
    if len(one) != len(other):
        return False
    if all(_same_operation(left, right) for left, right in zip(one, other, strict=True)):
        return True
    bare = not any(each.left or each.right for each in (*one, *other))
    return bare and sorted(each.run for each in one) == sorted(each.run for each in other)


def _same_operation(one: Operation, other: Operation) -> bool:
    return one.run == other.run and all(
        mine is None or theirs is None or mine == theirs
        for mine, theirs in ((one.left, other.left), (one.right, other.right))
    )


def _shown(operations: Sequence[Operation]) -> str:
    return ", ".join(map(str, operations)) or "none"


def _case(one: Symbols, other: Symbols) -> str:
    """Returns the first word that the other question has only in another case, else an empty string."""
    theirs = {strip_punctuation(part) for part in other.text.split()}
    folded = {word.casefold(): word for word in theirs}
    for word in one.cased:
        if word in theirs or (word in NEVER_EMPHASIS and not other.mixed):
            continue
        counterpart = folded.get(word.casefold())
        if counterpart is not None:
            return f"{word} / {counterpart}"
    return ""


class _SymbolToken(NamedTuple):
    kind: str
    text: str


def _tokens(text: str) -> list[_SymbolToken]:
    return [_SymbolToken(str(found.lastgroup), found[0]) for found in TOKEN.finditer(text)]


BLANK: Final = _SymbolToken("space", " ")


@dataclass(slots=True)
class _SymbolReader:
    """Reads the operations in one pass over the tokens."""

    tokens: list[_SymbolToken]
    certain: list[Operation] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    calls: list[bool] = field(default_factory=list)
    """For each open bracket, whether commas inside separate arguments."""

    def run(self) -> None:
        for index, token in enumerate(self.tokens):
            if token.kind == "run" and _is_symbol(token.text):
                self._run(index, token.text)
            elif token.kind == "bracket":
                self._bracket(index, token.text)
            elif token.kind == "comma" and self.calls and self.calls[-1]:
                self.certain.append(Operation(self._left(index), ",", self._right(index)))
            elif token.kind == "quote" and self._is_prime(index):
                self.certain.append(Operation(self._token(index - 1).text, token.text.replace("’", "'"), None))

    def _token(self, index: int) -> _SymbolToken:
        return self.tokens[index] if 0 <= index < len(self.tokens) else BLANK

    def _neighbor(self, index: int, step: int) -> tuple[_SymbolToken, bool]:
        """Returns the next token in the direction of `step`, and whether it is adjacent."""
        near = self._token(index + step)
        return (self._token(index + 2 * step), False) if near.kind == "space" else (near, True)

    def _left(self, index: int) -> str | None:
        return _operand(*self._neighbor(index, -1))

    def _right(self, index: int) -> str | None:
        return _operand(*self._neighbor(index, 1))

    def _bracket(self, index: int, mark: str) -> None:
        before = self._token(index - 1)
        if mark in ")]}":
            if self.calls:
                self.calls.pop()
            return
        called = mark != "(" or before.kind in ("word", "quote") or before.text in ("]", ")")
        self.calls.append(called)
        if called and self._token(index + 1).text != ")":
            left = before.text.casefold() if before.kind == "word" else None
            self.certain.append(Operation(left, mark, self._right(index)))

    def _is_prime(self, index: int) -> bool:
        """Returns whether a quote is a prime, as in f'(x), and not a quotation mark or a possessive."""
        word, before, after = self._token(index - 1), self._token(index - 2), self._token(index + 1)
        return (
            word.kind == "word"
            and len(word.text) == 1
            and word.text.isalpha()
            and before.kind == "space"
            and (after.kind in ("space", "rest", "comma") or after.text == "(")
        )

    def _run(self, index: int, run: str) -> None:
        (before, touches_left), (after, touches_right) = self._neighbor(index, -1), self._neighbor(index, 1)
        left, right = _operand(before, touches_left), _operand(after, touches_right)
        if not (touches_right and after.kind == "word"):
            run = run.rstrip("!") or run  # C++!
        if run.strip("!") == "":
            self._exclamation(run, before if touches_left else BLANK, after, touches_right)
        elif run in "<>" and touches_left and not touches_right and not _short(before):
            return  # clear> is a typo for clear?
        elif run == "=" and after.kind not in ("word", "run", "bracket"):
            return  # 2 + 2 =
        elif not PUNCTUATION.issuperset(run) and not DASHES.issuperset(run):
            self.certain.append(Operation(left, run, right))
        elif len(run) > 1:
            self._doubled(run, left if touches_left else "", right if touches_right else "")
        else:
            self._single("-" if run in DASHES else run, before, after, touches_left, touches_right)

    def _exclamation(self, run: str, before: _SymbolToken, after: _SymbolToken, touches: bool) -> None:
        """Reads `5!` and `!x`, but not an exclamation mark that ends a sentence."""
        if before.kind == "word":
            word = before.text.casefold()
            if run == "!" and not after.text.istitle() and _short(before) and word not in ("i", "a"):
                self.certain.append(Operation(word, run, ""))
        elif touches and after.kind in ("word", "bracket") and after.text not in ")]}":
            self.certain.append(Operation("", run, _operand(after, True)))

    def _doubled(self, run: str, left: str | None, right: str | None) -> None:
        """Reads doubled symbols: i++, --force, ::, //. Ignores a dash typed as two hyphens, and C++."""
        if DASHES.issuperset(run):
            if left == "" and right:
                self.certain.append(Operation("", run, right))
            elif right == "" and left and len(left) == 1:
                self.certain.append(Operation(left, run, ""))
        elif run != "++" or len(left or right or "") < 4:
            self.certain.append(Operation(left, run, right))

    def _single(
        self, run: str, before: _SymbolToken, after: _SymbolToken, touches_left: bool, touches_right: bool
    ) -> None:
        left, right = _short(before), _short(after)
        if touches_left and touches_right:
            self._between(run, before, after)
        elif left and right and touches_left != touches_right and run in "+*":
            self._numeric_operation(run, left, right)
        elif not touches_left and not touches_right:
            asked = before.text.casefold() in SYMBOL_QUESTION_WORDS
            if left and right and run not in "#@$&":
                self._numeric_operation(run, left, right)
            elif (asked and run != "-") or (run == "*" and before.kind == "word"):
                self.certain.append(Operation(None, run, None))
        elif touches_right and after.kind in ("word", "bracket"):
            if run in "-+*&~$%@" and not after.text[0].isdigit() and not (run == "@" and before is BLANK):
                self.certain.append(Operation("", run, after.text.casefold()))
        elif touches_left and run in "+*" and before.kind == "word" and left:
            self.certain.append(Operation(left, run, ""))

    def _between(self, run: str, before: _SymbolToken, after: _SymbolToken) -> None:
        left, right = _short(before), _short(after)
        if run in ":;" and before.kind == after.kind == "word":
            if not (left[:1].isdigit() and right[:1].isdigit()) and after.text not in CONTRACTION_ENDINGS:
                self.certain.append(Operation(before.text.casefold(), run, after.text.casefold()))
        elif (
            run in "+*%"
            and not (run == "%" and left[:1].isdigit())
            and (left or right or before.kind == "bracket" or after.kind == "bracket")
        ):
            self.certain.append(Operation(_operand(before, True), run, _operand(after, True)))
        elif left and right and run in "-/" and f"{left}{run}{right}" not in SLASH_ABBREVIATIONS:
            self._numeric_operation(run, left, right)

    def _numeric_operation(self, run: str, left: str, right: str) -> None:
        """Adds an operation between numbers or letters. Near digits a sign may mark a range (5-3) or code (n-1)."""
        if run in "-/:" and (left[0].isdigit() or right[0].isdigit()):
            self.ambiguous.append(run)
        else:
            self.certain.append(Operation(left, run, right))


def _operand(token: _SymbolToken, touches: bool) -> str | None:
    """Returns the operand: an adjacent word, a single letter or a number; None for any other word."""
    if token.kind != "word":
        return None
    word = token.text.casefold()
    return word if touches or _short(token) else None


def _short(token: _SymbolToken) -> str:
    """Returns a number or a single letter, else an empty string."""
    text = token.text
    return text.casefold() if token.kind == "word" and (len(text) == 1 or text[0].isdigit()) else ""


def _is_symbol(run: str) -> bool:
    """Returns whether the run is ASCII or mathematical, unlike currency signs, bullets and emoji."""
    return run.isascii() or any(mark in DASHES or unicodedata.category(mark) == "Sm" for mark in run)
