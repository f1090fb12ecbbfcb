"""Guard `questions`: it rejects a text that asks another question too, or says something else besides.

The answer to such a text would let a caller put words under the question of someone else: Ignore the question. How do I
pay? The guard finds a second question in two ways. It may begin like a question (how do I, what time is it); then it
must have a word that the other text lacks. Or it is a sentence; then it may use the same words: What is a visa? Which
visa do I need? A sentence that asks nothing must have a word that the other text lacks, and the rest must say nearly
all of the other text: people say the same thing in one sentence or in two. A question beside statements may
use the same words, too, but the statements must say nearly all of the other text: Where is my card? I want to order a
card. It does not count if it comes last and refers to them: My transfer was declined. What is the reason?
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Final, NamedTuple

from api.guards.vocabulary import ASKING_VERBS, ASKING_WORDS, AUXILIARIES, REQUESTS, SUBJECT_PRONOUNS, stem
from api.guards.words import CONTRACTIONS, EDGES, Words, read_words
from api.languages.function_words import ENGLISH, words_in

SHORT_OPENERS: Final = words_in("how what which")
"""Question words that may have one more word before the auxiliary: what time does, how much is."""
SAYS_LITTLE: Final = (
    ENGLISH
    | REQUESTS
    | ASKING_VERBS
    | AUXILIARIES
    | SUBJECT_PRONOUNS
    | words_in(
        """
        it my so an a the would like want need get know hi hello hey thanks thank many go about next happen now for on
        besides but also just um uh er hmm well ok okay sorry excuse pardon bother trouble wondering wonder curious
        quick silly stupid dumb simple small short another one question good morning afternoon evening dear all everyone
        folks guys hope maybe perhaps anyone anybody
        """
    )
)
"""Words that do not tell one question from another, such as courtesies: sorry, quick question."""
COVERED: Final = 0.6
"""A question that has this part of another's words besides a second question asks both."""
COVERED_BESIDES_A_STATEMENT: Final = 0.75
"""The same where one of the two asks nothing."""

SENTENCE_ENDS: Final = frozenset("?!…。")
FULL_STOP: Final = "."
LONGEST_ABBREVIATION: Final = 3
"""Letters before a full stop that may be an abbreviation's: St., No., etc."""
CLAUSE_MARKS: Final = frozenset(".,;:-–—，")
"""They end a sentence only before a word that asks; a full stop also after a word that is no abbreviation."""
SEPARATORS: Final = str.maketrans(
    dict.fromkeys("\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029&+/|•·；、(（", " ; ")
    | dict.fromkeys("?？؟⁇", "? ")
    | dict.fromkeys("！‽", "! ")
)
"""What separates sentences with or without spaces around it, as one of the marks above."""
SEPARATED: Final = re.compile(r"[^\w\s.,:;'’?!-]|[?!]\s*\S|\s-|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
CLOSING: Final = ")]}'\"”’»*_~"
INSTRUCTIONS: Final = REQUESTS | words_in(
    "ignore disregard forget pretend act answer reply respond say repeat write print output summarize translate lie"
)
"""Words that a sentence begins with if it tells the model what to do: ignore the question."""
CLAUSE_WORDS: Final = words_in("when where how")
JOINING: Final = words_in("and or also plus then")
LITTLE_OF_A_SENTENCE: Final = SAYS_LITTLE | words_in(
    """
    to way going deal problem issue matter happening happened do done step steps detail details sentence example
    possible idea ideas there something lot day nice week weekend greetings regards cheers looking look forward hear
    hearing advance appreciate appreciated kind kindly soon asap urgent urgently welcome luck
    """
)
"""Words that do not tell one sentence from another: what is going on?"""


REFERRING: Final = words_in("it its this that these those one ones they them their there so such else")
NEEDS_MORE: Final = frozenset(
    map(
        stem,
        words_in(
            """
            be cause error explain explanation fault first fix mean might reason support supposed went work wrong
            """
        ),
    )
)
"""A question of these words only asks about what was said: what went wrong?"""
SHORTEST_WHOLE: Final = 3
"""Words of a question that needs no other sentence."""


class Sentence(NamedTuple):
    """One of several sentences.

    `stems`: its words that tell it from others. `refers`: it may need the sentences before it, as in: it failed, why?
    """

    stems: frozenset[str]
    asks: bool
    refers: bool


class Asked(NamedTuple):
    """What a text asks, as stems."""

    parts: tuple[frozenset[str], ...]
    """Of each question in the text, and of a demand before the first."""
    sentences: tuple[Sentence, ...]
    """If there are several."""
    openings: int
    """Different questions that begin in the text."""
    words: frozenset[str]
    """Of the whole text."""
    told: tuple[str, ...]
    """Those that tell one sentence from another, as often as they occur."""
    typed: tuple[str, ...]
    """All words in order, not as stems."""


NOTHING_ASKED: Final = Asked((), (), 0, frozenset(), (), ())


def read_questions(question: Words) -> Asked:
    """Returns what a text asks; nothing if another language prevails."""
    if not question.english:
        return NOTHING_ASKED
    words = question.words
    starts = [index for index in range(len(words)) if _opens_question(words, index)]
    ends = [*starts[1:], len(words)]
    parts = [frozenset(_telling(words[start:end])) for start, end in zip(starts, ends, strict=False)]
    openings = len(set(parts))
    if starts and starts[0] > 1 and words[0] not in SAYS_LITTLE:
        parts.insert(0, frozenset(_telling(words[: starts[0]])))
    sentences = _sentences(question.text) if _may_be_several(question) else ()
    told = tuple(stem(word) for word in words if word not in LITTLE_OF_A_SENTENCE)
    return Asked(tuple(parts), sentences, openings, frozenset(_telling(words)), told, words)


def _may_be_several(question: Words) -> bool:
    """Returns False for most questions, without reading them again."""
    words = question.words
    return (
        any(0 < start < len(words) for start in question.clause_starts)
        or not JOINING.isdisjoint(words)
        or SEPARATED.search(question.text) is not None
    )


def _sentences(text: str) -> tuple[Sentence, ...]:
    chunks = text.translate(SEPARATORS).split()
    found: list[Sentence] = []
    sentence: list[str] = []
    for chunk, after in zip_longest(chunks, chunks[1:], fillvalue=""):
        bare, last = _bare(chunk), chunk.rstrip(CLOSING)[-1:]
        asks_next = _asks(_bare(after)) and after[-1] not in SENTENCE_ENDS  # not: it failed, why?
        if bare and not (asks_next and bare in JOINING):
            sentence.append(chunk)
        is_end = last in SENTENCE_ENDS or (last == FULL_STOP and len(bare) > LONGEST_ABBREVIATION)
        if is_end or (asks_next and (last in CLAUSE_MARKS or bare in JOINING)):
            found.append(_sentence(sentence, marked=last == "?"))
            sentence = []
    found.append(_sentence(sentence, marked=False))
    return tuple(dict.fromkeys(one for one in found if one.stems or one.asks))


def _asks(word: str) -> bool:
    """Returns whether a word asks, also as a short form: what's, whats."""
    whole = word.replace("’", "'").removesuffix("'s")
    return (CONTRACTIONS.get(whole) or (whole,))[0] in ASKING_WORDS


def _bare(chunk: str) -> str:
    return chunk.strip(EDGES).lower()


def _sentence(chunks: Sequence[str], *, marked: bool) -> Sentence:
    words = read_words(" ".join(chunks)).words if chunks else ()
    asks = bool(words) and (marked or words[0] in INSTRUCTIONS or _has_question(words))
    stems = frozenset(stem(word) for word in words if word not in LITTLE_OF_A_SENTENCE)
    refers = len(words) < SHORTEST_WHOLE or stems <= NEEDS_MORE or not REFERRING.isdisjoint(words)
    return Sentence(stems, asks, refers)


def _has_question(words: Sequence[str]) -> bool:
    """Returns whether a question begins in words without a question mark, and no clause: when I log in, where it is."""
    first = words[0]
    if first in AUXILIARIES or (first in ASKING_WORDS and first not in CLAUSE_WORDS):
        return True
    return any(_opens_question(words, index) for index in range(len(words)))


def compare_questions(one: Asked, other: Asked) -> str:
    """Returns the words of a question that is asked besides the other text's, else an empty string."""
    return (
        _besides(one.parts, other.words)
        or _besides(other.parts, one.words)
        or _says_more(one, other)
        or _says_more(other, one)
    )


def _besides(parts: Sequence[frozenset[str]], words: frozenset[str]) -> str:
    if len(parts) < 2 or not words:
        return ""
    times = Counter(word for part in parts for word in part)
    covered = len(words & times.keys())
    for part in parts:
        only_here = [word for word in part if times[word] == 1]
        added = [word for word in only_here if word not in words]
        if added and covered - len(only_here) + len(added) >= COVERED * len(words):
            return f"{'+'.join(sorted(added)[:3])} / none"
    return ""


def _says_more(one: Asked, other: Asked) -> str:
    """Returns words of a sentence without which the others say what `other` says."""
    more_questions = _asking(one) > max(1, _asking(other))
    more_sentences = len(one.sentences) > max(1, len(other.sentences))
    wanted = frozenset(other.told)
    if not (more_questions or more_sentences) or not wanted or _same_words(one, other):
        return ""
    times = Counter(one.told)
    covered = len(wanted & times.keys())
    for sentence in one.sentences:
        stems, asks, refers = sentence
        only_here = sum(times[word] == 1 for word in stems & wanted)
        is_needed = (refers or only_here) and sentence is one.sentences[-1]
        is_more = more_sentences and not (is_needed if asks else stems <= wanted)
        needed = COVERED if asks and more_questions else COVERED_BESIDES_A_STATEMENT
        if (is_more or (asks and more_questions)) and stems and covered - only_here >= needed * len(wanted):
            return f"{'+'.join(sorted(stems)[:3])} / none"
    return ""


def _asking(asked: Asked) -> int:
    return max(sum(sentence.asks for sentence in asked.sentences), asked.openings)


def _same_words(one: Asked, other: Asked) -> bool:
    """Returns whether the words are the same, however the sentences are joined."""
    left, right = ([word for word in asked.typed if word not in JOINING] for asked in (one, other))
    return left == right


def _opens_question(words: Sequence[str], index: int) -> bool:
    """Returns whether a question begins here (how do I, what time is it), and no clause of one (how I can)."""
    word, after = words[index], words[index + 1 : index + 3]
    if word in AUXILIARIES:
        before = words[max(index - 2, 0) : index]
        is_short = bool(before) and before[0] in SHORT_OPENERS and before[-1] not in SUBJECT_PRONOUNS
        is_asked = bool(before) and (before[-1] in ASKING_WORDS or is_short)
        return index > 0 and not is_asked and not SUBJECT_PRONOUNS.isdisjoint(after[:1])
    if word not in ASKING_WORDS or len(after) < 2:
        return False
    if after[0] in AUXILIARIES:
        return True
    is_short = word in SHORT_OPENERS and after[0] not in SUBJECT_PRONOUNS and after[0] != "it"
    return is_short and after[1] in AUXILIARIES and index + 3 < len(words)


def _telling(words: Sequence[str]) -> Iterator[str]:
    return (stem(word) for word in words if word not in SAYS_LITTLE)
