"""Guard `numbers`: the same figures in the same order or the same places, in digits or in words.

Guard `symbols`: operators, the arguments of a call, and letter case where it tells things apart. The embedder sees
hardly any of these: `x >= 3` and `x <= 3` are the same to it. Ordinary punctuation is passed over.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from api.guards.letter_case import NEVER_EMPHASIS, core, kept
from api.guards.vocabulary import HOURS, ORDINALS, OTHER_NUMBERS, SCALES, SMALL, SOFT, SUFFIXES, TENS, WORDS
from api.guards.words import Words
from api.languages.function_words import words_in


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers as plain decimals; `%`, am and pm follow theirs, a minus stands before."""

    every: tuple[str, ...] = ()
    hard: tuple[str, ...] = ()
    """Without the soft ones."""
    before: frozenset[tuple[str, str]] = frozenset()
    """Each hard one with the word before it,"""
    after: frozenset[tuple[str, str]] = frozenset()
    """and with the word after it."""
    shown: tuple[str, ...] = ()
    """All, as they were written."""


NO_NUMBERS: Final = Numbers()


def read_numbers(question: Words) -> Numbers:
    """All numbers in order."""
    words = question.words
    every: list[str] = []
    shown: list[str] = []
    hard: list[str] = []
    before: list[tuple[str, str]] = []
    after: list[tuple[str, str]] = []
    place = 0
    while place < len(words):
        word = words[place]
        if word.isalpha() and not (question.english and word in WORDS):
            place += 1
            continue
        found, soft, end = _spoken(question, place) if word in WORDS else _figure(words, place)
        every += found
        shown += (question.spans[place],) if place in question.spans else found
        if found and not soft:
            hard += found
            before.append((words[place - 1] if place else "", " ".join(found)))
            after.append((" ".join(found), words[end] if end < len(words) else ""))
        place = end
    if not every:
        return NO_NUMBERS
    return Numbers(tuple(every), tuple(hard), frozenset(before), frozenset(after), tuple(shown))


def compare_numbers(one: Numbers, other: Numbers) -> str:
    """The numbers of both where they differ, else an empty text."""
    if one.hard == other.hard or one.every == other.every or one.hard == other.every or one.every == other.hard:
        return ""
    if sorted(one.hard) == sorted(other.hard) and (one.before == other.before or one.after == other.after):
        return ""
    return f"{' '.join(one.shown) or 'none'} / {' '.join(other.shown) or 'none'}"


_Read = tuple[list[str], bool, int]
"""What was read, whether it is soft, and the place after it."""


def _figure(words: Sequence[str], place: int) -> _Read:
    """One figure and what belongs to it (5 million, 5 pm, 1 st); % and fractions stand for themselves."""
    word = words[place]
    if not word[-1].isdecimal():
        return ([word] if word == "%" or word.isnumeric() else []), False, place + 1
    value = _plain(word.removeprefix("-"))
    found = ["-", value] if word[0] == "-" else [value]
    place += 1
    after = words[place] if place < len(words) else ""
    if after in SCALES and value.count(".") < 2:
        found[-1] = f"{float(value) * SCALES[after]:.15g}"
    elif after in HOURS:
        found.append(after)
    elif after not in SUFFIXES:
        return found, False, place
    return found, False, place + 1


def _plain(figure: str) -> str:
    """05 is 5 and 5.00 is 5, but 3.10 is not 3.1 (versions) nor 1.000 1 (thousands elsewhere)."""
    if not figure.isascii():
        figure = "".join(str(int(mark)) if mark.isdecimal() else mark for mark in figure)
    if len(figure) == 2 and figure[0] == "0":
        return figure[1]
    return figure.removesuffix(".00")


def _spoken(question: Words, place: int) -> _Read:
    """A number in words (two hundred and five)."""
    words = question.words
    word = words[place]
    after = words[place + 1] if place + 1 < len(words) else ""
    if word == "first" and (not after or place + 1 in question.clause_starts):
        return ["1"], True, place + 1  # do I need to activate it first?
    if word == "minus":
        return ["-"], False, place + 1
    if word in SOFT and after not in SCALES:
        return [SOFT[word]], True, place + 1
    if word in ORDINALS or word in OTHER_NUMBERS:
        return [OTHER_NUMBERS.get(word) or str(ORDINALS[word])], False, place + 1
    if word == "k":
        return [], False, place + 1
    total, end = _cardinal(words, place)
    return [str(total)], False, end


def _cardinal(words: Sequence[str], place: int) -> tuple[int, int]:
    """Its value and the place after it."""
    total = current = 0
    room = 10**13  # what may still be added: after "twenty" less than ten, after "hundred" less than a hundred
    while place < len(words):
        word = words[place]
        value = SMALL.get(word) or TENS.get(word) or 0
        if word in SCALES and word != "k":
            current = max(current, 1) * SCALES[word]
            room = SCALES[word]
            if room > 100:
                total, current = total + current, 0
        elif 0 < value < room:
            current += value
            room = 10 if word in TENS else 1
        elif not (word == "and" and room in SCALES.values() and _is_number(words, place + 1)):
            break
        place += 1
    return total + current, place


def _is_number(words: Sequence[str], place: int) -> bool:
    return place < len(words) and (words[place] in SMALL or words[place] in TENS)


PLAIN: Final = re.compile(r"[A-Z]?[a-z ,?I]*[.?]*")
"""Most questions: nothing to read in them. The rest of the patterns cost more."""
MAX_SHOWN: Final = 32
"""Operations of each side that a difference is looked for in, pair by pair."""
SUSPECT: Final = re.compile(
    r"[^\w\s.,?!'\"’‘“”…–—;:()-]|(?<![^\s(])--?\w|--|\w\(|\w[:;]\w|[\w)]'+\(|\b\w'+(?=[\s(,.?]|$)|\b\w-(?:\w\b|\d)|\d-\d"
    r"|\d!|\b\w!|!\w|::| - "
)
"""What more than ordinary punctuation has."""
CAPITALS: Final = re.compile("|".join(sorted(NEVER_EMPHASIS)))
PASSED_OVER: Final = re.compile(
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
ASKED: Final = words_in("does is the an use using symbol sign operator character mean means between called")
"""Before a symbol that is asked for: what does + do?"""
APOSTROPHES: Final = words_in("t s m d re ve ll")
"""After a semicolon that was to be an apostrophe: didn;t."""
DASHES: Final = frozenset("-–—−")
PUNCTUATION: Final = frozenset("+-*&~/#@$%:;")
"""Ordinary punctuation between ordinary words."""
SHORT: Final = words_in("n/a w/o y/n r/w i/o a/c b/w c/o s/o w/e")


class Operation(NamedTuple):
    """A run of symbols with what stands beside it: empty where nothing does, None where that is any word."""

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
    """What a question has of symbols."""

    text: str
    hard: tuple[Operation, ...] = ()
    """In order."""
    soft: tuple[str, ...] = ()
    """Marks between two figures, which may also be a range: compared only where both have some."""
    letters: tuple[str, ...] = ()
    """Single letters in order, where there are operations."""
    cased: tuple[str, ...] = ()
    """Words that keep their case."""
    mixed: bool = False
    """Whether capitals and small letters are both there."""


NOTHING: Final = Symbols("")


def read_symbols(question: Words) -> Symbols:
    """The operations and the words that keep their case."""
    text = question.text
    if PLAIN.fullmatch(text):
        return Symbols(text, mixed=text[0].isupper()) if text else NOTHING
    mixed = not (text.islower() or text.isupper())
    cased = kept(text)
    if mixed and CAPITALS.search(text):
        cased += tuple(NEVER_EMPHASIS.intersection(map(core, text.split())))
    if SUSPECT.search(text) is None:
        return Symbols(text, cased=cased, mixed=mixed)
    reader = _Reader(_tokens(PASSED_OVER.sub(" ", text)))
    reader.run()
    letters: tuple[str, ...] = ()
    if reader.hard:
        letters = tuple(token.text for token in reader.tokens if token.kind == "word" and len(token.text) == 1)
    return Symbols(text, tuple(reader.hard), tuple(reader.soft), letters, cased, mixed)


def compare_symbols(one: Symbols, other: Symbols) -> str:
    """The first difference, else an empty text."""
    if one.hard or other.hard or (one.soft and other.soft):
        difference = _operations(one, other)
        if difference:
            return difference
    if one.cased or other.cased:
        return _case(one, other) or " / ".join(reversed(_case(other, one).split(" / ")))
    return ""


def _operations(one: Symbols, other: Symbols) -> str:
    if not _same(one.hard, other.hard):
        left = [each for each in one.hard[:MAX_SHOWN] if not any(_alike(each, its) for its in other.hard)]
        right = [each for each in other.hard[:MAX_SHOWN] if not any(_alike(each, its) for its in one.hard)]
        return f"{_shown(left or one.hard)} / {_shown(right or other.hard)}"
    if one.soft and other.soft and one.soft != other.soft:
        return f"{' '.join(one.soft)} / {' '.join(other.soft)}"
    if one.letters != other.letters and sorted(one.letters) == sorted(other.letters):
        return f"{' '.join(one.letters)} / {' '.join(other.letters)}"
    return ""


def _same(one: Sequence[Operation], other: Sequence[Operation]) -> bool:
    """Alike one by one; in any order where none has an operand (the difference between == and ===)."""
    if len(one) != len(other):
        return False
    if all(_alike(left, right) for left, right in zip(one, other, strict=True)):
        return True
    bare = not any(each.left or each.right for each in (*one, *other))
    return bare and sorted(each.run for each in one) == sorted(each.run for each in other)


def _alike(one: Operation, other: Operation) -> bool:
    return one.run == other.run and all(
        mine is None or theirs is None or mine == theirs
        for mine, theirs in ((one.left, other.left), (one.right, other.right))
    )


def _shown(operations: Sequence[Operation]) -> str:
    return ", ".join(map(str, operations)) or "none"


def _case(one: Symbols, other: Symbols) -> str:
    """The first word that the other has in other letters only."""
    theirs = {core(part) for part in other.text.split()}
    folded = {word.casefold(): word for word in theirs}
    for word in one.cased:
        if word in theirs or (word in NEVER_EMPHASIS and not other.mixed):
            continue
        counterpart = folded.get(word.casefold())
        if counterpart is not None:
            return f"{word} / {counterpart}"
    return ""


class _Token(NamedTuple):
    kind: str
    text: str


def _tokens(text: str) -> list[_Token]:
    return [_Token(str(found.lastgroup), found[0]) for found in TOKEN.finditer(text)]


BLANK: Final = _Token("space", " ")


@dataclass(slots=True)
class _Reader:
    """One walk over the tokens."""

    tokens: list[_Token]
    hard: list[Operation] = field(default_factory=list)
    soft: list[str] = field(default_factory=list)
    calls: list[bool] = field(default_factory=list)
    """Open brackets: whether each is a call's, or holds what is listed."""

    def run(self) -> None:
        for place, token in enumerate(self.tokens):
            if token.kind == "run" and _is_symbol(token.text):
                self._run(place, token.text)
            elif token.kind == "bracket":
                self._bracket(place, token.text)
            elif token.kind == "comma" and self.calls and self.calls[-1]:
                self.hard.append(Operation(self._left(place), ",", self._right(place)))
            elif token.kind == "quote" and self._is_prime(place):
                self.hard.append(Operation(self._at(place - 1).text, token.text.replace("’", "'"), None))

    def _at(self, place: int) -> _Token:
        return self.tokens[place] if 0 <= place < len(self.tokens) else BLANK

    def _beside(self, place: int, step: int) -> tuple[_Token, bool]:
        """The next token on that side and whether it touches."""
        near = self._at(place + step)
        return (self._at(place + 2 * step), False) if near.kind == "space" else (near, True)

    def _left(self, place: int) -> str | None:
        return _operand(*self._beside(place, -1))

    def _right(self, place: int) -> str | None:
        return _operand(*self._beside(place, 1))

    def _bracket(self, place: int, mark: str) -> None:
        before = self._at(place - 1)
        if mark in ")]}":
            if self.calls:
                self.calls.pop()
            return
        called = mark != "(" or before.kind in ("word", "quote") or before.text in ("]", ")")
        self.calls.append(called)
        if called and self._at(place + 1).text != ")":
            left = before.text.casefold() if before.kind == "word" else None
            self.hard.append(Operation(left, mark, self._right(place)))

    def _is_prime(self, place: int) -> bool:
        """f'(x), but neither 'a' nor dogs'."""
        word, before, after = self._at(place - 1), self._at(place - 2), self._at(place + 1)
        return (
            word.kind == "word"
            and len(word.text) == 1
            and word.text.isalpha()
            and before.kind == "space"
            and (after.kind in ("space", "rest", "comma") or after.text == "(")
        )

    def _run(self, place: int, run: str) -> None:
        (before, touches_left), (after, touches_right) = self._beside(place, -1), self._beside(place, 1)
        left, right = _operand(before, touches_left), _operand(after, touches_right)
        if not (touches_right and after.kind == "word"):
            run = run.rstrip("!") or run  # C++!
        if run.strip("!") == "":
            self._exclaimed(run, before if touches_left else BLANK, after, touches_right)
        elif run in "<>" and touches_left and not touches_right and not _short(before):
            return  # clear> is a slip for clear?
        elif run == "=" and after.kind not in ("word", "run", "bracket"):
            return  # 2 + 2 =
        elif not PUNCTUATION.issuperset(run) and not DASHES.issuperset(run):
            self.hard.append(Operation(left, run, right))
        elif len(run) > 1:
            self._doubled(run, left if touches_left else "", right if touches_right else "")
        else:
            self._single("-" if run in DASHES else run, before, after, touches_left, touches_right)

    def _exclaimed(self, run: str, before: _Token, after: _Token, touches: bool) -> None:
        """5! and !x; not the end of a sentence with another after it."""
        if before.kind == "word":
            word = before.text.casefold()
            if run == "!" and not after.text.istitle() and _short(before) and word not in ("i", "a"):
                self.hard.append(Operation(word, run, ""))
        elif touches and after.kind in ("word", "bracket") and after.text not in ")]}":
            self.hard.append(Operation("", run, _operand(after, True)))

    def _doubled(self, run: str, left: str | None, right: str | None) -> None:
        """i++, --force, ::, //; not a dash of two hyphens, nor C++ (a name)."""
        if DASHES.issuperset(run):
            if left == "" and right:
                self.hard.append(Operation("", run, right))
            elif right == "" and left and len(left) == 1:
                self.hard.append(Operation(left, run, ""))
        elif run != "++" or len(left or right or "") < 4:
            self.hard.append(Operation(left, run, right))

    def _single(self, run: str, before: _Token, after: _Token, touches_left: bool, touches_right: bool) -> None:
        left, right = _short(before), _short(after)
        if touches_left and touches_right:
            self._between(run, before, after)
        elif left and right and touches_left != touches_right and run in "+*":
            self._figured(run, left, right)
        elif not touches_left and not touches_right:
            asked = before.text.casefold() in ASKED
            if left and right and run not in "#@$&":
                self._figured(run, left, right)
            elif (asked and run != "-") or (run == "*" and before.kind == "word"):
                self.hard.append(Operation(None, run, None))
        elif touches_right and after.kind in ("word", "bracket"):
            if run in "-+*&~$%@" and not after.text[0].isdigit() and not (run == "@" and before is BLANK):
                self.hard.append(Operation("", run, after.text.casefold()))
        elif touches_left and run in "+*" and before.kind == "word" and left:
            self.hard.append(Operation(left, run, ""))

    def _between(self, run: str, before: _Token, after: _Token) -> None:
        left, right = _short(before), _short(after)
        if run in ":;" and before.kind == after.kind == "word":
            if not (left[:1].isdigit() and right[:1].isdigit()) and after.text not in APOSTROPHES:
                self.hard.append(Operation(before.text.casefold(), run, after.text.casefold()))
        elif (
            run in "+*%"
            and not (run == "%" and left[:1].isdigit())
            and (left or right or before.kind == "bracket" or after.kind == "bracket")
        ):
            self.hard.append(Operation(_operand(before, True), run, _operand(after, True)))
        elif left and right and run in "-/" and f"{left}{run}{right}" not in SHORT:
            self._figured(run, left, right)

    def _figured(self, run: str, left: str, right: str) -> None:
        """5-3 may be a range, n-1 a code, x - y is neither."""
        if run in "-/:" and (left[0].isdigit() or right[0].isdigit()):
            self.soft.append(run)
        else:
            self.hard.append(Operation(left, run, right))


def _operand(token: _Token, touches: bool) -> str | None:
    """What an operation is told by: words that touch it, single letters and figures."""
    if token.kind != "word":
        return None
    word = token.text.casefold()
    return word if touches or _short(token) else None


def _short(token: _Token) -> str:
    """A figure or a single letter, else an empty text."""
    text = token.text
    return text.casefold() if token.kind == "word" and (len(text) == 1 or text[0].isdigit()) else ""


def _is_symbol(run: str) -> bool:
    """ASCII marks and mathematical signs; not currencies, bullets and emoji."""
    return run.isascii() or any(mark in DASHES or unicodedata.category(mark) == "Sm" for mark in run)
