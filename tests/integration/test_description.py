"""The example responses in `/docs` have the shape of real ones."""

from __future__ import annotations

from typing import Any

from api.endpoints.description import EXAMPLES
from tests.support.service import Service

BODIES: dict[str, dict[str, Any]] = {
    "/documents": {"json": {"title": "Holiday policy", "text": "Holiday is approved by the team lead."}},
    "/api/semantic-cache/warm": {"json": {"questions": ["What is the capital of France?"]}},
    "/api/keys": {"json": {"tenant": "acme", "requests_per_minute": 60}},
    "/api/semantic-cache": {"params": {"all": "true"}},
}


def shape(value: Any) -> Any:
    """Its names, with those of what it holds; of a list those of the first."""
    if isinstance(value, list):
        return [shape(value[0])] if value and isinstance(value[0], dict) else []
    return {name: shape(held) for name, held in value.items()} if isinstance(value, dict) else None


async def test_every_example_has_the_shape_of_the_response(serve: Service) -> None:
    client = await serve()
    document = (await client.post("/documents", **BODIES["/documents"])).json()["id"]
    await client.post("/api/circuit-breaker/force-open")  # so that there is a history
    job = (await client.post("/api/semantic-cache/warm", **BODIES["/api/semantic-cache/warm"])).json()["id"]
    key = (await client.post("/api/keys", **BODIES["/api/keys"])).json()["id"]
    for (method, path), example in EXAMPLES.items():
        given = BODIES.get(path, {}) if method != "get" else {}
        answer = await client.request(method, path.format(document=document, job=job, key_id=key), **given)
        assert answer.is_success, answer.text
        shown, came = shape(example), shape(answer.json())
        held_by_name = ("breakers", "waiting_by_tenant", "progress", "bulkheads")
        in_parts = ("by_kind", "by_policy", "by_tenant", "by_similarity")
        for held in (*held_by_name, *in_parts):  # names are data, or there is none
            shown.pop(held, None), came.pop(held, None)
        assert shown == came, (method, path)
