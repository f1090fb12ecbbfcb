"""Where upper and lower case tell things apart: code, paths, patterns, units, and words such as IT.

Both tiers of the cache ask here: the exact one keeps the case of these, the guard `symbols` compares it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from api.languages.function_words import words_in

IN_CAPITALS: Final = frozenset({"IT", "US", "WHO", "AIDS", "ACT", "SAT", "ARM", "CAN", "MAY", "OR", "IN", "ME", "AM"})
"""Words that mean another thing in capitals: `What is IT?` is not `What is it?`."""
NEVER_EMPHASIS: Final = frozenset({"IT", "WHO", "AIDS"})
"""Those of them that nobody writes in capitals for emphasis, nor in small letters by the way (the us population)."""

OPENING: Final = "(\"'“‘«¿¡„"
CLOSING: Final = ".,;:?!…)\"'”’»。？！，、"

_FILES: Final = (
    "py pyc ipynb rb rs go java class c h cpp hpp cs ts tsx jsx mjs php pl lua swift kt scala json jsonl yaml yml toml "
    "ini cfg conf env lock xml html htm css scss md rst txt csv tsv log sql db sh bash zsh ps1 bat exe dll so jar war "
    "zip tar gz tgz 7z pdf doc docx xls xlsx ppt pptx png jpg jpeg gif svg pem crt key"
)
"""Endings of files. Not js, net, com or io: Node.js and Example.com are names, however they are typed."""
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
    rf"|\w\.(?:{'|'.join(_FILES.split())})\b"  # README.md
)
_WORTH_A_LOOK: Final = re.compile(
    r"[^\w\s.,?!'\"’‘“”…–—;:()-]|_|\w\(|(?<!\w)-\w|\w\.\w|::|[a-z]\d*[A-Z]|\d\s?[mMpPkKgGtT]"
    r"|\b(?:[kKMG]i?[bB]|M[WVP]|(?:Co|Hf|Sn|Cs|Mg|Pa|Nm)\b)"
)
"""Without any of this nothing keeps its case."""
_CAMEL: Final = re.compile(r"(?<![^\W_])[a-z]+\d*[A-Z]\w*")
_STICKY: Final = re.compile(r"[a-z][A-Z]{2,}s?")
"""mRNA, gRPC, and wHAT with Caps Lock on: nobody tells these from what they are in small letters."""
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
"""Words with a capital inside that mean the same in small letters."""
_UNIT: Final = re.compile(
    r"\d*[.,]?\d*(?:[mM][wW][hH]?|[mM][vV]|[mM][aA]|[mM][jJ]|[mM][pP][aA]|[mM][hH][zZ]|[mM][sS]|[pP][aA]|[pP][fF]"
    r"|[kKmMgGtTpP][iI]?[bB](?:it|yte)?s?(?:ps|/s)?)"
)
_DATA_UNIT: Final = re.compile(r"[KMG]i?[bB](?:ps|/s)?|k[bB](?:ps|/s)?|MW|MWh|MV|MPa")
"""Also without a figure: `What is MB?`"""
_SYMBOLS: Final = frozenset({"Co", "Hf", "Sn", "Cs", "Mg", "Pa", "Nm"})
"""Chemical elements and units that spell something else in other letters: Co is not CO, Mg not mg."""
_OPERATOR: Final = re.compile(r"[=<>|^&+*/\\%~!:-]*[=<>|^\\][=<>|^&+*/\\%~!:-]*|&&")


@dataclass(frozen=True, slots=True)
class Cased:
    """A stretch without white space, and whether it keeps its case."""

    text: str
    keeps: bool


def fold(text: str) -> str:
    """`text` in lower case, words apart by single spaces, but for what keeps its case."""
    folded = text.casefold()
    if folded == text:
        return folded
    shouted = is_shouted(text)
    capitals = not shouted and not IN_CAPITALS.isdisjoint(_WORD.findall(text))
    if not capitals and _WORTH_A_LOOK.search(text) is None:
        return folded
    return " ".join(_folded(one, capitals) for one in chunks(text))


def kept(text: str) -> tuple[str, ...]:
    """The words of `text` that keep their case, without the punctuation around them."""
    if _WORTH_A_LOOK.search(text) is None:
        return ()
    return tuple(core(one.text) for one in chunks(text) if one.keeps)


def is_shouted(text: str) -> bool:
    """All in capitals: these tell nothing then, but for code."""
    return not any(map(str.islower, text))


def chunks(text: str) -> Iterator[Cased]:
    """The stretches of `text`, and whether each keeps its case. Linear in its length."""
    shouted = is_shouted(text)
    in_call = ticked = False
    before = ""
    parts = text.split()
    for place, part in enumerate(parts):
        operand = len(part.strip(CLOSING)) == 1 and (
            _is_operator(before) or _is_operator(parts[place + 1] if place + 1 < len(parts) else "")
        )
        ticks = _ticks(part)
        code = in_call or ticked or bool(ticks) or operand or is_code(part)
        yield Cased(part, code or (not shouted and _is_unit(part, before)))
        ticked ^= ticks % 2 == 1
        in_call = _opens_call(part) or (in_call and ")" not in part)
        before = part


def is_code(part: str) -> bool:
    """Whether a stretch looks like code, a path, a pattern or an identifier."""
    if part.isalpha():
        return not part.islower() and _camel(part)
    if part.isalnum() and part.islower():
        return False
    return bool(_CODE.search(part)) or _camel(part) or bool(_URL.match(part))


def core(part: str) -> str:
    """A stretch without the punctuation around it."""
    return part.lstrip(OPENING).rstrip(CLOSING) or part


def _folded(one: Cased, capitals: bool) -> str:
    if not one.keeps:
        if not capitals:
            return one.text.casefold()
        return "".join(part if part in IN_CAPITALS else part.casefold() for part in _SPLIT.split(one.text))
    address = _URL.match(one.text)
    return one.text[: address.end()].casefold() + one.text[address.end() :] if address else one.text


def _camel(part: str) -> bool:
    """getName, but not iPhone."""
    if "@" in part[1:]:
        return False
    for found in _CAMEL.findall(part):
        plain = found.casefold().rstrip("0123456789")
        if not (_STICKY.fullmatch(found) or plain in _BRANDS or plain.removesuffix("s") in _BRANDS):
            return True
    return False


def _is_unit(part: str, before: str) -> bool:
    """Units after a figure, units of data and symbols of elements anywhere."""
    word = core(part)
    figure = before[-1:].isdigit() or word[:1].isdigit()
    if word in _SYMBOLS and not figure and before not in ("&", "and"):
        return True
    return bool((_UNIT if figure else _DATA_UNIT).fullmatch(word))


def _is_operator(part: str) -> bool:
    return bool(part) and not part[0].isalnum() and bool(_OPERATOR.fullmatch(part))


def _opens_call(part: str) -> bool:
    """foo(a, as the beginning of foo(a, b)."""
    place = part.rfind("(")
    return place > 0 and (part[place - 1].isalnum() or part[place - 1] == "_") and ")" not in part[place:]


def _ticks(part: str) -> int:
    """Backticks that mark code: none between two letters, where one stands for an apostrophe."""
    if "`" not in part:
        return 0
    return len(re.findall(r"(?<![^\W\d_])`|`(?![^\W\d_])", part))
