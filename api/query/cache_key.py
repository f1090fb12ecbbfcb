"""When two questions are the same to the letter, apart from how they were typed.

What an answer depends on: requests that could have different right answers never share a scope.

Where the answer to a question is kept: the scope of everything that it depends on.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Final

import orjson

from api.guards.letter_case import fold
from api.ports.inference import Embedder, ModelDigests
from api.ports.question import RAW, Query
from api.unicode_text import nfc
from api.values import EmbedderIdentity, model_key

LONGEST: Final = 8_192
"""Characters of the longest text that is normalised. Longer ones are prompts that programs write, and always alike."""

MEANINGFUL: Final = ("<super>", "<sub>", "<fraction>", "<circle>")
"""Compatibility forms that say something: 2² is not 22."""

INVISIBLE: Final = dict.fromkeys(
    map(ord, "\u00ad\u200b\u200e\u200f\u2060\ufeff\ufe0e\ufe0f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
)
"""Soft hyphens, zero-width spaces, marks of direction, variation selectors; not the joiners, which change letters."""

FINAL_PUNCTUATION: Final = "?!.…。？！ "

_FACTORIAL: Final = re.compile(r"(?:\d|\b\w)$")


def normalise(question: str) -> str:
    """Unicode NFKC (save for superscripts and their kind), case (save for code, units and their kind: `letter_case`),
    white space, what is invisible, and the punctuation at the end.

    Nothing that can be seen inside the question is dropped, so questions of different meaning stay apart. One of
    which nothing can be seen stays as it is, and so does one of more than `LONGEST` characters.
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
    """5! is not 5, nor is n! n."""
    bare = text.rstrip(FINAL_PUNCTUATION)
    end = text[len(bare) :]
    marks = len(end) - len(end.lstrip("!"))
    return f"{bare}{'!' * marks}" if marks and _FACTORIAL.search(bare) else bare


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Where the answer to a question is kept: `rag:cache:<scope>:<digest>`.

    `scope` is the embedder's fingerprint and 24 hex digits over everything but the question that the answer depends
    on; `digest` is 32 hex digits over the normalised question.
    """

    embedder: EmbedderIdentity
    scope: str
    digest: str


def fingerprint(query: Query, embedder: EmbedderIdentity, model_digest: str, grounding: str = "") -> CacheKey:
    """The place of the answer to `query` among those embedded by `embedder`. `model_digest`: the model's weights.

    `grounding`: the prompt, and how passages are chosen for it.
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
        [(turn.role, turn.content) for turn in query.history] if query.history else (),
    ]
    scope = hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:24]
    return CacheKey(embedder, f"{embedder.fingerprint}-{scope}", question_digest(query.question))


def question_digest(question: str) -> str:
    """The same for all that are the same question, whoever asks."""
    normalised = normalise(question).encode("utf-8", "surrogatepass")
    return hashlib.sha256(normalised).hexdigest()[:32]


class CacheKeyBuilder:
    """For one worker. `grounding`: how its answers are grounded in documents, in a word that others share."""

    def __init__(self, embedder: Embedder, digests: ModelDigests, grounding: str = "") -> None:
        self._embedder = embedder
        self._digests = digests
        self._grounding = grounding

    async def of(self, query: Query) -> CacheKey:
        """Raises `EmbeddingUnavailable` while it is not known who embeds."""
        identity = self._embedder.current.value or await self._embedder.identity()
        digest = self._digests.by_model.get(model_key(query.model), self._digests.unknown)
        return fingerprint(query, identity, digest, self._grounding)
