"""Documents as text and as files: stored, replaced, listed, refused, deleted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fpdf import FPDF
from redis.asyncio import Redis
from starlette import formparsers

from api.knowledge import ingestion_worker as upkeep
from tests.stub_ollama import StubOllama
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

DATA = Path(__file__).parents[1] / "data" / "documents"

ONNX: dict[str, Any] = {"embedder": "onnx", "embed_timeout": 10}
HOLIDAY = "Holiday is approved by the team lead. Ask for it two weeks before it begins."
CANTEEN = "The canteen is on the third floor. It is open from eleven to two."


async def add(client: httpx.AsyncClient, title: str, text: str, **more: Any) -> dict[str, Any]:
    response = await client.post("/documents", json={"title": title, "text": text, **more})
    assert response.status_code == 201, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_an_answer_is_grounded_in_a_document_and_says_so(serve: Service, stub: StubOllama) -> None:
    client = await serve(embedder=ONNX)
    document = await add(client, "Holiday policy", HOLIDAY, tags=["hr"], source="https://example.com/h", version="3")
    assert (document["status"], document["chunks"], document["outcome"]) == ("ready", 1, "created")
    stub.behaviour(answer="By the team lead [1], two weeks before [7].", path="/api/chat")
    answered = await ask(client, "Who approves my holiday?")
    assert answered["answer"] == "By the team lead [1], two weeks before."
    assert [
        (one["document_id"], one["title"], one["chunk"], one["text"], one["source"], one["version"])
        for one in answered["sources"]
    ] == [(document["id"], "Holiday policy", 0, HOLIDAY, "https://example.com/h", "3")]
    assert 0.25 <= answered["sources"][0]["score"] <= 1
    assert answered["timings_ms"]["retrieve"] > 0
    hit = await ask(client, "Who approves my holiday?")
    assert hit["cache"]["status"] == "hit"
    assert hit["sources"] == answered["sources"]


async def test_what_no_document_says_is_not_invented(serve: Service, stub: StubOllama) -> None:
    client = await serve(embedder=ONNX)
    await add(client, "Holiday policy", HOLIDAY)
    answered = await ask(client, "What is the boiling point of tungsten?")
    assert answered["answer"] == "I did not find anything about this in the documents."
    assert answered["sources"] == []
    assert "/api/chat" not in stub.stats["requests"]
    assert (await ask(client, "What is the boiling point of tungsten?"))["cache"]["status"] == "hit"


async def test_without_retrieval_and_without_documents_the_model_answers_alone(
    serve: Service, stub: StubOllama
) -> None:
    client = await serve(embedder=ONNX)
    assert (await ask(client, "Who approves my holiday?"))["sources"] == []
    await add(client, "Holiday policy", HOLIDAY)
    assert (await ask(client, "Who approves my holiday?", top_k=0))["sources"] == []
    assert stub.stats["requests"]["/api/chat"] == 2


async def test_the_same_is_stored_once_and_another_text_of_the_same_source_replaces_it(serve: Service) -> None:
    one, other = await serve(embedder=ONNX), await serve(embedder=ONNX)
    first = await add(one, "Policy", HOLIDAY, source="policy")
    again = await add(other, "Policy", HOLIDAY, source="policy")
    assert (again["id"], again["outcome"], again["revision"]) == (first["id"], "unchanged", first["revision"])
    changed = await add(other, "Policy", CANTEEN, source="policy")
    assert (changed["id"], changed["outcome"]) == (first["id"], "updated")
    read = (await one.get(f"/documents/{first['id']}")).json()
    assert [passage["text"] for passage in read["passages"]] == [CANTEEN]
    assert (await one.get("/documents")).json()["documents"] == [{k: v for k, v in read.items() if k != "passages"}]


async def test_a_version_of_one_file_does_not_replace_another_file(serve: Service) -> None:
    client = await serve(embedder=ONNX)
    for name, text in (("holiday.txt", HOLIDAY), ("canteen.txt", CANTEEN), ("canteen.txt", f"{CANTEEN} Come.")):
        response = await client.post("/documents", files={"file": (name, text)}, data={"version": "2"})
        assert response.status_code == 201, response.text
    listed = (await client.get("/documents")).json()["documents"]
    assert {one["title"] for one in listed} == {"holiday.txt", "canteen.txt"}
    assert len(listed) == 2


async def test_lists_are_paged_and_filtered(serve: Service) -> None:
    client = await serve(embedder=ONNX)
    for number in range(5):
        tags = ["even"] if number % 2 == 0 else ["odd"]
        await add(client, f"Number {number}", f"This is about the number {number}.", tags=tags, source=f"n{number}")
    await add(client, "Of another", "Secret.", tenant="acme")
    titles: list[str] = []
    cursor: str | None = None
    while True:
        page = (await client.get("/documents", params={"limit": 2, **({"cursor": cursor} if cursor else {})})).json()
        titles += [document["title"] for document in page["documents"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert titles == [f"Number {number}" for number in (4, 3, 2, 1, 0)]
    even = (await client.get("/documents", params={"tag": "EVEN"})).json()["documents"]
    assert [document["title"] for document in even] == ["Number 4", "Number 2", "Number 0"]
    assert len((await client.get("/documents", params={"source": "n3"})).json()["documents"]) == 1
    assert (await client.get("/documents", params={"tenant": "acme"})).json()["documents"][0]["title"] == "Of another"


@pytest.mark.parametrize("limit", [2, 4, 20])
async def test_no_document_is_missing_from_a_list_that_is_read_in_parts(
    serve: Service, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr("api.redis_store.stores.documents.document_records.LOOKED_AT", 3)
    client = await serve(embedder=ONNX, documents={"ingest_wait": 30})
    given = {(await add(client, f"Number {one}", f"About {one}.", source=f"n{one}"))["id"] for one in range(8)}
    listed: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (
            await client.get("/documents", params={"limit": limit, **({"cursor": cursor} if cursor else {})})
        ).json()
        listed += [document["id"] for document in page["documents"]]
        cursor = page["cursor"]
    assert len(listed) == len(given)
    assert set(listed) == given


async def test_a_question_can_be_narrowed_to_tags_and_documents(serve: Service) -> None:
    client = await serve(embedder=ONNX)
    old = await add(client, "Old holiday policy", HOLIDAY, tags=["old"])
    new = await add(client, "New holiday policy", "Holiday is approved by the office, a day before.", tags=["New"])

    async def cited(**documents: Any) -> set[str]:
        answered = await ask(client, "Who approves my holiday?", documents=documents)
        return {source["document_id"] for source in answered["sources"]}

    assert await cited() == {old["id"], new["id"]}
    assert await cited(tags=["new"]) == {new["id"]}
    assert await cited(ids=[old["id"]]) == {old["id"]}
    assert await cited(tags=["none", "old"]) == {old["id"]}
    assert await cited(tags=["none"]) == set()


@pytest.mark.parametrize("documents", [{"tags": []}, {"ids": []}, None])
async def test_what_names_no_document_is_refused_rather_than_answered_from_all(serve: Service, documents: Any) -> None:
    client = await serve()
    refused = await client.post("/query", json={"question": "Who approves my holiday?", "documents": documents})
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("documents")


async def test_no_tenant_sees_anything_of_another(serve: Service) -> None:
    access = {"api_keys": "acme=k1,Acme=k2", "admin_keys": "root"}
    client = await serve(embedder=ONNX, access=access)

    def key(value: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {value}"}

    body = {"title": "Holiday policy", "text": HOLIDAY, "tenant": "acme"}
    assert (await client.post("/documents", json=body, headers=key("k1"))).status_code == 403
    stored = await client.post("/documents", json=body, headers=key("root"))
    assert stored.status_code == 201
    document = stored.json()["id"]
    asked = {"question": "Who approves my holiday?"}
    own = (await client.post("/query", json=asked, headers=key("k1"))).json()
    foreign = (await client.post("/query", json=asked, headers=key("k2"))).json()
    assert (len(own["sources"]), foreign["sources"]) == (1, [])
    assert (await client.get(f"/documents/{document}", headers=key("k1"))).status_code == 200
    assert (await client.get(f"/documents/{document}", headers=key("k2"))).status_code == 404
    assert (await client.get("/documents", headers=key("k2"))).json()["documents"] == []
    refused = await client.delete(f"/documents/{document}", headers=key("root"), params={"tenant": "Acme"})
    assert refused.status_code == 404
    assert (await client.delete(f"/documents/{document}", headers=key("root"))).status_code == 204
    assert (await client.get(f"/documents/{document}", headers=key("k1"))).status_code == 404


async def test_files_of_each_kind(serve: Service) -> None:
    client = await serve(embedder=ONNX)
    pdf = FPDF()
    pdf.add_page()
    pdf.set_font("helvetica", size=12)
    pdf.multi_cell(0, 10, HOLIDAY)
    files = {
        "a.md": (f"# Holiday\n\n{HOLIDAY}".encode(), "Holiday"),
        "b.txt": (HOLIDAY.encode("utf-16"), "b.txt"),
        "c.html": (f"<title>Page</title><script>no()</script><h1>Holiday</h1><p>{HOLIDAY}".encode(), "Page"),
        "d.pdf": (bytes(pdf.output()), "d.pdf"),
    }
    for name, (content, title) in files.items():
        response = await client.post(
            "/documents", files={"file": (name, content)}, data={"source": name, "tags": ["x"]}
        )
        assert response.status_code == 201, response.text
        document = response.json()
        assert (document["title"], document["source"], document["tags"]) == (title, name, ["x"])
        passages = (await client.get(f"/documents/{document['id']}")).json()["passages"]
        assert "team lead" in " ".join(passage["text"] for passage in passages)
        assert "no()" not in passages[0]["text"]


@pytest.mark.parametrize(
    ("name", "content", "status", "word"),
    [
        ("a.pdf", b"%PDF-1.7 broken", 422, "PDF"),
        ("a.docx", b"PK\x03\x04 broken", 422, "zip"),
        ("a.exe", b"MZ", 415, ".docx"),
        ("a.txt", b"\x89PNG\r\n", 415, "text"),
        ("a.txt", b"   \n", 422, "no text"),
        ("a.md", b"\xff\xfe\x00\xd8x", 422, "utf-16"),
    ],
)
async def test_what_can_not_be_read_is_refused_and_leaves_nothing(
    serve: Service, redis: Redis, name: str, content: bytes, status: int, word: str
) -> None:
    client = await serve(embedder=ONNX)
    response = await client.post("/documents", files={"file": (name, content)})
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert word in response.json()["detail"]
    assert [key async for key in redis.scan_iter("rag:doc:*")] == []
    assert [key async for key in redis.scan_iter("rag:upload:*")] == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"text": "x"}, "title"),
        ({"title": "x"}, "text"),
        ({"title": "x", "text": "y", "id": "z"}, "id"),
        ({"title": "x", "text": "y", "tags": "hr"}, "tags"),
        ({"title": "x", "text": "\ud800"}, "text"),
    ],
)
async def test_a_wrong_body_is_refused_by_its_field(serve: Service, body: Any, field: str) -> None:
    client = await serve()
    if body.get("text") == "\ud800":
        response = await client.post(
            "/documents", content=b'{"title":"x","text":"\\ud800"}', headers={"Content-Type": "application/json"}
        )
    else:
        response = await client.post("/documents", json=body)
    assert response.status_code == 422
    assert field in response.json()["detail"] or "JSON" in response.json()["detail"]


@pytest.mark.parametrize("path", ["{id}:text", "{id}:work", "{id}:chunks", "work", "a" * 24])
async def test_what_is_no_documents_id_is_not_found(serve: Service, path: str) -> None:
    client = await serve(embedder=ONNX)
    where = f"/documents/{path.format(id=(await add(client, 'Holiday', HOLIDAY))['id'])}"
    assert [(await client.get(where)).status_code, (await client.delete(where)).status_code] == [404, 404]


@pytest.mark.parametrize(
    ("sent", "word"),
    [
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, "boundary"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, "multipart"),
        ({"files": [("file", ("a.txt", b"One.")), ("file", ("b.txt", b"Two."))]}, "Too many files"),
    ],
)
async def test_a_wrong_form_is_refused_as_any_wrong_body(serve: Service, sent: dict[str, Any], word: str) -> None:
    client = await serve()
    response = await client.post("/documents", **sent)
    assert (response.status_code, response.json()["type"]) == (422, "urn:ragherd:problem:invalid-request")
    assert word in response.json()["detail"]


async def test_limits_on_size_and_count(serve: Service) -> None:
    client = await serve(embedder=ONNX, documents={"document_max_bytes": 100, "documents_max": 1})
    large = await client.post("/documents", files={"file": ("a.txt", b"word " * 40)})
    assert large.status_code == 413
    await add(client, "One", HOLIDAY[:60], source="one")
    full = await client.post("/documents", json={"title": "Two", "text": "More."})
    assert full.status_code == 409
    await add(client, "One", "Another text of the first.", source="one")


async def test_where_uploads_find_no_room_they_are_to_come_again(
    serve: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await serve(embedder=ONNX)
    with Path("/dev/full").open("r+b", buffering=0) as full:
        monkeypatch.setattr(formparsers, "SpooledTemporaryFile", lambda **_: full)
        refused = await client.post("/documents", files={"file": ("a.txt", HOLIDAY.encode())})
    assert refused.status_code == 503, refused.text
    assert refused.headers["Retry-After"] == "1"


async def test_a_large_file_is_worked_on_in_the_background_and_says_what_was_wrong(serve: Service) -> None:
    client = await serve(embedder=ONNX, documents={"ingest_wait": 0, "document_max_characters": 3_000_000})
    page = b"<title>Of its own</title><p>Kept.</p><!--" + b"x " * 700_000 + b"-->"
    large = await client.post("/documents", files={"file": ("a.html", page)}, data={"source": "a"})
    assert large.status_code == 202
    where = large.headers["Location"]
    broken = await client.post("/documents", files={"file": ("b.pdf", b"%PDF-1.7\n" + b"0" * 1_100_000)})
    assert broken.status_code == 202
    failing = broken.headers["Location"]

    async def ended() -> bool:
        return bool((await client.get(failing)).json()["status"] == "failed")

    await wait_until_async(ended)
    assert "PDF" in (await client.get(failing)).json()["error"]

    async def ready() -> bool:
        return bool((await client.get(where)).json()["status"] == "ready")

    await wait_until_async(ready)
    assert (await client.get(where)).json()["title"] == "Of its own"
    assert (await client.delete(where)).status_code == 204


async def test_a_large_file_that_fails_before_its_sender_is_answered_does_not_pass_for_stored(serve: Service) -> None:
    client = await serve(embedder=ONNX, documents={"ingest_wait": 20})
    blank = await client.post("/documents", files={"file": ("a.md", b" \n" * 600_000)})
    assert (blank.status_code, blank.json()["status"]) == (202, "failed")


async def test_with_the_embedder_away_the_document_waits(serve: Service, stub: StubOllama) -> None:
    stub.behaviour("status", path="/api/embed")
    client = await serve(documents={"ingest_wait": 0.1})
    waiting = await client.post("/documents", json={"title": "Holiday", "text": HOLIDAY})
    assert (waiting.status_code, waiting.json()["status"]) == (202, "processing")
    stub.behaviour()
    where = waiting.headers["Location"]

    async def ready() -> bool:
        return bool((await client.get(where)).json()["status"] == "ready")

    await wait_until_async(ready)
    await asyncio.sleep(0)


async def test_a_worker_that_looks_for_work_leaves_what_it_is_at_alone(
    serve: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "LOOK_SECONDS", 0.001)
    client = await serve(embedder=ONNX)
    for number in range(20):
        document = await add(client, f"Document {number}", f"{HOLIDAY} This is number {number}.")
        assert (await client.get(f"/documents/{document['id']}")).json()["status"] == "ready"


async def test_heaps_of_combining_marks_hold_up_no_worker(serve: Service) -> None:
    client = await serve(embedder=ONNX, documents={"ingest_wait": 0, "document_max_characters": 2_000_000})
    marks = ("# Marks\n\nTwo years. a" + "\u0315\u0300" * 300_000).encode()
    assert len(marks) > 1_200_000
    sent = await client.post("/documents", files={"file": ("marks.md", marks)})
    assert sent.status_code == 202
    where = sent.headers["Location"]

    async def ended() -> bool:
        return (await client.get(where)).json()["status"] in ("ready", "failed")

    await wait_until_async(ended, timeout=60)
    assert (await ask(client, "e" + "\u0315\u0300" * 3_990))["answer"]


@pytest.mark.parametrize(
    ("name", "status", "kept"),
    [
        ("+2AA-.xyz", 415, None),
        ("a+2AA-.txt", 201, "a.txt"),
        ("a+AAo-b.txt", 201, "a b.txt"),
        ("y" * 3000, 201, "y" * 500),
    ],
    ids=["unknown kind", "surrogate", "line break", "long"],
)
async def test_any_file_name_becomes_one_line_of_text(serve: Service, name: str, status: int, kept: str | None) -> None:
    client = await serve()
    part = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: text/plain'
    kind = "multipart/form-data; boundary=b; charset=utf-7"
    body = f"--b\r\n{part}\r\n\r\n{HOLIDAY}\r\n--b--\r\n".replace(
        "text/plain", "text/x" if status == 415 else "text/plain"
    )
    response = await client.post("/documents", content=body.encode(), headers={"Content-Type": kind})
    assert (response.status_code, response.json().get("source")) == (status, kept)
    assert kept is None or response.json()["title"] == kept


async def test_a_file_of_the_same_name_replaces_by_default(serve: Service) -> None:
    client = await serve()

    async def put(text: str, **params: str) -> httpx.Response:
        return await client.post("/documents", files={"file": ("rules.txt", text.encode())}, params=params)

    first = (await put(HOLIDAY)).json()
    assert (first["source"], first["outcome"]) == ("rules.txt", "created")
    assert (await put(HOLIDAY, on_conflict="refuse")).json()["outcome"] == "unchanged"
    refused = await put("The gate closes at nine.", on_conflict="refuse")
    assert (refused.status_code, refused.json()["type"].rpartition(":")[2]) == (409, "document-exists")
    assert (await client.get(f"/documents/{first['id']}")).json()["passages"][0]["text"] == HOLIDAY
    replaced = (await put("The gate closes at nine.")).json()
    assert (replaced["id"], replaced["outcome"]) == (first["id"], "updated")
    other = (await put("The gate closes at ten.", on_conflict="new")).json()
    assert (other["outcome"], other["source"]) == ("created", "rules.txt")
    assert other["id"] != first["id"]
    assert (await put("The gate closes at ten.", on_conflict="new")).json()["outcome"] == "unchanged"
    assert (await put(HOLIDAY, on_conflict="maybe")).status_code == 422


@pytest.mark.parametrize("padding", [0, 1_100_000], ids=["read at once", "read in the background"])
async def test_a_document_keeps_warnings_and_tags_of_its_file(serve: Service, padding: int) -> None:
    client = await serve()
    scan = (DATA / "pdf-partly-scanned.pdf").read_bytes() + b"\n%" + b" " * padding
    page = b"---\ntitle: Leave\ntags: [hr, travel]\n---\n\nThirty days.\n" + b"\n" * padding
    whole = (DATA / "pdf-table-one-text-object.pdf").read_bytes()

    async def stored(name: str, content: bytes, **fields: object) -> dict[str, Any]:
        sent = await client.post("/documents", files={"file": (name, content)}, data=fields)
        path, found = sent.headers["Location"], dict[str, Any]()

        async def is_ready() -> bool:
            found.update((await client.get(path)).json())
            return bool(found["status"] == "ready")

        await wait_until_async(is_ready)
        return found

    assert (await stored("a.pdf", scan))["warnings"] == ["3 of 4 pages (2-4) without text."]
    found = await stored("a.md", page)
    assert (found["title"], found["tags"], found["warnings"]) == ("Leave", ["hr", "travel"], [])
    assert (await stored("a.md", page, tags=["own"]))["tags"] == ["own"]
    assert (await stored("a.pdf", whole))["warnings"] == []
