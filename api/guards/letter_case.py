"""Decides where letter case matters: code, paths, patterns, units, and words such as IT.

The exact tier of the cache keeps this case in its keys. The guard `symbols` compares it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from api.languages.function_words import words_in

MEANINGFUL_CAPITALS: Final = frozenset(
    {"IT", "US", "WHO", "AIDS", "ACT", "SAT", "ARM", "CAN", "MAY", "OR", "IN", "ME", "AM"}
)
"""Words with another meaning in capitals: `What is IT?` is not `What is it?`."""
NEVER_EMPHASIS: Final = frozenset({"IT", "WHO", "AIDS"})
"""The subset that nobody capitalizes for emphasis or writes in lower case (the us population)."""

OPENING: Final = "(\"'“‘«¿¡„"
CLOSING: Final = ".,;:?!…)\"'”’»。？！，、"

_FILE_EXTENSIONS: Final = (
    "py pyc ipynb rb rs go java class c h cpp hpp cs ts tsx jsx mjs php pl lua swift kt scala json jsonl yaml yml toml "
    "ini cfg conf env lock xml html htm css scss md rst txt csv tsv log sql db sh bash zsh ps1 bat exe dll so jar war "
    "zip tar gz tgz 7z pdf doc docx xls xlsx ppt pptx png jpg jpeg gif svg pem crt key"
)
"""File extensions. Not js, net, com or io: Node.js and Example.com are names in any case."""
_WORD: Final = re.compile(r"\w+")
_SPLIT: Final = re.compile(r"(\w+)")
_CODE: Final = re.compile(
    r"[\\{}|^]|\[[^\]]{0,40}[^\W\d_]"  # \w, ${x}, a|b, [a-z]
    r"|[^\W\d_]\(?[=<>]+[\w\"'(\[]|[=<>][^\W\d_]"  # x=Y, <div>
    r"|\w_\w|(?<!\w)__?\w+\(|(?<!\w)__\w"  # MAX_SIZE
    r"|\$[^\W\d]|(?<![\d])%[^\W\d_]"  # $PATH, %d
    r"|^[-\"'(]*--?[^\W\d_]|^@[^\W\d_]"  # -v, --Force, @Override
    r"|^[\"'(]?(?:~|\.{1,2})?/[\w.]|\w/[\w.-]+/\w"  # /etc, ./Run, src/Main/App
    r"|\w\((?!e?s\))"  # f(x), but card(s)
    r"|\w::\w|->|=>|:=|&&"
    rf"|\w\.(?:{'|'.join(_FILE_EXTENSIONS.split())})\b"  # README.md
)
_MAY_KEEP_CASE: Final = re.compile(
    r"[^\w\s.,?!'\"’‘“”…–—;:()-]|_|\w\(|(?<!\w)-\w|\w\.\w|::|[a-z]\d*[A-Z]|\d\s?[mMpPkKgGtT]"
    r"|\b(?:[kKMG]i?[bB]|M[WVP]|(?:Co|Hf|Sn|Cs|Mg|Pa|Nm)\b)"
)
"""If this does not match, no word keeps its case."""
_CAMEL: Final = re.compile(r"(?<![^\W_])[a-z]+\d*[A-Z]\w*")
_CAPS_RUN: Final = re.compile(r"[a-z][A-Z]{2,}s?")
"""mRNA, gRPC, and wHAT typed with Caps Lock on: they mean the same in lower case."""
_URL: Final = re.compile(r"[(\"'<]?(?:[A-Za-z][A-Za-z+.-]*://|www\.)[^/?#]*", re.IGNORECASE)
_BRANDS: Final = words_in(
    """
    iphone ipad ipod imac icloud itunes ios ipados imessage ibook imovie macos watchos tvos visionos ebay esim epub
    ebook emoney ecommerce etoro jquery nvidia vsphere utorrent recaptcha phpmyadmin postgresql mysql nosql graphql
    mongodb javascript typescript youtube github gitlab linkedin whatsapp paypal wifi openai chatgpt tiktok facebook
    instagram macbook airpods powerpoint wordpress pytorch tensorflow numpy fastapi latex bibtex mcdonald
    ph pka db dbm dba kw kwh khz kpa kn kj kv kva kva khz ml dl cl mah mmhg mmol nmol dna xbox hdmi usb
    """
)
"""Words with an inner capital that mean the same in lower case."""
_UNIT: Final = re.compile(
    r"\d*[.,]?\d*(?:[mM][wW][hH]?|[mM][vV]|[mM][aA]|[mM][jJ]|[mM][pP][aA]|[mM][hH][zZ]|[mM][sS]|[pP][aA]|[pP][fF]"
    r"|[kKmMgGtTpP][iI]?[bB](?:it|yte)?s?(?:ps|/s)?)"
)
_DATA_UNIT: Final = re.compile(r"[KMG]i?[bB](?:ps|/s)?|k[bB](?:ps|/s)?|MW|MWh|MV|MPa")
"""Units that need no number before them: `What is MB?`"""
_SYMBOLS: Final = frozenset({"Co", "Hf", "Sn", "Cs", "Mg", "Pa", "Nm"})
"""Chemical elements and units that differ from another word only in case: Co is not CO, Mg is not mg."""
_OPERATOR: Final = re.compile(r"[=<>|^&+*/\\%~!:-]*[=<>|^\\][=<>|^&+*/\\%~!:-]*|&&")


@dataclass(frozen=True, slots=True)
class CaseChunk:
    """A run of text without white space, and whether its case matters."""

    text: str
    keeps_case: bool


def fold(text: str) -> str:
    """Returns `text` in lower case with single spaces, but keeps the case where it matters."""
    folded = text.casefold()
    if folded == text:
        return folded
    all_caps = is_all_caps(text)
    capitals = not all_caps and not MEANINGFUL_CAPITALS.isdisjoint(_WORD.findall(text))
    if not capitals and _MAY_KEEP_CASE.search(text) is None:
        return folded
    return " ".join(_folded(one, capitals) for one in chunks(text))


def case_sensitive_words(text: str) -> tuple[str, ...]:
    """Returns the words of `text` whose case matters, without surrounding punctuation."""
    if _MAY_KEEP_CASE.search(text) is None:
        return ()
    return tuple(strip_punctuation(one.text) for one in chunks(text) if one.keeps_case)


def is_all_caps(text: str) -> bool:
    """Returns whether the text has no lower-case letter. Its case then matters only in code."""
    return not any(map(str.islower, text))


def chunks(text: str) -> Iterator[CaseChunk]:
    """Yields each run of `text` and whether its case matters, in linear time."""
    all_caps = is_all_caps(text)
    in_call = in_backticks = False
    before = ""
    parts = text.split()
    for index, part in enumerate(parts):
        operand = len(part.strip(CLOSING)) == 1 and (
            _is_operator(before) or _is_operator(parts[index + 1] if index + 1 < len(parts) else "")
        )
        ticks = _ticks(part)
        code = in_call or in_backticks or bool(ticks) or operand or is_code(part)
        yield CaseChunk(part, code or (not all_caps and _is_unit(part, before)))
        in_backticks ^= ticks % 2 == 1
        in_call = _opens_call(part) or (in_call and ")" not in part)
        before = part


def is_code(part: str) -> bool:
    """Returns whether a run looks like code, a path, a pattern or an identifier."""
    if part.isalpha():
        return not part.islower() and _is_camel_case(part)
    if part.isalnum() and part.islower():
        return False
    return bool(_CODE.search(part)) or _is_camel_case(part) or bool(_URL.match(part))


def strip_punctuation(part: str) -> str:
    """Returns the run without surrounding punctuation."""
    return part.lstrip(OPENING).rstrip(CLOSING) or part


def _folded(one: CaseChunk, capitals: bool) -> str:
    if not one.keeps_case:
        if not capitals:
            return one.text.casefold()
        return "".join(part if part in MEANINGFUL_CAPITALS else part.casefold() for part in _SPLIT.split(one.text))
    address = _URL.match(one.text)
    return one.text[: address.end()].casefold() + one.text[address.end() :] if address else one.text


def _is_camel_case(part: str) -> bool:
    """Returns whether the run is a camel-case identifier (getName), not a brand (iPhone)."""
    if "@" in part[1:]:
        return False
    for found in _CAMEL.findall(part):
        plain = found.casefold().rstrip("0123456789")
        if not (_CAPS_RUN.fullmatch(found) or plain in _BRANDS or plain.removesuffix("s") in _BRANDS):
            return True
    return False


def _is_unit(part: str, before: str) -> bool:
    """Returns whether the run is a unit after a number, or a data unit or element symbol anywhere."""
    word = strip_punctuation(part)
    figure = before[-1:].isdigit() or word[:1].isdigit()
    if word in _SYMBOLS and not figure and before not in ("&", "and"):
        return True
    return bool((_UNIT if figure else _DATA_UNIT).fullmatch(word))


def _is_operator(part: str) -> bool:
    return bool(part) and not part[0].isalnum() and bool(_OPERATOR.fullmatch(part))


def _opens_call(part: str) -> bool:
    """Returns whether the run opens a call that a later run closes: foo(a, b)."""
    index = part.rfind("(")
    return index > 0 and (part[index - 1].isalnum() or part[index - 1] == "_") and ")" not in part[index:]


def _ticks(part: str) -> int:
    """Counts the backticks that mark code. A backtick between two letters is an apostrophe."""
    if "`" not in part:
        return 0
    return len(re.findall(r"(?<![^\W\d_])`|`(?![^\W\d_])", part))
