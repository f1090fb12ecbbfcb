"""What a second tenant tries, with a valid key of its own, and how each attempt ends. docs/access.md has the list."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from api.endpoints.fast_path import FastPath
from tests.integration.test_fast_connections import connected
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

SECRET = "zebrafish"
"""In every text of the first tenant."""
QUESTION, SIMILAR = f"When is the {SECRET} fed?", f"The {SECRET}, when is it fed?"
MINE, THEIRS, ROOT = "Bearer g-key", "Bearer a-key", {"Authorization": "Bearer root-key"}
ACCESS = {
    "api_keys": "acme=a-key,globex=g-key",
    "admin_keys": "root-key",
    "require_keys": True,
    "wrong_key_delay": 0.0,
}
REPORTS = (
    "/metrics",
    "/api/history",
    "/api/workers",
    "/api/semantic-cache/metrics",
    "/api/semantic-cache/quality",
    "/api/circuit-breaker/history",
    "/api/experiments",
    "/dashboard",
)


class Attempt(NamedTuple):
    """A request of the second tenant. `status` is that of the refusal; 200 is an answer without the first's texts."""

    status: int
    method: str
    path: str
    body: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = {}


def asked(question: str = QUESTION, status: int = 200, path: str = "/query", **more: Any) -> Attempt:
    headers = more.pop("headers", {})
    return Attempt(status, "POST", path, {"question": question, **more}, headers)


def chat(path: str) -> Attempt:
    return Attempt(200, "POST", path, {"messages": [{"role": "user", "content": QUESTION}], "stream": False})


ATTEMPTS: Mapping[str, Attempt] = {
    "ask only for what is cached": asked(status=504, headers={"Cache-Control": "only-if-cached"}),
    "ask the same question": asked(),
    "ask a similar question": asked(SIMILAR),
    "ask through `/api/chat`": chat("/api/chat"),
    "ask through `/v1/chat/completions`": chat("/v1/chat/completions"),
    "continue the tenant's conversation": asked(
        "And then?", history=[{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "At noon."}]
    ),
    "name the tenant in the body": asked(status=403, tenant="acme"),
    "write the tenant's name otherwise": asked(status=403, tenant=" ACME\u200b"),
    "name the tenant in headers": asked(
        headers={"X-Tenant": "acme", "X-Ragherd-Client": "acme", "Forwarded": "by=acme"}
    ),
    "ask for the tenant's document": asked("When?", documents={"ids": ["DOCUMENT"]}),
    "list the tenant's documents": Attempt(403, "GET", "/documents?tenant=acme"),
    "list documents without naming a tenant": Attempt(200, "GET", "/documents"),
    "read the tenant's document by its ID": Attempt(404, "GET", "/documents/DOCUMENT"),
    "delete the tenant's document": Attempt(403, "DELETE", "/documents/DOCUMENT?tenant=acme"),
    "add a document for the tenant": Attempt(403, "POST", "/documents", {"title": "x", "text": "x", "tenant": "acme"}),
    "judge the tenant's answer": Attempt(404, "POST", "/feedback", {"request_id": "of-acme", "verdict": "bad"}),
    "judge it in the tenant's name": Attempt(
        403, "POST", "/feedback", {"request_id": "of-acme", "verdict": "bad", "tenant": "acme"}
    ),
    "send a request ID of the tenant": asked(headers={"X-Request-ID": "of-acme"}),
    "explain what the cache has": asked(status=403, path="/api/semantic-cache/explain", tenant="acme"),
    "delete the tenant's answers": Attempt(403, "DELETE", "/api/semantic-cache?tenant=acme"),
    "warm up the tenant's cache": Attempt(
        403, "POST", "/api/semantic-cache/warm", {"questions": [{"question": "x", "tenant": "acme"}]}
    ),
    "use MCP as the tenant": Attempt(403, "POST", "/mcp?tenant=acme", {"jsonrpc": "2.0", "id": 1, "method": "ping"}),
    "make a key of the tenant": Attempt(403, "POST", "/api/keys", {"tenant": "acme"}),
    "list keys": Attempt(403, "GET", "/api/keys"),
    "rotate the tenant's key": Attempt(403, "POST", "/api/keys/KEY/rotate"),
    "revoke the tenant's key": Attempt(403, "DELETE", "/api/keys/KEY"),
    "erase the tenant": Attempt(403, "DELETE", "/api/tenants/acme"),
    "read the audit log": Attempt(403, "GET", "/api/audit"),
    "start an experiment": Attempt(403, "POST", "/api/experiments", {"name": "x", "variants": []}),
    "unload a model": Attempt(403, "DELETE", "/api/delete", {"model": "llama3.2"}),
    **{f"read `{path}`": Attempt(403, "GET", path) for path in REPORTS},
    "guess the tenant's key": asked(status=401, headers={"Authorization": "Bearer A-KEY"}),
    "send a key in another scheme": asked(status=401, headers={"Authorization": "Basic a-key"}),
}


async def lived(client: httpx.AsyncClient, stub: StubOllama) -> dict[str, str]:
    """Lets the first tenant use the service. Returns the IDs that an attempt may name."""
    stub.behaviour(answer=f"The {SECRET} is fed at noon.", path="/api/chat")
    stub.behaviour(answer=f"The {SECRET} is fed at noon.", path="/v1/chat/completions")
    document = {"title": f"On the {SECRET}", "text": f"The {SECRET} is fed at noon.", "tenant": "acme"}
    added = await client.post("/documents", json=document, headers=ROOT)
    made = await client.post("/api/keys", json={"tenant": "acme"}, headers=ROOT)
    theirs = {"Authorization": THEIRS}

    async def is_kept() -> bool:  # the new document may still drop answers
        found = await ask(client, QUESTION, headers={**theirs, "X-Request-ID": "of-acme"})
        return bool(found["cache"]["status"] == "hit")

    await wait_until_async(is_kept)
    for attempt in (ATTEMPTS["ask through `/api/chat`"], ATTEMPTS["ask through `/v1/chat/completions`"]):
        body = {"model": "llama3.2", **(attempt.body or {})}
        assert (await client.post(attempt.path, json=body, headers=theirs)).status_code == 200
    stub.behaviour(answer="I do not know.", path="/api/chat")
    stub.behaviour(answer="I do not know.", path="/v1/chat/completions")
    return {"DOCUMENT": added.json()["id"], "KEY": made.json()["id"]}


async def test_each_attempt_over_http_ends_without_the_other_tenant_s_texts(serve: Service, stub: StubOllama) -> None:
    client = await serve(access=ACCESS)
    ids = await lived(client, stub)
    ended = {}
    for name, attempt in ATTEMPTS.items():
        filled = re.sub("DOCUMENT|KEY", lambda found: ids[found[0]], json.dumps([attempt.path, attempt.body]))
        path, body = json.loads(filled)
        if path.startswith(("/api/chat", "/v1/")):
            body["model"] = "llama3.2"
        headers = {"Authorization": MINE, **attempt.headers}
        response = await client.request(attempt.method, path, json=body, headers=headers)
        said = response.text.replace(QUESTION, "").replace(SIMILAR, "")
        ended[name] = "leaked" if SECRET in said else response.status_code
    assert ended == {name: attempt.status for name, attempt in ATTEMPTS.items()}
    hit = await ask(client, QUESTION, headers={"Authorization": THEIRS})
    assert (hit["cache"]["status"], SECRET in hit["answer"]) == ("hit", True), "the tenant has lost nothing"


BODY = json.dumps({"question": QUESTION}).encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
JSON = b"Content-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def wire(*fields: str, head: bytes = LENGTH, body: bytes = BODY, line: str = "POST /query HTTP/1.1") -> bytes:
    given = "".join(f"{field}\r\n" for field in ("Host: ragherd", *fields))
    return f"{line}\r\n{given}".encode() + JSON + head + b"\r\n" + body


OF_THEIRS = wire(f"Authorization: {THEIRS}")
IN_CHUNKS = b"%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)
KEYLESS = wire()
MINE_TOO = f"Authorization: {MINE}"

ON_THE_WIRE: Mapping[str, tuple[list[int], bytes]] = {
    "the tenant's bytes without its key": ([401], KEYLESS),
    "the tenant's bytes with another key": ([200], wire(MINE_TOO)),
    "the tenant's bytes with another case of the key": ([401], OF_THEIRS.replace(b"a-key", b"A-key")),
    "two keys": ([400], wire(MINE_TOO, f"Authorization: {THEIRS}")),
    "two hosts": ([400], wire("Host: acme", MINE_TOO)),
    "a different key in each header": ([200], wire(MINE_TOO, "X-Api-Key: a-key")),
    "a key in the trailer": ([401], wire(head=CHUNKED, body=IN_CHUNKS + b"Authorization: Bearer a-key\r\n\r\n")),
    "a key in a folded line": ([400], wire("X: 1\r\n Authorization: Bearer a-key")),
    "a length and chunks": ([400], wire(MINE_TOO, head=LENGTH + CHUNKED, body=IN_CHUNKS + b"\r\n")),
    "two lengths": ([400], wire(MINE_TOO, head=LENGTH + b"Content-Length: 3\r\n")),
    "the tenant in an absolute target": ([200], wire(MINE_TOO, line="POST http://acme/query HTTP/1.1")),
    "the tenant's request as a body": (
        [422],
        wire(MINE_TOO, head=b"Content-Length: %d\r\n" % len(OF_THEIRS), body=OF_THEIRS),
    ),
    "behind its own request": ([200, 401], wire(MINE_TOO) + KEYLESS),
    "in front of one": ([401, 200], KEYLESS + wire(MINE_TOO)),
}
"""Bytes on a connection over which the tenant's request has just been answered, as a proxy may share it."""


@pytest.mark.parametrize("near_bytes", [0, 1_000_000], ids=["from Redis", "from a copy"])
async def test_each_attempt_on_a_shared_connection_gets_nothing_of_the_other_tenant(
    serve: Service, stub: StubOllama, monkeypatch: pytest.MonkeyPatch, near_bytes: int
) -> None:
    known: list[bytes] = []
    begin = FastPath.begin

    def watched(self: FastPath, whole: bytes, state: Any) -> Any:
        found = begin(self, whole, state)
        known.extend([whole] if found is not None else [])
        return found

    monkeypatch.setattr(FastPath, "begin", watched)
    client = await serve(access=ACCESS, cache={"near_bytes": near_bytes, "shadow_rate": 0.0})
    await lived(client, stub)
    ended = {}
    for name, (expected, sent) in ON_THE_WIRE.items():
        async with connected(client) as shared:
            for _ in range(2):
                shared.writer.write(OF_THEIRS)
                assert SECRET in (await shared.read()).json()["answer"]
            shared.writer.write(sent)
            responses = [await shared.read() for _ in expected]
        texts = "".join(response.text for response in responses)
        ended[name] = "leaked" if "at noon" in texts else [response.status_code for response in responses]
    assert ended == {name: expected for name, (expected, _) in ON_THE_WIRE.items()}
    assert known.count(OF_THEIRS) >= 2 * len(ON_THE_WIRE) - 2, "the tenant's own requests were known by their bytes"


def test_the_list_in_the_documentation_is_the_one_that_is_tried() -> None:
    page = (Path(__file__).parents[2] / "docs" / "access.md").read_text()
    section = page.partition("## What another tenant may try")[2].partition("\n## ")[0]
    listed = dict(re.findall(r"^\| (.+?) \| ([\d, ]+) \|$", section, re.MULTILINE))
    tried = {name: str(attempt.status) for name, attempt in ATTEMPTS.items()}
    tried |= {name: ", ".join(map(str, statuses)) for name, (statuses, _) in ON_THE_WIRE.items()}
    assert listed == tried
