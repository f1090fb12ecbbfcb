"""Edits a real question so that the answer stays or changes, and says which.

Each edit is a function of a question. It returns the edited one, or None if it finds nothing to edit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Final, TypeAlias

from training.grammar import vocabulary
from training.numbers import WORDS
from training.pairs import Pair
from training.surface import misspell, reorder, shorten, vary
from training.wordnet import WordNet

Edit: TypeAlias = Callable[[str, Random], str | None]

WORD: Final = re.compile(r"[A-Za-z]{3,}(?!['’])")
NUMBER: Final = re.compile(r"(?<![\w.])\d{1,6}(?![\w.])")

REPHRASED: Final[Mapping[str, Sequence[str]]] = {
    "how do i ": ("How can I ", "How to ", "What's the way to ", "What do I need to do to ", "Can you tell me how to "),
    "how can i ": ("How do I ", "How to ", "What do I do to ", "Please tell me how to "),
    "can i ": ("Am I able to ", "Is it possible to ", "May I ", "Am I allowed to "),
    "what is ": ("What's ", "Can you tell me what is ", "I'd like to know what is "),
    "what are ": ("Which are ", "Can you list ", "Tell me "),
    "i want to ": ("I'd like to ", "I wish to ", "Please help me to "),
    "i need to ": ("I have to ", "I must ", "I want to "),
    "do i need to ": ("Do I have to ", "Must I ", "Is it necessary to "),
    "show me ": ("List ", "Give me ", "Display "),
    "list ": ("Show ", "Give me ", "What are "),
    "how many ": ("What is the number of ", "Tell me how many "),
    "why is ": ("What is the reason that ", "How come "),
    "where can i ": ("Where do I ", "Where is it possible to "),
    "please ": ("", "Could you please ", "I want you to "),
    "could you ": ("Can you ", "Would you ", "Please "),
    "my ": ("Hi, my ", "Hello, my "),
}
OTHER_QUESTIONS: Final[Mapping[str, Sequence[str]]] = {
    "how do i ": ("Why should I ", "When should I ", "Is it safe to ", "Where can I ", "How often should I ", "Can I "),
    "how can i ": ("Why should I ", "When can I ", "Where can I ", "Who can "),
    "why is ": ("How is ", "When is ", "Is "),
    "why did ": ("How did ", "When did ", "Did "),
    "what is ": ("Who is ", "Where is ", "Why is ", "How is "),
    "when ": ("Where ", "How ", "Why "),
    "where ": ("When ", "How "),
    "can i ": ("Must I ", "Why can't I ", "Should I ", "When can I ", "How do I "),
    "is there ": ("Why is there ", "Where is there ", "When is there "),
    "how many ": ("Which ", "What share of "),
    "how long ": ("How much ", "How often ", "Why "),
}
OPPOSED: Final = (
    ("can i", "can't I"), ("can", "cannot"), ("is", "is not"), ("are", "are not"), ("does", "doesn't"), ("do", "don't"),
    ("with", "without"), ("have", "don't have"), ("before", "after"), ("after", "before"), ("more than", "less than"),
    ("at least", "at most"), ("from", "to"), ("to", "from"), ("all", "none of the"), ("including", "excluding"),
    ("highest", "lowest"), ("most", "least"), ("best", "worst"), ("increase", "decrease"), ("want to", "don't want to"),
    ("need to", "don't need to"), ("my", "your"), ("me", "you"), ("easy", "hard"), ("on", "off"), ("first", "last"),
)  # fmt: skip
ADDED: Final = (
    "and why", "and how much is it", "and where", "and how long does it take", "and when", "and is it safe",
    "other than by phone", "except on Mondays", "for my wife too", "for free", "in advance", "twice", "for my son",
    "for my business", "only for women", "for the first time", "for a week", "for two people", "for beginners",
    "this year", "next month", "in 2023", "in 2024", "as a gift", "second-hand", "alone", "at work", "at school",
    "on a plane", "in bulk", "instead", "last year", "with a partner", "for groups",
)  # fmt: skip
QUALIFYING: Final = (
    "employment",
    "channel",
    "audience",
    "country",
    "device",
    "os",
    "holiday",
    "adultchild",
    "employee",
)


@dataclass(frozen=True)
class Editor:
    """Edits questions with the help of WordNet. Deterministic: it draws from the given generator only."""

    wordnet: WordNet

    def pair(self, question: str, random: Random) -> Pair | None:
        """Returns the question with one edit of it, or None."""
        same, name, edit = random.choices(self._edits(), _WEIGHTS)[0]
        edited = edit(question, random)
        if edited is None or edited.lower().strip(" ?.") == question.lower().strip(" ?."):
            return None
        other = vary(edited, random) if random.random() < 0.4 else edited
        first, second = (question, other) if random.random() < 0.5 else (other, question)
        return Pair(first, second, same, f"edit-{name}")

    def _edits(self) -> Sequence[tuple[bool, str, Edit]]:
        """Returns whether the answer stays, the edit's name and the edit, in the order of `_WEIGHTS`."""
        return (
            (False, "word", self._other_word),
            (False, "compound", self._compound),
            (False, "number", _other_number),
            (False, "opposite", _opposite),
            (False, "added", _added),
            (False, "order", _word_order),
            (False, "asks", _other_question),
            (True, "rephrased", _rephrased),
            (True, "synonym", self._synonym),
            (True, "spelling", _misspelled),
            (True, "reordered", reorder),
            (True, "short", shorten),
            (True, "spoken", _spoken_number),
            (True, "surface", vary),
        )

    def _other_word(self, question: str, random: Random) -> str | None:
        for match in _content(question, random):
            word = match[0].lower()
            singular = word.removesuffix("s")
            plural = word != singular and not singular.endswith("s") and self.wordnet.is_noun(singular)
            stem = singular if plural else word
            others = self.wordnet.antonyms(stem)
            if not others or random.random() < 0.3:
                others = others + self.wordnet.sisters(stem)
            if others:
                return _put(question, match, random.choice(others) + ("s" if plural else ""))
        return None

    def _compound(self, question: str, random: Random) -> str | None:
        """Makes a noun more special (card, credit card) or drops what makes it special."""
        for match in _content(question, random):
            noun = match[0].lower()
            before = WORD.search(question[: match.start()][::-1])
            special = self.wordnet.compounds.get(noun, ())
            if before is not None and before.start() == 1:
                modifier = before[0][::-1]
                if f"{modifier.lower()} {noun}" in special:
                    others = [one for one in special if one != f"{modifier.lower()} {noun}"]
                    start = match.start() - len(modifier) - 1
                    return question[:start] + random.choice([noun, *others]) + question[match.end() :]
            if special:
                return _put(question, match, random.choice(special))
        return None

    def _synonym(self, question: str, random: Random) -> str | None:
        for match in _content(question, random):
            synonyms = self.wordnet.synonyms(match[0].lower())
            if synonyms:
                return _put(question, match, random.choice(synonyms))
        return None


_WEIGHTS: Final = (20, 7, 6, 9, 11, 9, 5, 12, 9, 10, 16, 6, 2, 3)


@cache
def _stop_words() -> frozenset[str]:
    return frozenset(vocabulary()["stop_words"])


def _content(question: str, random: Random) -> list[re.Match[str]]:
    """Returns the words that carry meaning, in random order."""
    words = [match for match in WORD.finditer(question) if match[0].lower() not in _stop_words()]
    random.shuffle(words)
    return words


def _put(question: str, match: re.Match[str], word: str) -> str:
    cased = word.capitalize() if match[0][0].isupper() else word
    return question[: match.start()] + cased + question[match.end() :]


def _other_number(question: str, random: Random) -> str | None:
    found = list(NUMBER.finditer(question))
    if not found:
        return None
    match = random.choice(found)
    number = int(match[0])
    other = number + random.choice((1, -1, 2, 5, 10, max(number, 1)))
    return None if other < 0 else question[: match.start()] + str(other) + question[match.end() :]


def _spoken_number(question: str, random: Random) -> str | None:
    found = [match for match in NUMBER.finditer(question) if int(match[0]) in WORDS]
    if not found:
        return None
    match = random.choice(found)
    return question[: match.start()] + WORDS[int(match[0])] + question[match.end() :]


def _opposite(question: str, random: Random) -> str | None:
    found = [(words, other) for words, other in OPPOSED if re.search(rf"\b{words}\b", question, re.IGNORECASE)]
    if not found:
        return None
    words, other = random.choice(found)
    return re.sub(rf"\b{words}\b", other, question, count=1, flags=re.IGNORECASE)


def _added(question: str, random: Random) -> str:
    """Adds something that the answer must cover as well."""
    extras = vocabulary()["extras"]
    listed = random.choice(extras[random.choice(QUALIFYING)])
    added = random.choice(ADDED) if random.random() < 0.5 else random.choice(listed)
    text = question.rstrip(" ?.!")
    return f"{text} {added}{question[len(text) :].strip()}"


def _word_order(question: str, random: Random) -> str | None:
    """Exchanges two words that carry meaning: the same words, another question."""
    words = sorted(_content(question, random)[:6], key=lambda match: match.start())
    choices = [
        (first, second)
        for place, first in enumerate(words)
        for second in words[place + 1 :]
        if not re.fullmatch(r"\W+((and|or|vs|versus)\W+)?", question[first.end() : second.start()].lower())
    ]
    if not choices:
        return None
    first, second = random.choice(choices)
    between = question[first.end() : second.start()]
    return f"{question[: first.start()]}{second[0]}{between}{first[0]}{question[second.end() :]}"


def _other_question(question: str, random: Random) -> str | None:
    return _other_start(question, OTHER_QUESTIONS, random)


def _rephrased(question: str, random: Random) -> str | None:
    return _other_start(question, REPHRASED, random)


def _other_start(question: str, starts: Mapping[str, Sequence[str]], random: Random) -> str | None:
    for start, others in starts.items():
        if question.lower().startswith(start):
            rest = question[len(start) :]
            text = random.choice(others) + rest
            return text[:1].upper() + text[1:]
    return None


def _misspelled(question: str, random: Random) -> str:
    return misspell(question, random)
