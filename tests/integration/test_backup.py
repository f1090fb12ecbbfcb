"""`ragherd backup` and `ragherd restore` on a real Redis: exactly what was saved serves again."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import httpx
import numpy as np
import orjson
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from api.backup.archive import CHUNKS_PER_LINE
from api.errors import StoreUnavailable
from api.ports.answer_cache import CacheSweep, Selection, Swept
from api.ports.document_store import DocumentFacts, Draft
from api.redis_store.connections import BatchingRedis
from api.redis_store.health_gated import HealthGatedRedis
from api.redis_store.keys import Keys
from api.redis_store.stores.backup.target import RedisBackupTarget
from api.redis_store.stores.documents.document_records import RedisDocuments
from ragherd.commands import commands
from tests.integration.test_documents import CANTEEN, HOLIDAY, ONNX, add
from tests.stub_ollama import StubOllama
from tests.support.replies import fields, raw, texts
from tests.support.service import Service, ask
from tests.support.waiting import wait_until_async

Command = Callable[..., Awaitable[Result]]
pytestmark = pytest.mark.once(reason="files and keys are the same on every version")

NEW = "new:"
OLD_KEYS, NEW_KEYS = Keys(), Keys(NEW)
QUESTION, NEAR, ELSEWHERE = "Who approves my holiday?", "Who will approve my holiday?", "What is the capital?"
OTHER: dict[str, Any] = {"embedder": "ollama", "embed_timeout": 10}
ABOUT = {"created": "", "release": "", "schema": "1.0", "tenants": [], "documents": True, "cache": True}
HEADER = orjson.dumps({"is": "header", "format": 1, **ABOUT})
ROOT = Path(__file__).parents[2]


@pytest.fixture
def ragherd(redis_url: str, tmp_path: Path) -> Command:
    """Runs a command in a thread. `prefix` is REDIS_PREFIX."""

    async def run(*arguments: str, prefix: str = "rag:", **env: str) -> Result:
        said = {"REDIS_URL": redis_url, "REDIS_PREFIX": prefix, **env}
        return await asyncio.to_thread(lambda: CliRunner().invoke(commands, list(arguments), env=said))

    return run


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "fleet.backup")


async def ok(ragherd: Command, *arguments: str, **env: str) -> str:
    result = await ragherd(*arguments, **env)
    assert result.exit_code == 0, result.output
    return str(result.output)


async def new_fleet(serve: Service, **concerns: Any) -> httpx.AsyncClient:
    """Starts a worker with keys under another prefix."""
    return await serve(**{"embedder": ONNX, "redis": {"prefix": NEW}, **concerns})


def read(file: str) -> list[dict[str, Any]]:
    content = Path(file).read_bytes()
    plain = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    return [orjson.loads(line) for line in plain.splitlines()]


def write(file: str, lines: list[dict[str, Any]]) -> None:
    """Writes a complete backup with these lines, valid or not."""
    body = b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in lines if line["is"] != "end")
    counts: dict[str, int] = {}
    for line in lines:
        if line["is"] != "end":
            counts[line["is"]] = counts.get(line["is"], 0) + 1
    end = {"is": "end", "lines": counts, "sha256": hashlib.sha256(body).hexdigest()}
    Path(file).write_bytes(body + orjson.dumps(end, option=orjson.OPT_APPEND_NEWLINE))


# -- there and back ----------------------------------------------------------------------------------------------------


async def test_a_round_trip_into_another_prefix(
    serve: Service, redis: Redis, stub: StubOllama, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=ONNX)
    holiday = await add(client, "Holiday policy", HOLIDAY, tags=["hr"], source="holiday", version="3")
    canteen = await add(client, "Canteen", CANTEEN, tenant="acme")
    first, other = await ask(client, QUESTION), await ask(client, ELSEWHERE, top_k=0)
    entry = first["cache"]["entry"]
    ttl, fields = await redis.pttl(entry), await redis.hgetall(entry)
    assert "2 documents" in await ok(ragherd, "backup", file)
    assert await ok(ragherd, "restore", file, prefix=NEW) == "documents: restored 2\nanswers: restored 2\n"
    asked = stub.stats["requests"]["/api/chat"]
    restored = await new_fleet(serve)
    only_cached = {"Cache-Control": "only-if-cached"}

    async def is_indexed() -> bool:
        """Redis indexes what was restored in the background."""
        return (await restored.post("/query", json={"question": NEAR}, headers=only_cached)).is_success

    await wait_until_async(is_indexed)
    for question, kind in ((QUESTION, "exact"), (NEAR, "semantic")):
        hit = await ask(restored, question)
        assert (hit["cache"]["kind"], hit["answer"]) == (kind, first["answer"])
        assert [one["document_id"] for one in hit["sources"]] == [holiday["id"]]
        assert hit["sources"][0]["revision"] == (await restored.get(f"/documents/{holiday['id']}")).json()["revision"]
    assert (await ask(restored, ELSEWHERE, top_k=0))["answer"] == other["answer"]
    assert stub.stats["requests"]["/api/chat"] == asked
    found = await ask(restored, "On which floor is the canteen?", tenant="acme")
    assert [one["document_id"] for one in found["sources"]] == [canteen["id"]]
    for document, tenant in ((holiday, "default"), (canteen, "acme")):
        here = (await restored.get(f"/documents/{document['id']}", params={"tenant": tenant})).json()
        there = (await client.get(f"/documents/{document['id']}", params={"tenant": tenant})).json()
        assert {**here, "revision": 0} == {**there, "revision": 0}
    moved = entry.replace("rag:", NEW)
    assert ttl - 60_000 < await redis.pttl(moved) <= ttl
    kept = await redis.hgetall(moved)
    assert {n: v for n, v in kept.items() if n != b"sources"} == {n: v for n, v in fields.items() if n != b"sources"}
    assert [key async for key in redis.scan_iter(f"{NEW}doc:*:work")] == []


async def test_a_restore_converts_vectors_to_the_type_of_the_fleet(
    serve: Service, redis: Redis, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=ONNX)
    await add(client, "Holiday policy", HOLIDAY)
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    before = fields(await redis.hgetall(entry))
    await ok(ragherd, "backup", file)
    await ok(ragherd, "restore", file, prefix=NEW, SEMANTIC_CACHE_VECTOR_TYPE="float16")
    await ok(ragherd, "backup", file, prefix=NEW)
    await ok(ragherd, "restore", file, prefix="third:")
    short, back = [fields(await redis.hgetall(entry.replace("rag:", prefix))) for prefix in (NEW, "third:")]
    assert "vector" not in short
    assert (short["compared"], before["compared"], back["compared"]) == (b"exact,float16", b"meaning", b"meaning")
    rounded = np.frombuffer(before["vector"], "<f4").astype("<f2")
    assert short["vector16"] == rounded.tobytes()
    assert back["vector"] == rounded.astype("<f4").tobytes()


async def test_into_a_redis_that_was_emptied_nothing_is_embedded_anew(
    serve: Service, redis: Redis, stub: StubOllama, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=OTHER, retrieval={"retrieval_relevance_floor": -1})
    document = await add(client, "Holiday policy", HOLIDAY)
    answered = await ask(client, QUESTION)
    await ok(ragherd, "backup", file)
    await redis.flushall()
    embedded = stub.stats["requests"]["/api/embed"]
    await ok(ragherd, "restore", file)

    async def is_hit() -> bool:
        return bool((await ask(client, QUESTION))["cache"]["kind"] == "exact")

    await wait_until_async(is_hit)
    assert (await ask(client, QUESTION))["answer"] == answered["answer"]
    assert (await client.get(f"/documents/{document['id']}")).json()["status"] == "ready"
    assert stub.stats["requests"]["/api/embed"] == embedded


async def _content(redis: Redis, key: bytes) -> Any:
    """Of a hash its fields: in what order Redis has them may change by itself."""
    return await redis.hgetall(key) if await redis.type(key) == b"hash" else await redis.dump(key)


async def test_both_commands_can_print_json(serve: Service, ragherd: Command, file: str) -> None:
    client = await serve(embedder=ONNX)
    await add(client, "Holiday policy", HOLIDAY)
    counts = {"documents": 1, "chunk_lines": 1, "answers": 0}
    saved = await ragherd("backup", file, "--json")
    assert orjson.loads(saved.stdout) == {**counts, "dry_run": False}
    refused = await ragherd("backup", "-", "--json")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert orjson.loads((await ragherd("backup", "-", "--json", "--dry-run")).stdout) == {**counts, "dry_run": True}
    restored = await ragherd("restore", file, "--json", prefix=NEW)
    assert orjson.loads(restored.stdout) == {"documents": {"restored": 1}, "answers": {}, "dry_run": False}


async def test_restoring_twice_changes_nothing(serve: Service, redis: Redis, ragherd: Command, file: str) -> None:
    client = await serve(embedder=ONNX)
    await add(client, "Holiday policy", HOLIDAY)
    await ask(client, QUESTION)
    await ok(ragherd, "backup", file)
    await ok(ragherd, "restore", file, prefix=NEW)
    before = {key: await _content(redis, key) async for key in redis.scan_iter(f"{NEW}*")}
    said = await ok(ragherd, "restore", file, prefix=NEW)
    assert said == "documents: unchanged 1\nanswers: there already 1\n"
    assert await ok(ragherd, "restore", file, "--dry-run", prefix=NEW) == f"{said}Nothing was changed.\n"
    after = {key: await _content(redis, key) async for key in redis.scan_iter(f"{NEW}*")}
    changing = {f"{NEW}{key}".encode() for key in ("deleted", "corpus:embedders", "audit")}
    assert {key for key in before | after if before.get(key) != after.get(key)} <= changing


async def test_without_vectors_and_under_another_embedder_documents_are_embedded_anew(
    serve: Service, redis: Redis, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=ONNX)
    document = await add(client, "Holiday policy", HOLIDAY)
    await ok(ragherd, "backup", file, "--no-vectors", "--documents")
    assert not [line for line in read(file) if line["is"] == "chunks"]
    assert await ok(ragherd, "restore", file, prefix=NEW) == "documents: to embed 1\nanswers: none\n"
    restored = await new_fleet(serve)

    async def is_ready() -> bool:
        return bool((await restored.get(f"/documents/{document['id']}")).json()["status"] == "ready")

    await wait_until_async(is_ready)
    await ok(ragherd, "backup", file)
    await ok(ragherd, "restore", file, prefix="third:")
    third = await serve(embedder=OTHER, redis={"prefix": "third:"}, retrieval={"retrieval_relevance_floor": -1})
    assert [one["document_id"] for one in (await ask(third, QUESTION))["sources"]] == [document["id"]]

    async def is_embedded_twice() -> bool:
        names = texts(await redis.hkeys(Keys("third:").document(document["id"])))
        return sum(name.startswith("embedded:") for name in names) == 2

    await wait_until_async(is_embedded_twice)


async def test_chunks_of_two_embedders_are_both_kept(serve: Service, redis: Redis, ragherd: Command, file: str) -> None:
    client = await serve(embedder=ONNX)
    document = await add(client, "Holiday policy", HOLIDAY)
    await serve(embedder=OTHER)

    async def sets(keys: Keys) -> set[str]:
        found = fields(await redis.hgetall(keys.document(document["id"])))
        return {n for n, at in found.items() if n.startswith("embedded:") and at == found["revision"]}

    async def are_two() -> bool:
        return len(await sets(OLD_KEYS)) == 2

    await wait_until_async(are_two)
    await ok(ragherd, "backup", file)
    await ok(ragherd, "restore", file, prefix=NEW)
    assert await sets(NEW_KEYS) == await sets(OLD_KEYS)


async def test_a_large_text_and_unusual_ones_come_back_letter_by_letter(
    serve: Service, redis: Redis, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=OTHER, documents={"chunk_tokens": 500})
    large = "\n\n".join(f"Paragraph {number}: déjà vu, {HOLIDAY} \U0001f600" for number in range(6_000))
    unusual = 'A "quote", a \\ backslash,\ttabs\u2028and lines\u0085of all kinds.'
    for title, text in (("Large", large), ("Unusual", unusual)):
        await client.post("/documents", json={"title": title, "text": text, "source": title})

    async def are_ready() -> bool:
        listed = (await client.get("/documents")).json()["documents"]
        return [one["status"] for one in listed] == ["ready", "ready"]

    await wait_until_async(are_ready, timeout=60.0)
    await ok(ragherd, "backup", file)
    await ok(ragherd, "restore", file, prefix=NEW)
    texts = [key async for key in redis.scan_iter("rag:doc:*:text")]
    assert len(texts) == 2
    for key in texts:
        assert await redis.get(key) == await redis.get(key.replace(b"rag:", NEW.encode(), 1))
    chunks = [key async for key in redis.scan_iter("rag:chunk:*")]
    assert len([key async for key in redis.scan_iter(f"{NEW}chunk:*")]) == len(chunks) > 2 * CHUNKS_PER_LINE


async def test_a_file_that_a_worker_had_begun_with_does_not_become_the_text(
    serve: Service, redis: BatchingRedis, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=ONNX)
    await add(client, "Holiday", HOLIDAY)
    await ok(ragherd, "backup", file)
    document = next(line for line in read(file) if line["is"] == "document")
    gate = HealthGatedRedis(redis, 4)
    assert await gate.check()
    facts = DocumentFacts(document["tenant"], document["title"])
    begun = Draft(document["id"], facts, document["digest"], b"%PDF", "application/pdf")
    await RedisDocuments(gate, NEW_KEYS).propose(begun, 10)
    assert "to embed 1" in await ok(ragherd, "restore", "--replace", file, prefix=NEW)
    assert await redis.get(NEW_KEYS.document_draft(document["id"])) == b"%PDF"
    assert await redis.get(NEW_KEYS.document_text(document["id"])) is None


async def test_only_its_owner_can_read_it(serve: Service, redis: Redis, ragherd: Command, file: str) -> None:
    await ok(ragherd, "backup", file)
    assert Path(file).stat().st_mode & 0o777 == 0o600


async def test_only_what_is_asked_for(serve: Service, redis: Redis, ragherd: Command, file: str) -> None:
    client = await serve(embedder=ONNX)
    for tenant in ("acme", "umbrella"):
        await add(client, "Holiday policy", HOLIDAY, tenant=tenant)
        await ask(client, QUESTION, tenant=tenant)
    await ok(ragherd, "backup", file, "--tenant", "acme")
    assert {line["tenant"] for line in read(file) if line["is"] == "document"} == {"acme"}
    assert {line["fields"]["tenant"] for line in read(file) if line["is"] == "answer"} == {"acme"}
    await ok(ragherd, "backup", file)
    said = await ok(ragherd, "restore", file, "--tenant", "umbrella", "--documents", prefix=NEW)
    assert said == "documents: restored 1\nanswers: none\n"
    said = await ok(ragherd, "restore", file, "--cache", prefix=NEW)
    assert sorted(said.splitlines()) == ["answers: outdated 1, restored 1", "documents: none"]
    await ok(ragherd, "backup", file, "--cache")
    assert {line["is"] for line in read(file)} == {"header", "deleted", "answer", "corpora", "end"}


async def test_a_dry_run_writes_nothing(serve: Service, redis: Redis, ragherd: Command, file: str) -> None:
    client = await serve(embedder=ONNX)
    await add(client, "Holiday policy", HOLIDAY)
    await ask(client, QUESTION)
    assert "Would save 1 documents" in await ok(ragherd, "backup", file, "--dry-run")
    assert not Path(file).exists()
    await ok(ragherd, "backup", file)
    said = await ok(ragherd, "restore", file, "--dry-run", prefix=NEW)
    assert said == "documents: restored 1\nanswers: restored 1\nNothing was changed.\n"
    await ok(ragherd, "backup", file, prefix=NEW)
    assert [key async for key in redis.scan_iter(f"{NEW}*")] == [], "who only reads says nothing of the keys"


def test_it_can_be_piped(redis: Redis, redis_url: str) -> None:
    env = {**os.environ, "REDIS_URL": redis_url, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-m", "ragherd"]
    saved = subprocess.run([*run, "backup", "-"], env=env, cwd=ROOT, capture_output=True, check=True)
    assert gzip.decompress(saved.stdout).splitlines()[-1].startswith(b'{"is":"end"')
    assert saved.stderr.startswith(b"Saved 0 documents")
    put = subprocess.run([*run, "restore", "-"], env=env, cwd=ROOT, input=saved.stdout, capture_output=True, check=True)
    assert put.stdout == b"documents: none\nanswers: none\n"
    assert put.stderr == b""


def test_a_backup_that_failed_writes_no_more() -> None:
    """Development mode reports the errors of finalizers on every version of Python."""
    program = """
from io import BytesIO
from api.backup.archive import BackupWriter
with BytesIO() as file:
    writer = BackupWriter(file)
    writer.write({"is": "header"})
"""
    run = [sys.executable, "-X", "dev", "-c", program]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "closed file" not in done.stderr


async def test_pipes_are_written_to_and_read_from_and_links_followed(
    redis: Redis, ragherd: Command, file: str, tmp_path: Path
) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "latest"
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    await ok(ragherd, "backup", str(pipe), "--plain")
    saved = os.read(end, 65_536)
    os.close(end)
    assert saved.splitlines()[-1].startswith(b'{"is":"end"')
    restored, _ = await asyncio.gather(ok(ragherd, "restore", str(pipe)), asyncio.to_thread(pipe.write_bytes, saved))
    assert restored == "documents: none\nanswers: none\n"
    link.symlink_to(file)
    await ok(ragherd, "backup", str(link))
    assert link.is_symlink()
    assert read(file)[-1]["is"] == "end"


# -- what must not come back -------------------------------------------------------------------------------------------


async def test_an_answer_of_a_document_that_is_another_now_is_left_out(
    serve: Service, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=ONNX)
    await add(client, "Holiday policy", HOLIDAY, source="holiday")
    await ask(client, QUESTION)
    await ok(ragherd, "backup", file)
    await add(client, "Holiday policy", "Holiday is approved by nobody.", source="holiday")
    said = await ok(ragherd, "restore", file)
    assert said == "documents: newer kept 1\nanswers: outdated 1\n"
    assert (await ask(client, QUESTION))["sources"][0]["text"] == "Holiday is approved by nobody."
    replaced = await ok(ragherd, "restore", file, "--replace", "--documents")
    assert replaced == "documents: restored 1\nanswers: none\n"
    again = await ask(client, QUESTION)
    assert (again["cache"]["status"], again["sources"][0]["text"]) == ("miss", HOLIDAY)


async def test_where_there_are_further_documents_grounded_answers_are_stale(
    serve: Service, redis: Redis, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=ONNX)
    await add(client, "Holiday policy", HOLIDAY)
    await ask(client, QUESTION)
    await ask(client, ELSEWHERE, top_k=0)
    await ok(ragherd, "backup", file, "--cache")
    entries = [key async for key in redis.scan_iter("rag:cache:*")]
    await redis.unlink(*entries)
    assert await ok(ragherd, "restore", file, "--cache") == "documents: none\nanswers: restored 2\n"
    await redis.unlink(*entries)
    await add(client, "Further policy", "Holiday on Fridays is approved by the office.")
    said = await ok(ragherd, "restore", file, "--cache")
    assert "restored stale 1" in said
    assert "restored 1" in said
    afresh = await ask(client, QUESTION)
    assert (afresh["cache"]["status"], len(afresh["sources"])) == ("miss", 2)
    assert (await ask(client, ELSEWHERE, top_k=0))["cache"]["kind"] == "exact"
    await redis.unlink(*entries)
    said = await ok(ragherd, "restore", file, "--cache", CACHE_ON_NEW_DOCUMENTS="none")
    assert said == "documents: none\nanswers: restored 2\n"


async def test_what_was_deleted_since_stays_deleted(serve: Service, redis: Redis, ragherd: Command, file: str) -> None:
    client = await serve(embedder=ONNX)
    questions = {"question": QUESTION, "tenant": "acme"}
    await ask(client, QUESTION)
    await ask(client, ELSEWHERE)
    await ask(client, ELSEWHERE, tenant="acme")
    await ok(ragherd, "backup", file)
    await client.delete("/api/semantic-cache", params={"question": questions["question"]})
    await client.delete("/api/semantic-cache", params={"tenant": "acme"})
    await redis.delete(OLD_KEYS.partition("").invalidated)  # as it is an hour later
    for key in [key async for key in redis.scan_iter("rag:cache:*")]:
        await redis.unlink(key)
    said = await ok(ragherd, "restore", file)
    assert said == "documents: none\nanswers: deleted since 2, restored 1\n"
    assert (await ask(client, ELSEWHERE))["cache"]["kind"] == "exact"
    assert (await ask(client, QUESTION))["cache"]["status"] == "miss"


async def test_a_quarantined_answer_does_not_come_back(
    serve: Service, redis: Redis, ragherd: Command, file: str
) -> None:
    client = await serve()
    answer = await ask(client, "Who approves my holiday?")
    await ok(ragherd, "backup", file)
    vote = {"request_id": answer["request_id"], "verdict": "bad"}
    assert (await client.post("/feedback", json=vote)).status_code == 202
    await redis.delete("rag:invalidated")  # the tag of the vote lives for an hour only
    assert await ok(ragherd, "restore", file) == "documents: none\nanswers: deleted since 1\n"
    assert not await redis.exists(answer["cache"]["entry"])


async def test_deletions_travel_with_the_backup(
    serve: Service, redis: Redis, ragherd: Command, file: str, tmp_path: Path
) -> None:
    client, older = await serve(embedder=ONNX), str(tmp_path / "older.backup")
    await ask(client, QUESTION)
    await ok(ragherd, "backup", older)
    await client.delete("/api/semantic-cache", params={"all": "true"})
    await ok(ragherd, "backup", file)
    await ok(ragherd, "restore", file, prefix=NEW)
    assert await ok(ragherd, "restore", older, prefix=NEW) == "documents: none\nanswers: deleted since 1\n"


async def test_a_dry_run_counts_with_the_deletions_of_the_backup(serve: Service, ragherd: Command, file: str) -> None:
    client = await serve(embedder=ONNX)
    await ask(client, ELSEWHERE)
    await client.delete("/api/semantic-cache", params={"question": QUESTION, "similarity": 0.9})
    await ok(ragherd, "backup", file)
    dry = await ok(ragherd, "restore", file, "--dry-run", prefix=NEW)
    assert dry == "documents: none\nanswers: deleted since 1\nNothing was changed.\n"
    assert dry.startswith(await ok(ragherd, "restore", file, prefix=NEW))


async def test_a_tenant_s_backup_says_nothing_of_others(
    serve: Service, redis: Redis, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=ONNX)
    for tenant in ("acme", "rival"):
        await client.delete("/api/semantic-cache", params={"tenant": tenant})
    await ok(ragherd, "backup", "--plain", "--tenant", "acme", file)
    assert "tenant:acme" in Path(file).read_text()
    assert "rival" not in Path(file).read_text()
    await ok(ragherd, "backup", file)
    await ok(ragherd, "restore", "--tenant", "acme", file, prefix=NEW)
    assert await redis.zrange(NEW_KEYS.cache_deleted, 0, -1) == [b"tenant:acme"]


async def test_answers_age_in_the_backup_and_newer_ones_stay(
    serve: Service, redis: Redis, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=ONNX)
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    await ask(client, ELSEWHERE)
    await ok(ragherd, "backup", file, "--plain")
    newer = (await ask(client, QUESTION, headers={"Cache-Control": "no-cache"}))["cache"]["entry"]
    assert newer == entry
    created = await redis.hget(entry, "created_ms")
    assert await ok(ragherd, "restore", file) == "documents: none\nanswers: there already 2\n"
    assert await redis.hget(entry, "created_ms") == created
    lines = read(file)
    for line in lines:
        if line["is"] == "answer" and line["fields"]["question"] == QUESTION:
            line["gone_ms"] = int(line["fields"]["created_ms"]) + 1
    write(file, lines)
    assert await ok(ragherd, "restore", file, prefix=NEW) == "documents: none\nanswers: expired 1, restored 1\n"


async def test_restored_answers_drive_out_none_that_live(
    serve: Service, redis: Redis, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=ONNX)
    for question in (QUESTION, ELSEWHERE, "And what else?"):
        await ask(client, question)
    await ok(ragherd, "backup", file)
    said = await ok(ragherd, "restore", file, prefix=NEW, SEMANTIC_CACHE_MAX_SIZE="2")
    assert said == "documents: none\nanswers: restored 2, no room 1\n"
    assert len([key async for key in redis.scan_iter(f"{NEW}cache:*")]) == 2
    assert await redis.zcard(NEW_KEYS.partition("").eviction_keys[0]) == 2


# -- back to an earlier state ------------------------------------------------------------------------------------------


async def rewound(ragherd: Command, file: str, *options: str) -> tuple[int, dict[str, int]]:
    """Restores the cached answers. Returns how many newer ones were deleted, and the outcomes."""
    found = orjson.loads(await ok(ragherd, "restore", "--cache", "--rewind", "--json", *options, file))
    assert found["dry_run"] == ("--dry-run" in options)
    return found["newer_deleted"], found["answers"]


async def test_a_rewind_puts_the_cache_back_to_the_state_of_the_backup(
    serve: Service, redis: Redis, stub: StubOllama, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=ONNX)
    good = (await ask(client, QUESTION))["answer"]
    kept = await redis.hgetall((await ask(client, "Where is the canteen?", tenant="acme"))["cache"]["entry"])
    await ok(ragherd, "backup", file)
    stub.behaviour(answer="A wrong answer.")
    fresh = {"Cache-Control": "no-cache"}
    assert (await ask(client, QUESTION, headers=fresh))["answer"] == "A wrong answer."
    await ask(client, ELSEWHERE)
    after = await ask(client, ELSEWHERE, tenant="acme")
    assert "answers: there already 2" in await ok(ragherd, "restore", "--cache", file)

    rewind = partial(rewound, ragherd, file)
    assert await rewind("--tenant", "acme", "--dry-run") == (1, {"there already": 1})
    expected = (3, {"restored": 1, "there already": 1})
    assert await rewind("--dry-run") == expected
    assert await rewind() == expected
    back = await ask(client, QUESTION)
    assert (back["cache"]["status"], back["answer"]) == ("hit", good)
    assert not await redis.exists(after["cache"]["entry"])
    assert await redis.hgetall((await ask(client, "Where is the canteen?", tenant="acme"))["cache"]["entry"]) == kept
    assert await rewind() == (0, {"there already": 2})


async def test_a_rewind_deletes_only_answers_of_tenants_in_the_backup(
    serve: Service, redis: Redis, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=ONNX)
    await ok(ragherd, "backup", "--tenant", "acme", file)
    acme = (await ask(client, QUESTION, tenant="acme"))["cache"]["entry"]
    other = (await ask(client, ELSEWHERE))["cache"]["entry"]
    rewind = partial(rewound, ragherd, file)
    assert (await rewind("--tenant", "default"))[0] == 0
    assert (await rewind("--dry-run"))[0] == (await rewind())[0] == 1
    assert [await redis.exists(key) for key in (acme, other)] == [0, 1]


async def test_a_rewind_without_cached_answers_is_refused(
    serve: Service, redis: Redis, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=ONNX)
    await ok(ragherd, "backup", "--documents", file)
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    refused = await ragherd("restore", "--rewind", file)
    assert (refused.exit_code, "no cached answers" in refused.output) == (1, True)
    assert await redis.exists(entry)


async def test_a_rewind_that_runs_out_of_time_says_so() -> None:
    class Slow:
        async def sweep(self, _selection: Selection, *, dry_run: bool) -> Swept:
            return Swept(3, 3, complete=dry_run)

    target = RedisBackupTarget(Mock(), Mock(), Mock(), cast(CacheSweep, Slow()))
    assert await target.rewind(1, (), dry_run=True) == 3
    with pytest.raises(StoreUnavailable, match="in time"):
        await target.rewind(1, (), dry_run=False)


async def test_a_rewind_to_a_backup_without_milliseconds_keeps_its_whole_second(
    serve: Service, redis: Redis, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=ONNX)
    entry = (await ask(client, QUESTION))["cache"]["entry"]
    await ok(ragherd, "backup", file, "--plain")
    created = int(raw(await redis.hget(entry, "created_ms")))
    lines = read(file)
    del lines[0]["created_ms"]
    second = datetime.fromtimestamp(created // 1000, UTC).isoformat()
    write(file, [{**lines[0], "created": second}, *lines[1:]])
    assert (await ok(ragherd, "restore", "--rewind", file)).startswith("newer answers: deleted 0\n")
    write(file, [{**lines[0], "created": "some day"}, *lines[1:]])
    refused = await ragherd("restore", "--rewind", file)
    assert (refused.exit_code, "when it was taken" in refused.output) == (1, True)
    assert (await ragherd("restore", "--rewind", "--documents", file)).exit_code == 2
    assert await redis.exists(entry)


async def test_answers_deleted_by_release_or_time_do_not_come_back_and_earlier_ones_do(
    serve: Service, redis: Redis, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=ONNX)
    early = (await ask(client, QUESTION))["cache"]["entry"]
    bad = (await ask(client, ELSEWHERE))["cache"]["entry"]
    await redis.hset(bad, "release", "9.9.9")
    late = (await ask(client, "Where is the canteen?"))["cache"]["entry"]
    created = raw(await redis.hget(late, "created_ms")).decode()
    await ok(ragherd, "backup", file)
    await client.delete("/api/semantic-cache", params={"release": "9.9.9"})
    await client.delete("/api/semantic-cache", params={"since": created})
    await redis.delete("rag:invalidated", early)  # the tags there live for an hour only
    for options in (("--dry-run",), ()):
        found = orjson.loads(await ok(ragherd, "restore", "--json", *options, file))
        assert found["answers"] == {"deleted since": 2, "restored": 1}
    assert [await redis.exists(key) for key in (early, bad, late)] == [1, 0, 0]


# -- unusable files ----------------------------------------------------------------------------------------------------


@pytest.fixture
async def saved(serve: Service, ragherd: Command, file: str) -> str:
    client = await serve(embedder=ONNX)
    await add(client, "Holiday policy", HOLIDAY)
    await ask(client, QUESTION)
    await ok(ragherd, "backup", file, "--plain")
    return file


async def assert_refused(ragherd: Command, redis: Redis, file: str, word: str) -> None:
    result = await ragherd("restore", file, prefix=NEW)
    assert result.exit_code == 1
    assert len(result.output.strip().splitlines()) == 1, result.output
    assert word in result.output
    assert [key async for key in redis.scan_iter(f"{NEW}*")] == []


async def test_a_truncated_file_is_refused_before_anything_is_written(
    saved: str, ragherd: Command, redis: Redis
) -> None:
    whole = Path(saved).read_bytes()
    for size in (0, 1, len(whole) // 3, len(whole) // 2, whole.rindex(b'{"is":"end"'), len(whole) - 2):
        Path(saved).write_bytes(whole[:size])
        await assert_refused(ragherd, redis, saved, "truncated" if size else "empty")
    packed = gzip.compress(whole)
    for size in (len(packed) // 2, len(packed) - 4):
        Path(saved).write_bytes(packed[:size])
        await assert_refused(ragherd, redis, saved, "truncated")


async def test_a_damaged_file_is_refused(saved: str, ragherd: Command, redis: Redis) -> None:
    whole = Path(saved).read_bytes()
    Path(saved).write_bytes(whole.replace(b"team lead", b"team fool"))
    await assert_refused(ragherd, redis, saved, "checksum")
    packed = bytearray(gzip.compress(whole))
    packed[len(packed) // 2] ^= 255
    Path(saved).write_bytes(packed)
    await assert_refused(ragherd, redis, saved, "damaged")
    Path(saved).write_bytes(whole + whole)
    await assert_refused(ragherd, redis, saved, "after its last line")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"hello\n", "not a Ragherd backup"),
        (b"[1]\n", "not a Ragherd backup"),
        (b'{"is": "answer"}\n', "not a Ragherd backup"),
        (HEADER + b'\n{"is": "corpora"}\n', "truncated"),
        (b"\x1f\x8bxx", "truncated"),
    ],
)
async def test_what_is_no_backup_is_refused(
    redis: Redis, ragherd: Command, file: str, content: bytes, word: str
) -> None:
    Path(file).write_bytes(content)
    await assert_refused(ragherd, redis, file, word)


async def test_a_file_of_a_newer_format_is_refused_and_further_lines_of_this_one_are_not(
    saved: str, ragherd: Command, redis: Redis
) -> None:
    lines = read(saved)
    write(saved, [{**lines[0], "format": 2, "release": "9.9.9"}, *lines[1:]])
    await assert_refused(ragherd, redis, saved, "format 2 of Ragherd 9.9.9")
    lines[1]["colour"] = "red"
    write(saved, [{**lines[0], "hint": "x"}, {"is": "footnote", "text": "x"}, *lines[1:]])
    assert "documents: restored 1" in await ok(ragherd, "restore", saved, prefix=NEW)


async def test_faults_are_one_line(redis: Redis, ragherd: Command, tmp_path: Path) -> None:
    missing = await ragherd("restore", str(tmp_path / "missing"))
    nowhere = await ragherd("backup", str(tmp_path / "x"), REDIS_URL="redis://127.0.0.1:1")
    bad = await ragherd("backup", str(tmp_path / "x"), REDIS_URL="http://x")
    await redis.hset(OLD_KEYS.corpus_schema, "version", "9.0")
    newer = await ragherd("backup", str(tmp_path / "x"))
    assert [one.exit_code for one in (missing, nowhere, bad, newer)] == [1, 1, 2, 1]
    for one, word in ((missing, "No such file"), (nowhere, "Redis"), (bad, "REDIS_URL"), (newer, "schema 9.0")):
        lines = one.output.splitlines()
        assert len(lines) == 1, one.output
        assert word in lines[0]
    assert "again" not in missing.output, "there is nothing to go on with"
    assert list(tmp_path.iterdir()) == []


# -- while the service works -------------------------------------------------------------------------------------------


def run(redis_url: str, *arguments: str, prefix: str = "rag:") -> str:
    """Runs a command as a process."""
    env = {**os.environ, "REDIS_URL": redis_url, "REDIS_PREFIX": prefix, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ragherd", *arguments]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, check=True, text=True).stdout


def assert_consistent(file: str) -> None:
    """Checks that the cited passages match the document in the file."""
    documents = {line["id"]: line for line in read(file) if line["is"] == "document"}
    assert len(documents) == 10
    for line in read(file):
        if line["is"] == "answer":
            cited = {documents[one]["source"]: documents[one]["digest"] == at for one, at in line["cites"].items()}
            assert all(same for source, same in cited.items() if source != "n3")


async def test_backup_and_restore_while_documents_change_and_questions_are_asked(
    serve: Service, redis: Redis, redis_url: str, file: str
) -> None:
    client, other = await serve(embedder=ONNX), await serve(embedder=ONNX)
    for number in range(10):
        await add(client, f"Number {number}", f"The number {number} is kept in drawer {number}.", source=f"n{number}")
    over, statuses = asyncio.Event(), list[int]()

    async def work() -> None:
        number = 0
        while not over.is_set():
            number += 1
            body = {"title": "Number 3", "text": f"The number 3 is kept in drawer {number}.", "source": "n3"}
            statuses.append((await other.post("/documents", json=body)).status_code)
            asked = {"question": f"Where is the number {number % 10}?"}
            statuses.append((await client.post("/query", json=asked)).status_code)

    working = asyncio.create_task(work())
    try:
        await asyncio.to_thread(run, redis_url, "backup", file)
        assert_consistent(file)
        await asyncio.to_thread(run, redis_url, "restore", file)
    finally:
        over.set()
        await working
    assert set(statuses) <= {200, 201, 202}
    await asyncio.to_thread(run, redis_url, "restore", file, prefix=NEW)
    restored = await new_fleet(serve)
    listed = (await restored.get("/documents")).json()["documents"]
    assert sorted(one["source"] for one in listed) == [f"n{number}" for number in range(10)]
    assert {one["status"] for one in listed} == {"ready"}
    answered = await ask(restored, "Where is the number 7?", headers={"Cache-Control": "no-cache"})
    assert "drawer 7" in answered["sources"][0]["text"]


async def test_a_passage_that_could_not_be_embedded_comes_back_as_one(
    serve: Service, stub: StubOllama, redis: Redis, ragherd: Command, file: str
) -> None:
    client = await serve(embedder=OTHER, documents={"chunk_tokens": 16, "chunk_overlap": 0})
    message = "json: unsupported value: NaN"
    stub.behaviour("bad_text", status=500, message=message, path="/api/embed")
    text = "## One\n\nThis is unembeddable, all of it, and long.\n\n## Two\n\nThe canteen opens at noon on every day."
    stored = await client.post("/documents", json={"title": "Rules", "text": text, "source": "rules"})
    failed = [{"chunk": 0, "reason": f"Ollama answered 500: {message}"}]
    assert (stored.status_code, stored.json()["failed_chunks"]) == (201, failed), stored.text
    await ok(ragherd, "backup", file)
    await ok(ragherd, "restore", file, prefix=NEW)
    again = await new_fleet(serve, embedder=OTHER)
    found = (await again.get(f"/documents/{stored.json()['id']}")).json()
    assert (found["status"], found["chunks"], found["failed_chunks"]) == ("ready", 2, failed)
