"""A question as the guards read it: its words in their order, and what was typed."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

_TOKEN: Final = re.compile(r"[^\W_]+(?:['.,:/@_#+\\-][^\W_]+)*[+#]*|[%$€£¥]")
_SENTENCE_END: Final = re.compile(r"[.!?…:\"“”„»«(–—]\s*$")

STOP_WORDS: Final = frozenset(
    "a an the is are was were be been am do does did can could will would shall should may might must have has had i "
    "me my we us our you your he him his she her it its they them their this that these those there here what which "
    "who whom whose when where why how and or but if of in on at for with as so such please tell explain show give "
    "about to from than into by into over before after until since per via get got go any some all one ones just also "
    "really actually know want need like way".split()
)


@dataclass(frozen=True, slots=True)
class Token:
    """A word: as it was typed, in lower case, and whether it begins a sentence."""

    typed: str
    word: str
    first: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """`words` are all in lower case; `stems` the same without plural and possessive; `content`: stems that matter."""

    tokens: tuple[Token, ...]
    words: tuple[str, ...]
    stems: frozenset[str]
    content: tuple[str, ...]


def read(text: str) -> Reading:
    """Reads a question of any language; the words it is split into are English ones at best."""
    plain = unicodedata.normalize("NFKC", text).replace("’", "'").replace("`", "'")
    tokens: list[Token] = []
    end = 0
    for match in _TOKEN.finditer(plain):
        first = not tokens or _SENTENCE_END.search(plain[end : match.start()]) is not None
        tokens.append(Token(match.group(), match.group().casefold(), first))
        end = match.end()
    words = tuple(token.word for token in tokens)
    content = tuple(stem(word) for word in words if word not in STOP_WORDS)
    return Reading(tuple(tokens), words, frozenset(map(stem, words)), content)


def stem(word: str) -> str:
    """Without the possessive and the plural: enough to find a name again."""
    if word.endswith("'s"):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
