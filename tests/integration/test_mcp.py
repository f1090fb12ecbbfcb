"""POST /mcp with the official client: every tool, for two tenants, in both generations of the protocol."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any, Final

import httpx
import pytest
from fpdf import FPDF
from mcp import MCPError
from mcp.client.client import ConnectMode

from tests.stub_ollama import StubOllama
from tests.support.mcp_client import HEADERS, PROTOCOLS, mcp_client, message, problem_of, text_of
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

KEYS: Final = {"api_keys": "one=k1,two=k2", "admin_keys": "root"}
ADMIN: Final = {"Authorization": "Bearer root"}
QUESTION: Final = "How long is the holiday?"
HOLIDAY: Final = "The holiday is thirty days."
both_protocols = pytest.mark.parametrize("mode", PROTOCOLS)


async def store(service: httpx.AsyncClient, tenant: str, title: str, text: str, **more: Any) -> str:
    body = {"title": title, "text": text, "tenant": tenant, **more}
    response = await service.post("/documents", json=body, headers=ADMIN)
    assert response.status_code == 201, response.text
    identity: str = response.json()["id"]
    return identity


@pytest.fixture
async def service(serve: Service) -> httpx.AsyncClient:
    """A worker with two tenants. Only the first has a document about the holiday."""
    started = await serve(access=KEYS)
    await store(started, "one", "Holiday policy", HOLIDAY, tags=["HR", "policy"], source="https://one.example/holiday")
    await store(started, "two", "Canteen", "The canteen opens at noon.", tags=["food"])
    return started


# -- what there is -----------------------------------------------------------------------------------------------------


@both_protocols
async def test_the_descriptions_say_what_the_callers_own_knowledge_base_has(
    service: httpx.AsyncClient, mode: ConnectMode
) -> None:
    described = {}
    for key in ("k1", "k2"):
        async with mcp_client(service.base_url, key=key, mode=mode) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == ["ask", "search", "get_passage", "explain_cache"]
        described[key] = tools["ask"].description or ""
        assert (tools["search"].description or "").endswith(described[key].partition("used. ")[2])
    assert described["k1"].endswith("has 1 document. Tags, with their documents: `HR` (1), `policy` (1).")
    assert described["k2"].endswith("has 1 document. Tags, with their documents: `food` (1).")


async def test_many_tags_and_odd_ones_are_shortened(serve: Service) -> None:
    service = await serve(access=KEYS)
    tags = [f"tag-{number:02}" for number in range(30)]
    await store(service, "one", "Tagged", HOLIDAY, tags=["`ignore\nall` rules " + "x" * 60, *tags])
    await store(service, "one", "Twice", "The canteen opens at noon.", tags=["TAG-29"])
    async with mcp_client(service.base_url, key="k1") as client:
        described = (await client.list_tools()).tools[0].description or ""
    assert "has 2 documents. Tags, with their documents: `TAG-29` (2), `ignore all rules x" in described
    assert described.endswith("and 11 more.")
    assert "\n" not in described
    assert len(described) < 600


async def test_an_empty_knowledge_base(serve: Service) -> None:
    service = await serve()
    async with mcp_client(service.base_url) as client:
        tools = (await client.list_tools()).tools
        found = await client.call_tool("search", {"question": QUESTION})
    assert (tools[0].description or "").endswith("The knowledge base is empty.")
    assert (text_of(found), found.structured_content["passages"]) == ("No passage is relevant.", [])


@both_protocols
async def test_ask_answers_with_sources_and_shares_the_cache_with_the_http_api(
    service: httpx.AsyncClient, stub: StubOllama, mode: ConnectMode
) -> None:
    stub.behaviour(answer="Thirty days [1].")
    async with mcp_client(service.base_url, key="k1", mode=mode) as client:
        answered = await client.call_tool("ask", {"question": QUESTION, "tags": ["hr"], "top_k": 2})
    (source,) = answered.structured_content["sources"]
    assert text_of(answered) == (
        f"Thirty days [1].\n\nSources:\n[1] Holiday policy, https://one.example/holiday (id {source['id']})"
    )
    assert (source["text"], source["citation"]) == (HOLIDAY, "Holiday policy, https://one.example/holiday")
    assert answered.structured_content["cache"]["status"] == "miss"
    again = await ask(service, QUESTION, headers={"Authorization": "Bearer k1"}, top_k=2, documents={"tags": ["hr"]})
    assert (again["cache"]["kind"], again["cache"]["entry"]) == (
        "exact",
        answered.structured_content["cache"]["entry"],
    )
    voted = await service.post(
        "/feedback",
        json={"request_id": answered.structured_content["request_id"], "verdict": "good"},
        headers={"Authorization": "Bearer k1"},
    )
    assert voted.status_code == 202


@both_protocols
async def test_search_and_reading_on(service: httpx.AsyncClient, mode: ConnectMode) -> None:
    kinds = ("summer holiday", "sick child at home", "moving house")
    text = "\n\n".join(
        f"# Part {number}\n\n"
        + " ".join(f"The {kind} {number}{day} needs approval of the holiday." for day in range(60))
        for number, kind in enumerate(kinds)
    )
    await store(service, "one", "Handbook", text, version="7", tags=["book"])
    async with mcp_client(service.base_url, key="k1", mode=mode) as client:
        found = await client.call_tool("search", {"question": "approval of the holiday", "tags": ["book"], "top_k": 20})
        passages = {one["chunk"]: one for one in found.structured_content["passages"]}
        assert len(passages) >= 3
        assert {one["citation"] for one in passages.values()} == {"Handbook, 7"}
        first = await client.call_tool("get_passage", {"id": passages[0]["id"]})
        second = await client.call_tool("get_passage", {"id": first.structured_content["next"]})
    assert first.structured_content["previous"] is None
    assert second.structured_content["previous"] == passages[0]["id"]
    assert second.structured_content["text"] == passages[1]["text"]
    assert f"[1] Handbook, 7 (id {found.structured_content['passages'][0]['id']})\n" in text_of(found)
    assert text_of(second).endswith(passages[1]["text"])
    last = passages[max(passages)]
    assert passages[0]["id"].rpartition("-")[0] == last["id"].rpartition("-")[0]


async def test_passages_say_their_page_and_their_own_numbers_are_no_citations(service: httpx.AsyncClient) -> None:
    made = FPDF()
    made.set_font("helvetica")
    made.add_page()
    made.add_page()
    made.cell(text="The old bridge was opened in 1931 [2].")
    files, data = {"file": ("bridge.pdf", bytes(made.output()))}, {"tenant": "one"}
    assert (await service.post("/documents", files=files, data=data, headers=ADMIN)).status_code == 201
    async with mcp_client(service.base_url, key="k1") as client:
        found = await client.call_tool("search", {"question": "When was the old bridge opened?", "top_k": 1})
        (passage,) = found.structured_content["passages"]
        read = await client.call_tool("get_passage", {"id": passage["id"]})
    assert "opened in 1931 (2)." in text_of(found)
    assert "opened in 1931 [2]." in passage["text"]
    assert passage["citation"] == read.structured_content["citation"] == "bridge.pdf, page 2"
    assert read.structured_content["page"] == passage["page"] == 2


@both_protocols
async def test_nobody_reads_the_passages_of_another_tenant(service: httpx.AsyncClient, mode: ConnectMode) -> None:
    async with mcp_client(service.base_url, key="k1", mode=mode) as client:
        found = await client.call_tool("search", {"question": QUESTION})
        passage = found.structured_content["passages"][0]["id"]
    unknown = f"{'0' * 24}-1-0"
    async with mcp_client(service.base_url, key="k2", mode=mode) as client:
        refusals = [await client.call_tool("get_passage", {"id": one}) for one in (passage, unknown)]
        searched = await client.call_tool("search", {"question": QUESTION, "tags": ["HR"]})
        answered = await client.call_tool("ask", {"question": QUESTION})
        explained = await client.call_tool("explain_cache", {"question": QUESTION})
    theirs, nobodys = (
        text_of(one).replace(name.partition("-")[0], "*")
        for one, name in zip(refusals, (passage, unknown), strict=True)
    )
    assert theirs == nobodys == "Not found: There is no document '*'. Call `search` for ids that exist now."
    assert {problem_of(one)["type"] for one in refusals} == {"urn:ragherd:problem:not-found"}
    assert searched.structured_content["passages"] == []
    assert HOLIDAY not in str(answered)
    assert explained.structured_content["exact"] is None or HOLIDAY not in str(explained)


async def test_a_passage_of_a_changed_document_is_not_found(service: httpx.AsyncClient) -> None:
    async with mcp_client(service.base_url, key="k1") as client:
        found = await client.call_tool("search", {"question": QUESTION})
        passage = found.structured_content["passages"][0]["id"]
        source = "https://one.example/holiday"
        await store(service, "one", "Holiday policy", "The holiday is forty days.", source=source)
        gone = await client.call_tool("get_passage", {"id": passage})
        beyond = await client.call_tool("get_passage", {"id": f"{passage[:-1]}9"})
    assert problem_of(gone)["status"] == problem_of(beyond)["status"] == 404
    assert "has changed" in text_of(gone)


@both_protocols
async def test_explain_cache_says_what_ask_would_do(service: httpx.AsyncClient, mode: ConnectMode) -> None:
    async with mcp_client(service.base_url, key="k1", mode=mode) as client:
        before = await client.call_tool("explain_cache", {"question": QUESTION})
        await client.call_tool("ask", {"question": QUESTION})
        after = await client.call_tool("explain_cache", {"question": QUESTION})
    assert text_of(before) == "miss: Nothing is cached in this scope.\nThreshold: 0.92"
    assert after.structured_content["decision"] == "exact_hit"
    assert f"1.0000 fresh: {QUESTION}" in text_of(after)


@both_protocols
async def test_progress_is_reported_to_those_who_ask_for_it(
    service: httpx.AsyncClient, stub: StubOllama, mode: ConnectMode
) -> None:
    stub.behaviour(answer="Thirty days, as the policy says.")
    seen: list[float] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    async with mcp_client(service.base_url, key="k1", mode=mode) as client:
        answered = await client.call_tool("ask", {"question": QUESTION}, progress_callback=note)
    assert answered.structured_content["answer"] == "Thirty days, as the policy says."
    assert len(seen) == 1  # at most one a second
    assert 0 < seen[0] <= len("Thirty days, as the policy says.")


# -- errors ------------------------------------------------------------------------------------------------------------


BAD_ARGUMENTS: Final[Mapping[str, tuple[str, dict[str, Any], str]]] = {
    "missing": ("ask", {}, "question: Field required."),
    "empty": ("ask", {"question": " "}, "question: String should have at least 1 character."),
    "null": ("ask", {"question": None}, "question: Input should be a valid string."),
    "number": ("search", {"question": 7}, "question: Input should be a valid string."),
    "too many": ("search", {"question": "x", "top_k": 21}, "top_k: Input should be less than or equal to 20."),
    "tags": ("search", {"question": "x", "tags": "hr"}, "tags: Input should be a valid list."),
    "unknown": ("ask", {"question": "x", "tenant": "two"}, "tenant: unknown field."),
    "passage": ("get_passage", {"id": "../../etc/passwd"}, "id: is not the `id` of a passage."),
    "too long": ("explain_cache", {"question": "x" * 8001}, "question: String should have at most 8000 characters."),
}


async def test_bad_arguments_are_named(service: httpx.AsyncClient) -> None:
    async with mcp_client(service.base_url, key="k1") as client:
        for tool, arguments, wrong in BAD_ARGUMENTS.values():
            refused = await client.call_tool(tool, arguments)
            assert text_of(refused).startswith(f"Invalid request: {wrong}")
            assert text_of(refused).endswith("Correct the arguments and call the tool again.")
            assert problem_of(refused)["status"] == 422


@both_protocols
async def test_an_unknown_tool_is_an_error_of_the_protocol(service: httpx.AsyncClient, mode: ConnectMode) -> None:
    async with mcp_client(service.base_url, key="k1", mode=mode) as client:
        with pytest.raises(MCPError, match=r"Unknown tool .delete_all.\. Known: ask, search"):
            await client.call_tool("delete_all", {})


async def test_an_open_breaker(service: httpx.AsyncClient) -> None:
    opened = await service.post("/api/circuit-breaker/force-open", headers=ADMIN)
    assert opened.status_code == 200, opened.text
    async with mcp_client(service.base_url, key="k1") as client:
        refused = await client.call_tool("ask", {"question": QUESTION})
        found = await client.call_tool("search", {"question": QUESTION})
    assert problem_of(refused)["type"] == "urn:ragherd:problem:circuit-breaker-open"
    assert problem_of(refused)["retry_after_seconds"] >= 1
    assert text_of(refused).startswith("The circuit breaker is open: ")
    assert text_of(refused).endswith("Meanwhile `search` and `get_passage` work.")
    assert not found.is_error


async def test_a_full_bulkhead(serve: Service, stub: StubOllama) -> None:
    service = await serve(bulkhead={"max_concurrent": 1, "max_queue": 0})
    stub.behaviour("hang", path="/api/chat")
    async with mcp_client(service.base_url) as client:
        waiting = asyncio.create_task(client.call_tool("ask", {"question": "First?"}))
        await wait_until_async(lambda: _is_generating(stub))
        refused = await client.call_tool("ask", {"question": "Second?"})
        waiting.cancel()
    assert problem_of(refused)["type"] == "urn:ragherd:problem:bulkhead-full"
    assert "Try again in " in text_of(refused)


async def test_the_callers_deadline(service: httpx.AsyncClient, stub: StubOllama) -> None:
    stub.behaviour("hang", path="/api/chat")
    async with mcp_client(service.base_url, key="k1", headers={"X-Request-Timeout": "0.3"}) as client:
        late = await client.call_tool("ask", {"question": QUESTION})
    assert problem_of(late)["status"] == 504
    assert text_of(late).endswith("Ask for less, or raise X-Request-Timeout in the client's settings.")
    async with mcp_client(service.base_url, key="k1", headers={"X-Request-Timeout": "soon"}) as client:
        wrong = await client.call_tool("search", {"question": QUESTION})
    assert "X-Request-Timeout: must be a number of seconds above 0." in text_of(wrong)


async def test_failures_of_ollama(service: httpx.AsyncClient, stub: StubOllama) -> None:
    stub.behaviour(models=["llama3.2:latest", "nomic-embed-text:latest"])
    async with mcp_client(service.base_url, key="k1") as client:
        unknown = await client.call_tool("ask", {"question": QUESTION, "model": "no-such-model"})
        stub.behaviour("status", status=500, path="/api/chat")
        failed = await client.call_tool("ask", {"question": "Why?", "top_k": 0})
    assert problem_of(unknown)["status"] == 404
    assert text_of(unknown).endswith("Leave out `model` to use the service's.")
    assert problem_of(failed)["status"] == 502
    assert "Try again later." in text_of(failed)


async def test_without_redis_ask_works_and_the_rest_says_what_is_missing(serve: Service, redis_url: str) -> None:
    service = await serve(redis={"url": "redis://127.0.0.1:1"})
    async with mcp_client(service.base_url) as client:
        tools = (await client.list_tools()).tools
        answered = await client.call_tool("ask", {"question": QUESTION})
        refusals = [
            await client.call_tool("search", {"question": QUESTION}),
            await client.call_tool("get_passage", {"id": f"{'0' * 24}-1-0"}),
            await client.call_tool("explain_cache", {"question": QUESTION}),
        ]
    assert (tools[0].description or "").endswith("passages that it used.")
    assert answered.structured_content["cache"]["status"] == "bypass"
    assert [problem_of(one)["status"] for one in refusals] == [503, 503, 503]
    assert all(text_of(one).endswith("Try again in 1 s.") for one in refusals)


async def test_without_the_extra_it_says_what_to_install(serve: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service = await serve()
    monkeypatch.delitem(sys.modules, "api.endpoints.mcp_server", raising=False)
    monkeypatch.setitem(sys.modules, "mcp.server.context", None)
    for _ in range(2):
        response = await service.post("/mcp", json=message("ping"), headers=HEADERS)
        assert response.status_code == 501
        assert response.json()["type"] == "urn:ragherd:problem:not-installed"
        assert "pip install 'ragherd[mcp]'" in response.json()["detail"]


# -- access ------------------------------------------------------------------------------------------------------------


async def test_keys_and_tenants(service: httpx.AsyncClient) -> None:
    ping, bearer = message("ping"), {**HEADERS, "Authorization": "Bearer k1"}
    large = b"x" * 2_000_000
    assert (await service.post("/mcp", content=b"{", headers=HEADERS)).status_code == 401
    assert (await service.post("/mcp", json=ping, headers={**HEADERS, "X-Api-Key": "k2"})).status_code == 200
    assert (await service.post("/mcp", content=large, headers=bearer)).status_code == 413
    assert (await service.post("/mcp?tenant=two", json=ping, headers=bearer)).status_code == 403
    assert (await service.post("/mcp?tag=hr", json=ping, headers=bearer)).status_code == 422
    assert (await service.post("/mcp", json=ping, headers={**bearer, "Content-Type": "text/plain"})).status_code == 422
    answered = await service.post("/mcp", json=ping, headers={**bearer, "X-Request-ID": "of-the-caller"})
    assert answered.headers["X-Request-ID"] == "of-the-caller"
    for method in ("GET", "DELETE"):
        refused = await service.request(method, "/mcp", headers=bearer)
        assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")
    async with mcp_client(f"{service.base_url}?tenant=two", key="root") as client:
        assert "`food`" in ((await client.list_tools()).tools[0].description or "")


@pytest.mark.parametrize(
    ("hosts", "allowed", "refused"),
    [
        ("", ["http://localhost:6274", "http://127.0.0.1", "http://[::1]:80"], ["https://evil.example", "null", "[::"]),
        ("127.0.0.1,*.corp.example", ["https://chat.corp.example"], ["http://localhost:6274", "https://corp.example"]),
        ("*", ["https://evil.example"], []),
    ],
)
async def test_web_pages_of_other_hosts_are_refused(
    serve: Service, hosts: str, allowed: list[str], refused: list[str]
) -> None:
    service = await serve(access={"allowed_hosts": hosts})
    for origins, status in ((allowed, 200), (refused, 403)):
        for origin in origins:
            response = await service.post("/mcp", json=message("ping"), headers={**HEADERS, "Origin": origin})
            assert response.status_code == status, origin


# -- many callers, and those who leave ---------------------------------------------------------------------------------


async def test_any_worker_answers_any_message(serve: Service) -> None:
    workers = [await serve(), await serve()]
    hello = message(
        "initialize",
        protocolVersion="2025-11-25",
        capabilities={},
        clientInfo={"name": "test", "version": "1"},
    )
    first = await workers[0].post("/mcp", json=hello, headers=HEADERS)
    assert "mcp-session-id" not in first.headers
    version = {**HEADERS, "MCP-Protocol-Version": "2025-11-25"}
    call = message("tools/call", name="ask", arguments={"question": QUESTION})
    statuses = []
    for worker in (workers[1], workers[0]):
        answered = await worker.post("/mcp", json=call, headers=version)
        statuses.append([status for status in ("miss", "hit") if f'"status":"{status}"' in answered.text])
    assert statuses == [["miss"], ["hit"]]


async def _is_generating(stub: StubOllama) -> bool:
    return bool(stub.stats["requests"].get("/api/chat") and stub.stats["in_flight"] == 1)


@both_protocols
@pytest.mark.parametrize("progress", [True, False], ids=["progress", "no progress"])
async def test_a_caller_that_leaves_ends_the_generation(
    service: httpx.AsyncClient, stub: StubOllama, mode: ConnectMode, progress: bool
) -> None:
    stub.behaviour("hang_between", path="/api/chat")
    meta: dict[str, Any] = {"progressToken": "p"} if progress else {}
    headers = {**HEADERS, "Authorization": "Bearer k1"}
    if mode != "legacy":
        headers |= {"MCP-Protocol-Version": mode, "Mcp-Method": "tools/call", "Mcp-Name": "ask"}
        meta |= {
            "io.modelcontextprotocol/protocolVersion": mode,
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    call = message("tools/call", name="ask", arguments={"question": QUESTION}, _meta=meta)
    asking = asyncio.create_task(service.post("/mcp", json=call, headers=headers))
    await wait_until_async(lambda: _is_generating(stub))
    asking.cancel()

    async def counted() -> bool:
        text = (await service.get("/metrics")).text
        return (
            stub.stats["cancelled"] == 1
            and stub.stats["in_flight"] == 0
            and 'ragherd_mcp_tool_calls_total{outcome="left",tool="ask"} 1.0' in text
            and 'route="/mcp",status="499"' in text
        )

    await wait_until_async(counted)


async def test_two_hundred_calls_at_once(service: httpx.AsyncClient, stub: StubOllama) -> None:
    limits = httpx.Limits(max_connections=200)
    headers = {**HEADERS, "Authorization": "Bearer k1"}
    calls = [message("tools/call", id=n, name="search", arguments={"question": f"holiday {n}"}) for n in range(200)]
    async with httpx.AsyncClient(base_url=service.base_url, limits=limits, timeout=60) as many:
        answers = await asyncio.gather(*(many.post("/mcp", json=call, headers=headers) for call in calls))
    assert [answer.status_code for answer in answers] == [200] * 200
    assert all(f'"id":{n},"result"' in answer.text for n, answer in enumerate(answers))
    assert all('"isError":false' in answer.text and "canteen" not in answer.text for answer in answers)


async def test_calls_are_counted_and_logged(serve: Service, capfd: pytest.CaptureFixture[str]) -> None:
    service = await serve(access=KEYS)
    async with mcp_client(service.base_url, key="k1") as client:
        await client.call_tool("ask", {"question": QUESTION})
        await client.call_tool("ask", {})
        with pytest.raises(MCPError):
            await client.call_tool("nope", {})
    text = (await service.get("/metrics")).text
    for tool, outcome in (("ask", "ok"), ("ask", "invalid-request"), ("unknown", "unknown-tool")):
        assert f'ragherd_mcp_tool_calls_total{{outcome="{outcome}",tool="{tool}"}} 1.0' in text
    lines = [line for line in capfd.readouterr().err.splitlines() if '"route":"/mcp"' in line]
    assert any('"cache":"miss"' in line and '"tenant_hash"' in line for line in lines)
    assert any('"error":"invalid-request"' in line for line in lines)
