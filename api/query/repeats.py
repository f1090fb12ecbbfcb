"""A question that the cache answered before: what was decided about it then is not decided again.

The first answer shows which entry it came from. While this entry is unchanged, and nothing else that the decision
depended on has changed, a repeat needs only that entry:

- The question's exact entry answers it: from this worker's copies, else from Redis. Any worker may have stored it.
- A similar question's entry answers it if the guards agreed to it before. Each repeat reads it again, together with the
  own entry: an entry that was deleted, replaced or has expired, or an answer to the question itself, ends the reliance.
  So does a new epoch of what the fleet has learned.

Everything else is decided in full: follow-ups that are rewritten, experiments, policies that weigh each case, answers
with passages that must be compared, and objections of guards. A nearer entry that was stored meanwhile is found when
the repeat is forgotten, after seconds.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from api.ports.answer_cache import AnswerCache
from api.ports.limits import Charge
from api.ports.question import Query, Timings
from api.values import CachedAnswer, CacheMatch, Vector

if TYPE_CHECKING:
    from api.quality.keeper import QualityView
    from api.quality.policies import Published
    from api.query.cache_key import CacheKey, CacheKeyBuilder, KeyFacts

LONGEST_ANSWER: Final = 16 * 1024
"""Characters of a similar question's answer that a repeat may rely on."""


class Agreed(NamedTuple):
    """The entry that answered a question by meaning, without any objection, and what the fleet had learned then."""

    match: CacheMatch
    vector: Vector
    unread: tuple[str, ...]
    published: Published


class Repeat:
    """A question that was answered. `agreed` is None unless a similar one's entry answered it."""

    __slots__ = ("agreed", "entry", "facts", "key", "query")

    def __init__(self, query: Query, agreed: Agreed | None = None) -> None:
        self.query = query
        self.agreed = agreed
        self.key: CacheKey | None = None
        self.entry = ""
        """The key of the question's own entry."""
        self.facts: KeyFacts | None = None
        """What the key was built from, besides the query."""


class Found(NamedTuple):
    """A fresh entry that answers a repeat."""

    key: CacheKey
    match: CacheMatch
    agreed: Agreed | None = None


class RepeatedLookups:
    """One worker's look-ups for questions that it has answered before."""

    def __init__(self, cache: AnswerCache, keys: CacheKeyBuilder, quality: QualityView) -> None:
        self._cache = cache
        self._keys = keys
        self._quality = quality

    def near(self, repeat: Repeat) -> Found | None:
        """Returns this worker's copy of the question's own entry. No I/O."""
        key = self._key(repeat)
        match = self._cache.find_near(repeat.entry) if key is not None else None
        return Found(key, match) if key is not None and match is not None else None

    async def read(self, repeat: Repeat, timings: Timings, charge: Charge | None = None) -> Found | None:
        """Reads the entries from Redis, in a round trip that other requests may share. Raises `StoreUnavailable`.

        `charge`: one to send along. It gets its decision.
        """
        key, agreed = self._key(repeat), repeat.agreed
        if key is None:
            return None
        if agreed is not None and agreed.published is not self._quality.published:
            agreed = repeat.agreed = None
        entries = [repeat.entry] if agreed is None else [repeat.entry, agreed.match.answer.entry]
        started = time.perf_counter()
        try:
            now_ms, answers = await self._cache.reread(key.scope, entries, charge)
        finally:
            timings.cache += time.perf_counter() - started
        match = _match(now_ms, answers, agreed)
        return Found(key, match, agreed if answers[0] is None else None) if match and match.is_fresh else None

    def _key(self, repeat: Repeat) -> CacheKey | None:
        """Returns the key of the own entry; None while the embedder is unknown."""
        facts = self._keys.facts(repeat.query)
        if facts != repeat.facts:
            repeat.key, repeat.facts = self._keys.known(repeat.query), facts
            repeat.entry = "" if repeat.key is None else self._cache.entry(repeat.key.scope, repeat.key.digest)
        return repeat.key


def _match(now_ms: int, answers: list[CachedAnswer | None], agreed: Agreed | None) -> CacheMatch | None:
    own = answers[0]
    if own is not None:
        return CacheMatch(own, "exact", 1.0, now_ms)
    if agreed is None or answers[1] != agreed.match.answer:
        return None
    return CacheMatch(agreed.match.answer, "semantic", agreed.match.similarity, now_ms)
