"""Guard `foreign_words`: words that are not in Latin letters may be added, but not exchanged for others.

No table knows which of them mean the same: 谁批准报销 (expenses) and 谁批准请假 (leave) differ in two characters.

Whether the guards for other languages than English read a question at all.
"""

from __future__ import annotations

from typing import Final

from api.guards.words import Words
from api.languages.function_words import ENGLISH
from api.languages.identify import ANY_SCRIPT, LATIN, script_of

UNSPACED: Final = frozenset(["HAN", "KANA", "THAI", "LAO", "KHMER", "MYANMAR"])
"""Put no blanks between words: compared by their characters."""
GRAMMAR: Final = frozenset(
    "的了吗嗎呢吧啊我你您他她它们們是在有和与與或怎么麼样樣如何什甚哪里裡儿兒请請问問可以能会會要想需应應该該把被给給对對为為这這那个個一方法"
)
"""Chinese characters that carry grammar; of Japanese, hiragana do."""
HIRAGANA: Final = ("\u3040", "\u309f")
STEM: Final = 5
"""Letters by which an inflected word is known."""
MAX_WORDS: Final = 60


def read(question: Words) -> frozenset[str]:
    """Words by their beginning, and characters where there are no blanks. Empty for Latin letters alone."""
    found: set[str] = set()
    for word in question.words[:MAX_WORDS]:
        if word.isascii():
            continue
        script = script_of(word[0])
        if script in UNSPACED:
            found.update(one for one in word if _tells(one))
        elif script not in (LATIN, ANY_SCRIPT):
            found.add(word[:STEM])
    return frozenset(found)


def _tells(character: str) -> bool:
    return character not in GRAMMAR and not HIRAGANA[0] <= character <= HIRAGANA[1] and not character.isascii()


def compare(one: frozenset[str], other: frozenset[str]) -> str:
    """The words that each has alone, where both have some; else an empty text."""
    ours, theirs = one - other, other - one
    return f"{' '.join(sorted(ours))} / {' '.join(sorted(theirs))}" if ours and theirs else ""


def is_read(question: Words) -> bool:
    """Where another language prevails, and where no English word of grammar tells (`Alarm einschalten`)."""
    return not question.english or ENGLISH.isdisjoint(question.words)
