"""Where the answer to a question is kept: the scope of everything that it depends on."""

from __future__ import annotations

from api.ports.models import Embedder, ModelDigests
from api.query.fingerprint import Fingerprint, fingerprint
from api.query.question import Query


class Places:
    """For one worker. `grounding`: how its answers are grounded in documents, in a word that others share."""

    def __init__(self, embedder: Embedder, digests: ModelDigests, grounding: str = "") -> None:
        self._embedder = embedder
        self._digests = digests
        self._grounding = grounding

    async def of(self, query: Query) -> Fingerprint:
        """Raises `EmbeddingUnavailable` while it is not known who embeds."""
        identity = self._embedder.current.value or await self._embedder.identity()
        return fingerprint(query, identity, self._digests.digest(query.model), self._grounding)
