"""What an answer depends on: requests that could have different right answers never share a scope."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import orjson

from api.model import EmbedderIdentity, model_key
from api.query.normalise import normalise
from api.query.prompt import RAW
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


def fingerprint(query: Query, embedder: EmbedderIdentity, model_digest: str, grounding: str = "") -> Fingerprint:
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
        [(turn.role, turn.content) for turn in query.history],
    ]
    scope = hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:24]
    return Fingerprint(embedder, f"{embedder.fingerprint}-{scope}", question_digest(query.question))


def question_digest(question: str) -> str:
    """The same for all that are the same question, whoever asks."""
    normalised = normalise(question).encode("utf-8", "surrogatepass")
    return hashlib.sha256(normalised).hexdigest()[:32]
