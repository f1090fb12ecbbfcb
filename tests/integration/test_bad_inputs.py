"""Random bad requests to all endpoints: none causes a 500 or a traceback in the log.

BAD_INPUTS sets the number of requests, BAD_INPUTS_SEED the seed.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter

import httpx
import pytest

from tests.support.bad_inputs import BadInput, BadInputs
from tests.support.service import Service, ask

MANY = int(os.environ.get("BAD_INPUTS", "2000"))
SEED = int(os.environ.get("BAD_INPUTS_SEED", "1"))
CONCURRENCY = 16
SERVICE_UNAVAILABLE = {502, 503, 504}
"""Not the request's fault, nor the service's: the breaker was forced open, a deadline has passed."""


@pytest.mark.timeout(60 + MANY // 10)
async def test_no_bad_input_is_a_fault_of_the_service(serve: Service, capfd: pytest.CaptureFixture[str]) -> None:
    client = await serve(ollama={"ollama_total_timeout": 5.0}, documents={"ingest_wait": 0.0})
    inputs = BadInputs((await client.get("/openapi.json")).json(), SEED)
    statuses: Counter[int] = Counter()
    waiting = inputs.take(MANY)

    async def send_all() -> None:
        for bad in waiting:
            statuses[await _status(client, bad)] += 1
            if "force-open" in bad.target.decode("latin-1"):
                await client.post("/api/circuit-breaker/reset")

    await asyncio.gather(*(send_all() for _ in range(CONCURRENCY)))
    await client.post("/api/circuit-breaker/reset")
    await ask(client, "Is it still there?")
    log = capfd.readouterr()
    assert sum(statuses.values()) == MANY
    assert {status for status in statuses if status >= 500} <= SERVICE_UNAVAILABLE, statuses
    assert "Traceback" not in log.out + log.err
    assert "unhandled_error" not in log.out + log.err
    with capfd.disabled():
        print(f" {MANY} bad inputs: {dict(sorted(statuses.items()))}")


async def _status(client: httpx.AsyncClient, bad: BadInput) -> int:
    """Fails for an error that is not in JSON, or whose status says that the service is at fault."""
    request = client.build_request(bad.method, "/", headers=bad.headers, content=bad.body)
    request.extensions = {**request.extensions, "target": bad.target}
    response = await client.send(request)
    assert response.status_code < 500 or response.status_code in SERVICE_UNAVAILABLE, (bad, response.text)
    if response.status_code >= 400 and bad.method != "HEAD":
        assert response.headers["content-type"] in {"application/json", "application/problem+json"}, bad
        json.loads(response.content)
    return response.status_code
