"""What the fleet last knew of its embedder, for a worker that starts while Ollama is down."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from api.errors import StoreUnavailable
from api.model import EmbedderIdentity
from api.redis_store.gate import Gates
from api.redis_store.keys import Keys

LIFETIME_MS: Final = 30 * 24 * 3600 * 1000


class EmbedderRegistry:
    """`rag:embedder:<model>`. With Redis down nothing is known, and nothing is kept."""

    def __init__(self, gate: Gates, keys: Keys, model: str) -> None:
        self._key = keys.embedder(model)
        self._gate = gate.of(self._key)

    async def recall(self) -> EmbedderIdentity | None:
        """The identity last written, if any."""
        try:
            fields: dict[Any, Any] = await self._gate.run("recall_embedder", lambda client: client.hgetall(self._key))
        except StoreUnavailable:
            return None
        text = {name.decode(): value.decode() for name, value in fields.items()}
        if not {"name", "dimension", "fingerprint"} <= text.keys():
            return None
        return EmbedderIdentity(text["name"], int(text["dimension"]), text["fingerprint"])

    async def remember(self, identity: EmbedderIdentity) -> None:
        """Writes what the model is."""

        async def write(client: Any) -> None:
            async with client.pipeline(transaction=True) as pipe:
                pipe.hset(self._key, mapping=asdict(identity))
                pipe.pexpire(self._key, LIFETIME_MS)
                await pipe.execute()

        with suppress(StoreUnavailable):
            await self._gate.run("remember_embedder", write)
