"""Ranks passages: reciprocal rank fusion, passages with rare terms first, and re-ranking by a cross-encoder.

Weighted reciprocal rank fusion after Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and
individual Rank Learning Methods" (SIGIR 2009): a passage scores the sum of weight / (K + its rank) over the rankings
that contain it.

An embedder can hardly tell `7Q-4821` from `7Q-4812`, and rank fusion outweighs the one passage that has the code. So a
passage with a rare code comes first. One with a rare name comes second: the passage that explains an acronym often does
not contain it.

A term is rare if few of the passages found contain it. The search by words ranks a passage with a rare word first, so
if few passages have the word, all of them are among those found.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from api.errors import RerankingUnavailable
from api.ports.inference import Reranker
from api.ports.telemetry import Telemetry

Thing = TypeVar("Thing", bound=Hashable)

K: Final = 5
"""The paper's 60 lets presence in both rankings count for more than first place in one, which is wrong if one is
better."""
MEANING: Final = 1.0
WORDS: Final = 0.4
"""The weights of the rankings by meaning and by words. `scripts/bench_retrieval.py` measures them. K and these are the
best on its even questions; on its odd ones the fused order is then the best in every column too. Above 0.5, words do
more harm than good for documents that do not share the question's words."""


def fused(rankings: Iterable[tuple[float, Sequence[Thing]]], k: int = K) -> list[Thing]:
    """Everything that any ranking has, best first. Of equals, the one that an earlier ranking names first."""
    worth: defaultdict[Thing, float] = defaultdict(float)
    for weight, ranking in rankings:
        for rank, thing in enumerate(ranking, start=1):
            worth[thing] += weight / (k + rank)
    return sorted(worth, key=lambda thing: -worth[thing])


MAX_PASSAGES: Final = 3
"""A rare term is in at most this many passages."""
MAX_TERMS: Final = 32
"""Terms of a question that are checked: as many as the search by words uses."""
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

_TERM: Final = re.compile(r"[^\W_]+(?:[-./_:][^\W_]+)*")
"""A word, a number, or parts joined by signs, as in `QZ-1108`, `99.5`, `node_exporter`."""


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

    def __contains__(self, place: object) -> bool:
        """Returns whether a passage is relevant whatever its cosine."""
        return place in self.by_code or place in self.by_name

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


def leading(question: str, passages: Mapping[Place, str]) -> Leading[Place]:
    """Returns the positions of the passages that contain a rare term of the question."""
    terms = distinctive_terms(question)
    if not (terms.codes or terms.names):
        return Leading()
    holders = _holders({*terms.codes, *terms.names}, passages)
    return Leading(_rarest(terms.codes, holders), _rarest(terms.names, holders))


def _rarest(terms: Sequence[str], holders: Mapping[str, Sequence[Place]]) -> list[Place]:
    worth: dict[Place, float] = {}
    for places in (holders[term] for term in terms):
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
    return {*whole, *(part for term in whole if len(term) > 2 for part in re.split(r"[-./_:]", term))}


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
