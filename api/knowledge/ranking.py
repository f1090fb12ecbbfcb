"""Ranks passages: a mix of meaning and words, passages with rare terms first, and re-ranking by a cross-encoder.

The mix is a convex combination of normalized scores, after Bruch, Gai and Ingber, "An Analysis of Fusion Functions for
Hybrid Retrieval" (TOIS 2023): ranks alone hide how much better the first passage is. A passage scores its cosine plus
`WORDS` times its share of the best BM25 score, squared, so that only matches near the best one count. If even the best
match is weak, such as one common word, words count less.

An embedder can hardly tell `7Q-4821` from `7Q-4812`. So a passage with a rare code comes first. One with a rare name
comes second: the passage that explains an acronym often does not contain it. Other uncommon words only make a passage
relevant.

A term is rare if at most `MAX_PASSAGES` of the tenant's passages contain it. The search counts them (see
`PassageIndex.search`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from api.errors import RerankingUnavailable
from api.languages.function_words import BY_WORD
from api.languages.identify import is_common_english
from api.ports.inference import Reranker
from api.ports.telemetry import Telemetry

Thing = TypeVar("Thing", bound=Hashable)

WORDS: Final = 0.1
"""The most that words add to a cosine. `scripts/bench_retrieval.py` measures it. This and `WEAK` are the best on its
even questions. On its odd ones the mix beats both rankings too, but for recall@1 in one corpus, which is 0.002 lower.
Above it, words do more harm than good for documents that do not share the question's words."""
WEAK: Final = 10.0
"""The best BM25 score at which words count half."""
SMALL: Final = 40
"""With fewer passages the search has found all of a small corpus, in which even good matches have low BM25 scores."""
FEW: Final = 10
"""From this many passages on, the spread of their cosines shows how far apart the embedder's cosines are."""


def mixed(cosines: Mapping[Thing, float], words: Sequence[Sequence[tuple[Thing, float]]]) -> list[Thing]:
    """Everything that any search found, best first. Of equals, the one that comes first in `cosines`, then in `words`.

    `words`: rankings with their BM25 scores. A passage without a cosine gets one between the lowest and the highest, by
    its share of the best BM25 score.
    """
    weak = WEAK if len(cosines) >= SMALL else 0.0
    high, low = max(cosines.values(), default=0.0), min(cosines.values(), default=0.0)
    most = min(WORDS, high - low) if len(cosines) >= FEW else WORDS
    worth = dict(cosines)
    for ranking in words:
        best = max((score for _, score in ranking), default=0.0)
        # BM25 scores of another index cannot be compared: even a low one may be a strong match.
        is_own = any(thing in cosines for thing, _ in ranking)
        strength = most * best / (best + weak) if is_own and best > 0 else most
        for thing, score in ranking:
            share = score / best if best > 0 else 0.0
            meaning = cosines.get(thing, low + (high - low) * share)
            worth[thing] = max(worth.get(thing, meaning), meaning + strength * share**2)
    return sorted(worth, key=lambda thing: -worth[thing])


MAX_PASSAGES: Final = 3
"""A rare term is in at most this many passages."""
MAX_TERMS: Final = 32
"""Terms of a question that are checked: as many as the search by words uses."""
MAX_SEARCHED: Final = 8
"""Terms of a question that are searched for one by one."""
MIN_WORD: Final = 3
"""Uncommon words are longer than this."""
LONGEST_TEXT: Final = 20_000
"""Characters of a passage that are checked."""
# fmt: off
QUESTION_WORDS: Final = frozenset({
    "what", "who", "whom", "whose", "which", "when", "where", "why", "how", "do", "does", "did", "is", "are",
    "was", "were", "can", "could", "will", "would", "shall", "should", "may", "might", "must", "has", "have",
    "had", "i",
})
"""Not names, though they are capitalized at the start of a question within a text."""
# fmt: on

Place = TypeVar("Place", bound=Hashable)

_TERM: Final = re.compile(r"[^\W_]+(?:(?:[-./_:]|(?<=\d),(?=\d))[^\W_]+)*")
"""A word, a number, or parts joined by signs, as in `QZ-1108`, `99.5`, `1,000`, `node_exporter`."""


@dataclass(frozen=True, slots=True)
class DistinctiveTerms:
    """Terms that name one thing, case-folded."""

    codes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Leading(Generic[Place]):
    """Positions of passages with a rare term of the question, the rarest first; equals keep their order."""

    by_code: Sequence[Place] = ()
    by_name: Sequence[Place] = ()
    by_word: Sequence[Place] = ()
    """Passages with a rare uncommon word. They are relevant, but do not lead."""

    def __contains__(self, place: object) -> bool:
        """Returns whether a passage is relevant whatever its cosine."""
        return place in self.by_code or place in self.by_name or place in self.by_word

    def order(self, places: Sequence[Place]) -> list[Place]:
        """`places` with rare codes first and rare names second."""
        others = list(dict.fromkeys([*self.by_code, *places]))
        return list(dict.fromkeys([*others[:1], *self.by_code, *self.by_name, *others]))


def distinctive_terms(question: str) -> DistinctiveTerms:
    """Codes and numbers of two or more characters, and names.

    A name is capitalized and does not begin the question; if most terms are capitalized, that says nothing. A question
    of a single term asks for that term.
    """
    found = _TERM.findall(question)[:MAX_TERMS]
    codes = [term for term in found if len(term) > 1 and (len(found) == 1 or _is_code(term))]
    others = found[1:]
    capitals = [term for term in others if term[0].isupper()]
    names = [term for term in capitals if 2 * len(capitals) <= len(others) and len(term) > 1 and term not in codes]
    return DistinctiveTerms(_folded(codes), tuple(term for term in _folded(names) if term not in QUESTION_WORDS))


def _is_code(term: str) -> bool:
    return any(map(str.isdigit, term)) or any(sign in term for sign in "_:/")


def _folded(terms: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(str.casefold, terms)))


def uncommon_words(question: str) -> tuple[str, ...]:
    """Words that are neither common English nor function words, case-folded. In other languages that is most words."""
    words = [term for term in _TERM.findall(question)[:MAX_TERMS] if term.isalpha() and len(term) > MIN_WORD]
    return tuple(word for word in _folded(words) if not (is_common_english(word) or word in BY_WORD))


def searched_terms(question: str) -> tuple[str, ...]:
    """The terms to search for one by one, as they may be rare: codes first, then names, then other uncommon words."""
    terms = distinctive_terms(question)
    return tuple(dict.fromkeys([*terms.codes, *terms.names, *uncommon_words(question)]))[:MAX_SEARCHED]


def leading(
    question: str, passages: Mapping[Place, str], frequent: Collection[str] = (), phrases: Collection[str] = ()
) -> Leading[Place]:
    """Returns the positions of the passages that contain a rare term of the question.

    `frequent`: terms known to be in too many passages, though few of `passages` may have them. `phrases`: case-folded
    ones that the question asks for in other words.
    """
    terms, words = distinctive_terms(question), uncommon_words(question)
    wanted = {*terms.codes, *terms.names, *words}.difference(frequent)
    if not (wanted or phrases):
        return Leading()
    holders = _holders(wanted, passages)
    holders |= {
        phrase: [place for place, text in passages.items() if phrase in text[:LONGEST_TEXT].casefold()]
        for phrase in phrases
    }
    by_code, by_name, by_word = (_rarest(some, holders) for some in (terms.codes, terms.names, [*words, *phrases]))
    return Leading(by_code, by_name, by_word)


def _rarest(terms: Sequence[str], holders: Mapping[str, Sequence[Place]]) -> list[Place]:
    worth: dict[Place, float] = {}
    for places in (holders[term] for term in terms if term in holders):
        if len(places) <= MAX_PASSAGES:
            for place in places:
                worth[place] = worth.get(place, 0.0) + 1 / len(places)
    return sorted(worth, key=lambda place: -worth[place])


def _holders(wanted: set[str], passages: Mapping[Place, str]) -> dict[str, list[Place]]:
    """Returns the passages that have each term, as a whole term or as a part; only some for terms that are not rare.

    Most passages have none, so a text is tokenized only if it contains a term that may still be rare.
    """
    holders: dict[str, list[Place]] = {term: [] for term in wanted}
    for place, text in passages.items():
        folded = text[:LONGEST_TEXT].casefold()
        possible = [term for term, places in holders.items() if len(places) <= MAX_PASSAGES and term in folded]
        for term in _terms_of(folded).intersection(possible) if possible else ():
            holders[term].append(place)
    return holders


def _terms_of(folded: str) -> set[str]:
    whole = _TERM.findall(folded)
    return {*whole, *(part for term in whole if len(term) > 2 for part in re.split(r"[-./_:,]", term))}


class Reranking:
    """One worker's re-ranking. `most`: passages read per question; more only if more are requested."""

    def __init__(self, reranker: Reranker, most: int, telemetry: Telemetry) -> None:
        self._reranker = reranker
        self._most = most
        self._telemetry = telemetry

    @property
    def scope(self) -> str:
        """The re-ranker's settings as a string. Answers under other scopes are not shared."""
        return f"{self._reranker.fingerprint}/{self._most}"

    def reads(self, top_k: int) -> int:
        """Returns the number of passages to re-rank, the first by retrieval. The others cannot be sources."""
        return max(self._most, top_k)

    async def scores(self, question: str, texts: Sequence[str]) -> list[float] | None:
        """Returns the relevance of each text, 0 to 1, in order; None if the re-ranker fails."""
        began = time.perf_counter()
        try:
            found = await self._reranker.scores(question, texts)
        except RerankingUnavailable as error:
            self._telemetry.reranking_failed(error, time.perf_counter() - began)
            return None
        self._telemetry.reranked(time.perf_counter() - began)
        return found

    async def scores_in_background(self, question: str, texts: Sequence[str]) -> list[float] | None:
        """Returns the same scores, but queues behind users."""
        try:
            return await self._reranker.scores(question, texts, background=True)
        except RerankingUnavailable:
            return None
