"""Normalizes questions, and builds the scope and digest that form the cache key.

Requests that could have different right answers never share a scope.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import orjson

from api.guards.letter_case import fold
from api.ports.inference import Embedder, ModelDigests
from api.ports.question import RAW, SEMANTIC_LIMIT, Query
from api.unicode_text import nfc
from api.values import ChatMessage, EmbedderIdentity, model_key

LONGEST: Final = 8_192
"""Longest text to normalize, in characters. Longer ones are prompts of programs, which do not vary in typing."""

MEANINGFUL: Final = ("<super>", "<sub>", "<fraction>", "<circle>")
"""Compatibility forms that carry meaning: 2² is not 22."""

INVISIBLE: Final = dict.fromkeys(
    map(ord, "\u00ad\u200b\u200e\u200f\u2060\ufeff\ufe0e\ufe0f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
)
"""Soft hyphens, zero-width spaces, marks of direction, variation selectors; not the joiners, which change letters."""

FINAL_PUNCTUATION: Final = "?!.…。？！ "

_FACTORIAL: Final = re.compile(r"(?:\d|\b\w)$")


def normalise(question: str) -> str:
    """Returns the question in a normal form: Unicode, case, white space, invisible characters, final punctuation.

    NFKC is applied except to superscripts and the like; case is kept in code, units and the like (`letter_case`).
    Nothing visible inside the question is dropped, so questions of different meaning stay apart. A question without
    visible characters stays as it is, and so does one of more than `LONGEST` characters.
    """
    if len(question) > LONGEST:
        return question
    visible = question.translate(INVISIBLE)
    compatible = visible if visible.isascii() else "".join(map(_compatible, nfc(visible)))
    folded = " ".join(fold(compatible).split())
    return _without_end(folded) or folded or question


def _compatible(character: str) -> str:
    if unicodedata.decomposition(character).startswith(MEANINGFUL):
        return character
    return unicodedata.normalize("NFKC", character)


def _without_end(text: str) -> str:
    """Strips the final punctuation, except factorials: 5! is not 5, and n! is not n."""
    bare = text.rstrip(FINAL_PUNCTUATION)
    end = text[len(bare) :]
    marks = len(end) - len(end.lstrip("!"))
    return f"{bare}{'!' * marks}" if marks and _FACTORIAL.search(bare) else bare


@dataclass(frozen=True, slots=True)
class CacheKey:
    """The cache key of a question: `rag:cache:<scope>:<digest>`.

    `scope` is the embedder's fingerprint and 24 hex digits over everything but the question that the answer depends
    on; `digest` is 32 hex digits over the normalized question.
    """

    embedder: EmbedderIdentity
    scope: str
    digest: str


def fingerprint(
    query: Query, embedder: EmbedderIdentity, model_digest: str, grounding: str = "", namespace: str = ""
) -> CacheKey:
    """Returns the cache key of `query` for answers embedded by `embedder`. `model_digest`: the model's weights.

    `grounding`: the prompt, and how passages are chosen for it. `namespace`: keeps the answers of a variant apart.
    """
    facts = [
        query.tenant,
        model_key(query.model),
        model_digest,
        query.template,
        grounding if query.template != RAW else "",
        query.system,
        query.top_k,
        sorted(set(query.documents.tags)),
        sorted(set(query.documents.ids)),
        query.options,
        [(turn.role, _normalised_turn(turn)) for turn in query.history] if query.history else (),
    ]
    if query.forwarded is not None:
        facts.append(query.forwarded.digest)
    if namespace:
        facts.append(namespace)
    scope = hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:24]
    return CacheKey(embedder, f"{embedder.fingerprint}-{scope}", question_digest(query.question))


def _normalised_turn(turn: ChatMessage) -> str:
    """Normalizes an earlier question. Answers, long questions, and questions of several lines stay as they are."""
    text = turn.content
    if turn.role != "user" or len(text) > SEMANTIC_LIMIT or "\n" in text:
        return text
    return normalise(text)


def question_digest(question: str) -> str:
    """Returns the digest of the normalized question, which all users share. Remembers those of short questions."""
    return _remembered(question) if len(question) <= SEMANTIC_LIMIT else _digest(question)


@lru_cache(1024)
def _remembered(question: str) -> str:
    """Normalizing takes longer than all else that a repeated question needs."""
    return _digest(question)


def _digest(question: str) -> str:
    normalised = normalise(question).encode("utf-8", "surrogatepass")
    return hashlib.sha256(normalised).hexdigest()[:32]


KeyFacts = tuple[EmbedderIdentity | None, str]
"""The embedder, if it is known, and the digest of the model's weights."""


class CacheKeyBuilder:
    """Builds cache keys for one worker.

    `grounding`: the scope of the prompt's template, a space, and how passages are chosen for it.
    """

    def __init__(self, embedder: Embedder, digests: ModelDigests, grounding: str = "") -> None:
        self._embedder = embedder
        self._digests = digests
        self._grounding = grounding

    async def of(self, query: Query) -> CacheKey:
        """Returns the cache key of a query. Raises `EmbeddingUnavailable` while the embedder is unknown."""
        return self._of(query, self._embedder.current.value or await self._embedder.identity())

    def known(self, query: Query) -> CacheKey | None:
        """Returns the cache key of a query, or None while the embedder is unknown."""
        identity = self._embedder.current.value
        return None if identity is None else self._of(query, identity)

    def facts(self, query: Query) -> KeyFacts:
        """Returns what the key of a query depends on now, besides the query and the settings."""
        digests = self._digests
        return self._embedder.current.value, digests.by_model.get(model_key(query.model), digests.unknown)

    def _of(self, query: Query, identity: EmbedderIdentity) -> CacheKey:
        digest = self._digests.by_model.get(model_key(query.model), self._digests.unknown)
        variant = query.variant
        if variant is None:
            return fingerprint(query, identity, digest, self._grounding)
        grounding = self._grounding
        if variant.prompt_scope:  # in place of the template's
            grounding = f"{variant.prompt_scope} {grounding.partition(' ')[2]}"
        return fingerprint(query, identity, digest, grounding, variant.namespace)
