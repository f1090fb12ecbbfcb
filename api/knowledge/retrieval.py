"""Retrieves passages for a question: search by meaning, words and rare terms, mix, filter by relevance, re-rank.

Searches may find chunks that are not in service, of a revision being written or already replaced. They are filtered out
by their documents' current revision.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from api.errors import EmbeddingUnavailable
from api.knowledge.chunking import Span, in_context
from api.knowledge.diversity import diverse
from api.knowledge.expansion import Expansion, expanded, respelled, uncovered
from api.knowledge.plain_text import PAGE
from api.knowledge.quotes import closest
from api.knowledge.ranking import MAX_PASSAGES, Leading, Reranking, leading, mixed, searched_terms
from api.knowledge.repair import with_plain_letters
from api.ports.document_store import Corpus, CurrentDocument, DocumentFilter, Hit, PassageIndex
from api.ports.inference import Embedder
from api.values import EmbedderIdentity, Source, Vector

WIDENINGS: Final = 3
"""Number of times a search is repeated with more candidates if too many results are not in service."""


@dataclass(frozen=True, slots=True)
class RetrievalPolicy:
    """`candidates` per search, `floor` the least cosine of a relevant passage, `neighbours` chunks on either side."""

    candidates: int = 40
    floor: float = 0.25
    neighbours: int = 0


@dataclass(frozen=True, slots=True)
class PassageQuery:
    """The question, and the tenant's documents to search.

    `vector`: the question's, if known. `languages`: those of the tenant's `Corpus`, if known.
    """

    question: str
    tenant: str
    top_k: int
    documents: DocumentFilter = field(default_factory=DocumentFilter)
    vector: Vector | None = None
    languages: Sequence[str] | None = None

    def plain(self) -> PassageQuery:
        """The same with full-width letters, ligatures and the like replaced, as in the documents."""
        return replace(self, question=with_plain_letters(self.question))


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The passages, best first. `complete` is false if the embedder failed, or if the search was incomplete."""

    sources: tuple[Source, ...] = ()
    complete: bool = True


class ChunkPosition(NamedTuple):
    """Identifies a chunk, whichever search found it."""

    document: str
    revision: int
    number: int
    embedder: str


Scored: TypeAlias = list[tuple[ChunkPosition, float]]
"""Passages with their scores, best first."""


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Chunks in service, best first, and their documents. `frequent`: terms of the question that are not rare.

    `expansion`: what else was searched for. `complete`: the search was complete.
    """

    hits: Mapping[ChunkPosition, Hit]
    current: Mapping[str, CurrentDocument]
    frequent: frozenset[str]
    expansion: Expansion
    complete: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """Relevant passages, best first, with their cosine; 0 if the question has no vector.

    `complete`: see `Retrieved`. `rare`: those that a rare term of the question leads to.
    """

    scored: Scored
    hits: Mapping[ChunkPosition, Hit]
    current: Mapping[str, CurrentDocument]
    complete: bool
    rare: Leading[ChunkPosition]

    def diverse(self, scored: Scored, count: int) -> Scored:
        """The best `count`, without near-copies. Passages to which a rare term leads keep their places."""
        led = {*self.rare.by_code, *self.rare.by_name}
        lead = next((at for at, (place, _) in enumerate(scored) if place not in led and at > 0), len(scored))
        vectors: dict[ChunkPosition, NDArray[np.float32]] = {}

        def vector(place: ChunkPosition) -> NDArray[np.float32]:
            if place not in vectors:
                vectors[place] = np.frombuffer(self.hits[place].vector or b"", dtype="<f4")
            return vectors[place]

        def resemblance(one: ChunkPosition, other: ChunkPosition) -> float:
            own, its = vector(one), vector(other)
            return float(own @ its) if own.shape == its.shape else 0.0

        return diverse(scored, count, lambda place: self.hits[place].text, resemblance, lead)

    def texts(self, places: Sequence[ChunkPosition]) -> list[str]:
        """The texts for the re-ranker."""
        texts = _texts_of({place: self.hits[place] for place in places}, self.current)
        return [texts[place] for place in places]


class Retriever:
    """One worker's retrieval. `reranking` is None without a re-ranker."""

    def __init__(
        self, index: PassageIndex, embedder: Embedder, reranking: Reranking | None, policy: RetrievalPolicy
    ) -> None:
        self.corpus: Callable[[str], Awaitable[Corpus]] = index.corpus
        """Returns the number of passages that a tenant can find. Raises `StoreUnavailable`."""
        self._index = index
        self._embedder = embedder
        self._reranking = reranking
        self.policy = policy

    @property
    def reranking_scope(self) -> str:
        """The re-ranker that the order depends on, as `Reranking.scope`; empty without one."""
        return self._reranking.scope if self._reranking is not None else ""

    async def retrieve(self, wanted: PassageQuery) -> Retrieved:
        """Raises `StoreUnavailable`, and `EmbeddingUnavailable` while the embedder's identity is unknown."""
        wanted = wanted.plain()
        found = await self._found(wanted)
        best = self._best(found, await self._reranked(wanted, found), wanted.top_k)
        texts = await self._texts([found.hits[place] for place, _ in best])
        sources = (
            _source(wanted.question, found.hits[place], found.current[place.document], score, text)
            for (place, score), text in zip(best, texts, strict=True)
        )
        return Retrieved(tuple(sources), found.complete)

    async def would_change(self, wanted: PassageQuery, document: str) -> bool:
        """Returns whether a document changes a question's result: it is found, or it displaces a re-ranked passage.

        True as well if that cannot be determined now. Raises as `retrieve` does.
        """
        wanted = wanted.plain()
        found = await self._found(wanted)
        if not found.complete:
            return True
        others = [one for one in found.scored if one[0].document != document]
        if self._reranking is None:
            return self._best(found, found.scored, wanted.top_k) != self._best(found, others, wanted.top_k)
        reads = self._reranking.reads(wanted.top_k)
        read, without = ([place for place, _ in some[:reads]] for some in (found.scored, others))
        if read == without:
            return False
        either = list(dict.fromkeys([*read, *without]))
        scores = await self._reranking.scores_in_background(wanted.question, found.texts(either))
        if scores is None:
            return True
        judged = dict(zip(either, scores, strict=True))
        best, best_without = (
            self._best(found, _by_worth([(place, judged[place]) for place in some]), wanted.top_k)
            for some in (read, without)
        )
        return best != best_without

    async def _found(self, wanted: PassageQuery) -> _Found:
        identity = await self._embedder.identity()
        is_built = await self._index.is_complete(identity)  # first: the index may be completed during the search
        if wanted.vector is None and wanted.languages is None:
            vector, languages = await asyncio.gather(self._vector(wanted), self._languages(wanted))
        else:
            vector, languages = await self._vector(wanted), await self._languages(wanted)
        found = await self._candidates(identity, wanted, vector, languages)
        texts, further = _texts_of(found.hits, found.current), found.expansion
        question, words = respelled(wanted.question, further.misspelled, texts.values())
        rare = leading(question, texts, found.frequent, (*further.phrases, *words))
        cosines = _cosines(found.hits, vector, identity)
        scored = [(place, cosines.get(place, 0.0)) for place in rare.order(list(found.hits))]
        relevant = [one for one in scored if vector is None or one[1] >= self.policy.floor or one[0] in rare]
        known = [place for place, _ in relevant]
        more = uncovered(question, known, texts, wanted.top_k, MAX_PASSAGES)
        if more:  # second, as the first passage is the best for the whole question
            known = list(dict.fromkeys([*known[:1], *more, *known]))
            relevant = [(place, cosines.get(place, 0.0)) for place in known]
        complete = found.complete and is_built and vector is not None
        return _Found(relevant, found.hits, found.current, complete, rare)

    async def _vector(self, wanted: PassageQuery) -> Vector | None:
        if wanted.vector is not None:
            return wanted.vector
        try:
            (embedding,) = await self._embedder.embed([wanted.question], tenant=wanted.tenant)
            return embedding.vector
        except EmbeddingUnavailable:
            return None

    async def _languages(self, wanted: PassageQuery) -> Sequence[str]:
        known = wanted.languages
        return (await self._index.corpus(wanted.tenant)).languages if known is None else known

    async def _candidates(
        self, identity: EmbedderIdentity, wanted: PassageQuery, vector: Vector | None, languages: Sequence[str]
    ) -> _Candidates:
        count = max(self.policy.candidates, wanted.top_k)
        among, terms = (wanted.tenant, wanted.documents), searched_terms(wanted.question)
        for _ in range(WIDENINGS):
            found = await self._index.search(identity, *among, wanted.question, vector, count, terms, languages)
            # Chunks of another embedder that this one lacks, which only words can find.
            others = [] if found.other is None else [found.other]
            asked = (*among, wanted.question, count)
            behind = [await self._index.search_words(one, *asked, languages=languages) for one in others]
            further = expanded(wanted.question, found.absent, (hit.text for hit in (*found.words, *found.meaning)))
            words = found.words
            if further:
                own, more = identity.fingerprint, (further.misspelled, further.phrases)
                words = await self._index.search_words(own, *asked, *more, languages)
            rankings = [found.meaning, words, *behind]
            current = await self._current([*rankings, found.rare], wanted.tenant)
            meaning, worded, *older = _serving(rankings, current, identity)
            (rare,) = _serving([found.rare], current, identity)
            is_full = any(len(ranking) >= count for ranking in rankings)
            if not is_full or all(len(ranking) >= wanted.top_k for ranking in (meaning, worded, *older) if ranking):
                break
            count *= 4
        hits = {_place(hit): hit for hit in chain(rare, *reversed(older), worded, meaning)}
        order = mixed(
            _own_cosines(meaning, hits, vector, identity), [_word_scores(ranking) for ranking in (worded, *older, rare)]
        )
        documents = {document: one for (document, _), one in current.items()}
        ordered = {place: hits[place] for place in order}
        return _Candidates(ordered, documents, found.frequent, further, found.complete)

    async def _current(self, rankings: Sequence[Sequence[Hit]], tenant: str) -> dict[tuple[str, str], CurrentDocument]:
        """The tenant's documents in service, by id and embedder of their chunks."""
        found: dict[tuple[str, str], CurrentDocument] = {}
        for embedder in dict.fromkeys(hit.embedder for hit in chain(*rankings)):
            documents = dict.fromkeys(hit.document for hit in chain(*rankings) if hit.embedder == embedder)
            for document, current in (await self._index.current(list(documents), embedder)).items():
                if current.facts.tenant == tenant:
                    found[document, embedder] = current
        return found

    async def _reranked(self, wanted: PassageQuery, found: _Found) -> Scored:
        """Returns the passages in the cross-encoder's order; without one, or if it fails, in the given order."""
        if self._reranking is None or not found.scored:
            return found.scored
        read = [place for place, _ in found.scored[: self._reranking.reads(wanted.top_k)]]
        scores = await self._reranking.scores(wanted.question, found.texts(read))
        return found.scored if scores is None else _by_worth(list(zip(read, scores, strict=True)))

    def _best(self, found: _Found, scored: Scored, count: int) -> Scored:
        """The first `count` that say something new, without those contained in a better one's neighbours."""
        if not self.policy.neighbours:
            return found.diverse(scored, count)
        apart: Scored = []
        for place, score in scored:
            if not any(self._contains(found.hits[other], found.hits[place]) for other, _ in apart):
                apart.append((place, score))
        return found.diverse(apart, count)

    def _contains(self, one: Hit, other: Hit) -> bool:
        """Returns whether the passage is one of the neighbours that are shown with the other."""
        return (
            self.policy.neighbours > 0
            and _place(one)._replace(number=0) == _place(other)._replace(number=0)
            and one.reach[0] <= other.span[0]
            and other.span[1] <= one.reach[1]
        )

    async def _texts(self, hits: Sequence[Hit]) -> list[str]:
        """Each passage with its neighbours, if any are configured."""
        if not self.policy.neighbours:
            return [hit.text for hit in hits]
        found = await self._index.texts([(hit.document, hit.revision, hit.reach) for hit in hits])
        texts = [text and text.replace(PAGE, "\n") for text in found]
        return [hit.text if text is None else text for hit, text in zip(hits, texts, strict=True)]


def _texts_of(hits: Mapping[ChunkPosition, Hit], current: Mapping[str, CurrentDocument]) -> dict[ChunkPosition, str]:
    """Each passage with its title and headings."""
    return {place: in_context(current[hit.document].facts.title, hit.heading, hit.text) for place, hit in hits.items()}


def _by_worth(scored: Scored) -> Scored:
    """Equals keep retrieval's order."""
    return sorted(scored, key=lambda one: -one[1])


def _place(hit: Hit) -> ChunkPosition:
    return ChunkPosition(hit.document, hit.revision, hit.number, hit.embedder)


def _serves(hit: Hit, current: Mapping[tuple[str, str], CurrentDocument], identity: EmbedderIdentity) -> bool:
    """A document that the current embedder has embedded is found in that index only."""
    found = current.get((hit.document, hit.embedder))
    if found is None or found.revision != hit.revision:
        return False
    return hit.embedder == identity.fingerprint or (hit.document, identity.fingerprint) not in current


def _serving(
    rankings: Sequence[Sequence[Hit]], current: Mapping[tuple[str, str], CurrentDocument], identity: EmbedderIdentity
) -> list[list[Hit]]:
    return [[hit for hit in ranking if _serves(hit, current, identity)] for ranking in rankings]


def _word_scores(ranking: Sequence[Hit]) -> list[tuple[ChunkPosition, float]]:
    return [(_place(hit), hit.score) for hit in ranking]


def _own_cosines(
    meaning: Sequence[Hit], hits: Mapping[ChunkPosition, Hit], vector: Vector | None, identity: EmbedderIdentity
) -> dict[ChunkPosition, float]:
    """The cosines of all chunks of this embedder that have a vector, those found by meaning first."""
    asked = np.frombuffer(vector or b"", dtype="<f4")
    cosines = {}
    for place in dict.fromkeys([*map(_place, meaning), *hits]):
        own = np.frombuffer(hits[place].vector or b"", dtype="<f4")
        if vector is not None and place.embedder == identity.fingerprint and own.shape == asked.shape:
            cosines[place] = float(own @ asked)
    return cosines


def _cosines(
    hits: Mapping[ChunkPosition, Hit], vector: Vector | None, identity: EmbedderIdentity
) -> dict[ChunkPosition, float]:
    """Each passage's cosine to the question. One that only words can find counts as relevant."""
    found = _own_cosines((), hits, vector, identity)
    return {place: found.get(place, 1.0) for place in hits} if vector is not None else {}


def _source(question: str, hit: Hit, current: CurrentDocument, score: float, text: str) -> Source:
    facts = current.facts
    return Source(
        document_id=hit.document,
        title=facts.title,
        chunk=hit.number,
        text=text,
        score=round(score, 6),
        source=facts.source,
        version=facts.version,
        revision=hit.revision,
        page=hit.page,
        heading=hit.heading or None,
        span=hit.characters if text == hit.text else _wider(hit, text),
        quote=closest(question, text),
    )


def _wider(hit: Hit, text: str) -> Span | None:
    """The characters of a passage with its neighbours."""
    if hit.characters is None:
        return None
    before = text.encode()[: hit.span[0] - hit.reach[0]].decode("utf-8", "ignore")
    start = hit.characters[0] - len(before)
    return start, start + len(text)
