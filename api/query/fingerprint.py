"""What an answer depends on: requests that could have different right answers never share a scope."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import orjson

from api.model import EmbedderIdentity
from api.query.normalise import normalise
from api.query.question import Query


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Where the answer to a question is kept: `rag:cache:<scope>:<digest>`.

    `scope` is the embedder's fingerprint and 24 hex digits over everything but the question that the answer depends
    on; `digest` is 32 hex digits over the normalised question.
    """

    embedder: EmbedderIdentity
    scope: str
    digest: str


def fingerprint(query: Query, embedder: EmbedderIdentity) -> Fingerprint:
    """The place of the answer to `query` among those embedded by `embedder`."""
    facts = [
        query.tenant,
        query.model,
        query.template,
        query.system,
        query.top_k,
        query.options,
        [(turn.role, turn.content) for turn in query.history],
    ]
    scope = hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:24]
    question = normalise(query.question).encode("utf-8", "surrogatepass")
    return Fingerprint(embedder, f"{embedder.fingerprint}-{scope}", hashlib.sha256(question).hexdigest()[:32])
