"""The round trips to Redis that a question waits for. One more must be a decision, not an oversight."""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.round_trips import round_trips
from tests.support.service import Service, ask

AWAITED = ("answers.find", "FT.SEARCH", "flights.join", "HMGET", "bulkhead.take", "answers.store")
"""The commands of a question. Others are sent in the background."""


def awaited(written: Sequence[str]) -> list[str]:
    return [commands for commands in written if commands.startswith(AWAITED)]


async def test_a_miss_reads_the_documents_with_the_look_up(serve: Service) -> None:
    client = await serve()
    await ask(client, "What is the capital of France?")  # loads the scripts
    with round_trips() as written:
        answered = await ask(client, "How tall is Mont Blanc?")
    assert answered["cache"]["status"] == "miss"
    of_embedding, of_model = "bulkhead.take", "bulkhead.take"
    steps = ["answers.find", of_embedding, "FT.SEARCH", "flights.join", of_model, "answers.store"]
    assert awaited(written) == steps
