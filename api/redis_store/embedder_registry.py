"""What the fleet last knew of its embedder, for a worker that starts while Ollama is down."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from api.model import EmbedderIdentity
from api.redis_store.gate import RedisGate
from api.redis_store.keys import Keys

LIFETIME_MS: Final = 30 * 24 * 3600 * 1000


class EmbedderRegistry:
    """`rag:embedder:<model>`. Raises `StoreUnavailable`."""

    def __init__(self, gate: RedisGate, keys: Keys) -> None:
        self._gate = gate
        self._keys = keys

    async def recall(self, model: str) -> EmbedderIdentity | None:
        """The identity last written for `model`, if any."""
        fields: dict[Any, Any] = await self._gate.run(
            "recall_embedder", lambda client: client.hgetall(self._keys.embedder(model))
        )
        text = {name.decode(): value.decode() for name, value in fields.items()}
        if not {"name", "dimension", "fingerprint"} <= text.keys():
            return None
        return EmbedderIdentity(text["name"], int(text["dimension"]), text["fingerprint"])

    async def remember(self, model: str, identity: EmbedderIdentity) -> None:
        """Writes what `model` is."""
        key = self._keys.embedder(model)

        async def write(client: Any) -> None:
            async with client.pipeline(transaction=True) as pipe:
                pipe.hset(key, mapping=asdict(identity))
                pipe.pexpire(key, LIFETIME_MS)
                await pipe.execute()

        await self._gate.run("remember_embedder", write)
