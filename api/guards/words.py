"""Splits a question into lower-case words. Expands contractions, separates numbers, and keeps hints from the typing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from api.guards.vocabulary import (
    ENGLISH,
    FOREIGN,
    FUNCTION_WORDS,
    GERMAN,
    TRIGGERS,
    normalize_phrases,
    remap_indexes,
)
from api.languages.function_words import ENGLISH as GRAMMAR
from api.languages.function_words import words_in
from api.languages.identify import ANY_SCRIPT, LATIN, script_of
from api.unicode_text import nfc

EDGES: Final = ".,;:?!…¿¡()[]{}<>\"'“”‘’«»„`*~。？！，、"
CLAUSE_ENDS: Final = ".,;:?!…。？！，"
TYPOGRAPHIC: Final = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "–": "-", "—": "-", "−": "-", "‑": "-", "´": "'"})
CURRENCY_SIGNS: Final = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}

QUOTED: Final = re.compile(r"\"([^\"]+)\"|“([^”]+)”|«([^»]+)»|`([^`]+)`")
THOUSANDS: Final = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d])")
MISSING_SPACE: Final = re.compile(
    r"(?<=[a-z])([.?!,]+)(?=(?:How|What|Why|When|Where|Who|Which|I|The|Can|Could|Is|Are|Do|Does|Did|My|It|Would|Will"
    r"|Please|This|That|There|But|And|So|If)\b)|(\.\.\.+)"
)
"""The end of a sentence without a space after it, which is not a file name."""
BACKTICK_APOSTROPHE: Final = re.compile(r"(?<=[^\W\d_])`(?=[^\W\d_])")
PIECE: Final = re.compile(
    r"(?:(?<![\w.)])-)?\d+(?:\.\d+)*"  # 5, -5, 1.5, 1.2.3
    r"|[½¼¾²³¹⁰⁴-⁹₀-₉⅐-⅞]"
    r"|[$€£¥₹%]"
    r"|[^\W\d_]+(?:'[^\W\d_]+)*(?:\+\+|\#)?"
)
CODE: Final = re.compile(r"[^\W\d_]{1,12}[-_.]?\d|\d[-_]?[^\W\d_]")
IDENTIFIER: Final = re.compile(r"@|://|\w[_/\\.:]+\w|^[/.~\\-]\w|[a-z][A-Z]|\w\(\)?$")
VERSION: Final = re.compile(r"v\d+(?:\.\d+)*")
NUMBER_FIRST: Final = re.compile(r"\d+(?:\.\d+)?[^\W\d_]{1,12}")
ABBREVIATIONS: Final = {
    "e.g": "",
    "i.e": "",
    "etc": "",
    "u.s": "us",
    "u.s.a": "usa",
    "u.k": "uk",
    "a.m": "am",
    "p.m": "pm",
    "2fa": "2fa",
}

BARE_NOT: Final = {
    f"{auxiliary}nt": (auxiliary, "not")
    for auxiliary in "do did does is are was were has have had would could should must need".split()  # noqa: SIM905
} | {"cant": ("can", "not"), "wont": ("will", "not"), "aint": ("is", "not")}
CONTRACTIONS: Final[dict[str, tuple[str, ...]]] = {
    **BARE_NOT,
    **{bare[:-1] + "'t": whole for bare, whole in BARE_NOT.items()},
    "cannot": ("can", "not"),
    "shan't": ("shall", "not"),
    "let's": ("let", "us"),
    "whats": ("what", "is"),
    "wheres": ("where", "is"),
    "hows": ("how", "is"),
    "whos": ("who", "is"),
    "login": ("log", "in"),
    "logout": ("log", "out"),
    "logoff": ("log", "off"),
    "signin": ("sign", "in"),
    "signout": ("sign", "out"),
    "signup": ("sign", "up"),
    "logon": ("log", "on"),
    "percent": ("%",),
    "o'clock": (),
    "im": ("i", "am"),
    "ive": ("i", "have"),
}
NO_SPANS: Final[dict[int, str]] = {}
WEEKDAYS: Final = words_in("mon monday mondays tue thu thursday fri friday fridays sat saturday sun sunday")
ELISIONS: Final = words_in("l d j qu n s c m t un dell nell all sull dall")
"""Elided words of French and Italian: l'heure, dell'ufficio."""
IS_AFTER: Final = words_in("what who where how when why that it there here he she which")


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a question in order, and what is known of them."""

    words: tuple[str, ...]
    clause_starts: frozenset[int]
    """Indexes in `words` where a clause begins."""
    names: tuple[str, ...]
    """Words typed as names (a capital inside a sentence), codes and identifiers; squashed and in lower case."""
    quoted: tuple[str, ...]
    """Quoted phrases as words joined by spaces."""
    text: str
    """The text as typed."""
    spans: dict[int, str]
    """Time spans as written, by the index of their number in `words`."""
    english: bool
    """False if another language prevails; the English rules then do not apply."""


@dataclass(slots=True)
class _WordReader:
    words: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    capitals: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    letter_a: list[int] = field(default_factory=list)
    """Indexes of a capital A inside a sentence: a name (plan A), not an article."""
    title_case: bool = False
    """True if a function word inside a sentence is capitalized. Capitals then mark no names."""

    def chunk(self, chunk: str, sentence_start: bool) -> None:
        """Reads a run of text without white space."""
        core = chunk if chunk.isalpha() else chunk.strip(EDGES)
        if core.isalpha():
            self._word(core, sentence_start)
        elif core:
            self._structured(core, sentence_start)

    def _word(self, word: str, sentence_start: bool) -> None:
        low = word.lower()
        if low != word:
            self._capital(word, low, sentence_start)
        parts = CONTRACTIONS.get(low)
        if parts is not None:
            self.words += parts
        else:
            self.words.append(low)

    def _capital(self, word: str, low: str, sentence_start: bool) -> None:
        acronym = len(word) > 1 and word.isupper()
        if low in FUNCTION_WORDS or low in CONTRACTIONS:
            if low == "a" and not sentence_start:
                self.letter_a.append(len(self.words))
            elif not sentence_start and low != "i" and not acronym:
                self.title_case = True
        elif acronym or not sentence_start:
            self.capitals.append(low)

    def _structured(self, core: str, sentence_start: bool) -> None:
        low = core.lower()
        if low in ABBREVIATIONS:
            self.words += filter(None, (ABBREVIATIONS[low],))
            return
        if "-" in core and core.replace("-", "").isalpha():
            self._hyphenated(core, low, sentence_start)
            return
        if VERSION.fullmatch(low):
            self.words += ("version", low[1:])
            return
        if (IDENTIFIER.search(core) and not core.replace("/", "").isalpha() and not _numeric(core)) or (
            CODE.search(core) and not NUMBER_FIRST.fullmatch(core)
        ):
            self.codes.append(squash(low))
        for piece in PIECE.findall(core):
            self._piece(piece, sentence_start)

    def _hyphenated(self, core: str, low: str, sentence_start: bool) -> None:
        """Reads a hyphenated word: Wi-Fi is one name, e-mail one word, two-factor two words."""
        if low != core and not WEEKDAYS.issuperset(low.split("-")):
            self._capital(squash(core), squash(low), sentence_start)
        self.words += (squash(low),) if low[1] == "-" else filter(None, low.split("-"))

    def _piece(self, piece: str, sentence_start: bool) -> None:
        if piece.isalpha():
            self._word(piece, sentence_start)
        elif "'" in piece:
            self._apostrophe(piece, sentence_start)
        else:
            self.words.append(CURRENCY_SIGNS.get(piece, piece.lower()))
            if piece[-1] in "+#":
                self.codes.append(piece.lower())

    def _apostrophe(self, piece: str, sentence_start: bool) -> None:
        parts = CONTRACTIONS.get(piece.lower())
        base, _, end = piece.partition("'")
        if parts is not None:
            self.words += parts
            return
        if base.lower() in ELISIONS and len(end) > 2:
            self.words += ("ne",) if base.lower() == "n" else ()
            self._word(end, sentence_start)
            return
        self._word(base, sentence_start)
        if end.lower() == "s" and base.lower() in IS_AFTER:
            self.words.append("is")


def _numeric(core: str) -> bool:
    """Returns whether the run has no letter: 5-10, 24/7, 10:30, 1.2.3."""
    return not any(map(str.isalpha, core))


def squash(name: str) -> str:
    """Removes separators: ABC-123, abc_123 and abc 123 become the same."""
    return "".join(filter(str.isalnum, name)) or name


def read_words(text: str) -> Words:
    """Splits `text` into words, in time linear in its length."""
    typed = text
    if not text.isascii():
        text = nfc(text).translate(TYPOGRAPHIC)
    if "`" in text:
        text = BACKTICK_APOSTROPHE.sub("'", text)
    all_caps = text.isupper()
    if "." in text or "?" in text:
        text = MISSING_SPACE.sub(r"\1\2 ", text)
    if "," in text:
        text = THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    reader = _WordReader()
    sentence_start = True
    for chunk in text.split():
        reader.chunk(chunk, sentence_start)
        sentence_start = chunk[-1] in '.?!…:"'
        if chunk[-1] in CLAUSE_ENDS:
            reader.starts.append(len(reader.words))
    words = reader.words
    english = not is_foreign(words)
    capitals_mark_names = not (all_caps or reader.title_case or is_german(words))
    if capitals_mark_names:
        for index in reader.letter_a:
            words[index] = "A"
    quoted = _quoted(text) if not all_caps else ()
    starts, spans = frozenset(reader.starts), NO_SPANS
    if english and not TRIGGERS.isdisjoint(words):
        normalized = normalize_phrases(words)
        words, starts, spans = normalized.words, remap_indexes(starts, normalized), normalized.spans
    names = dict.fromkeys((*(reader.capitals if capitals_mark_names else ()), *reader.codes))
    return Words(tuple(words), starts, tuple(names), quoted, typed, spans, english)


def _quoted(text: str) -> tuple[str, ...]:
    if not ('"' in text or "“" in text or "«" in text or "`" in text):
        return ()
    phrases = ("".join(found) for found in QUOTED.findall(text))
    return tuple(phrase for phrase in (" ".join(read_words(phrase).words) for phrase in phrases) if phrase)


def is_foreign(words: Iterable[str]) -> bool:
    """Returns whether function words of other languages and words in other scripts outnumber English function words."""
    english = foreign = 0
    for word in words:
        if word in ENGLISH or word in GRAMMAR:
            english += 1
        elif word in FOREIGN or not (word.isascii() or script_of(word[0]) in (LATIN, ANY_SCRIPT)):
            foreign += 1
    return foreign > english


def is_german(words: Iterable[str]) -> bool:
    """Returns whether the words are German. German capitalizes all nouns, so a capital does not mark a name."""
    english = german = 0
    for word in words:
        english += word in ENGLISH
        german += word in GERMAN
    return german > english
