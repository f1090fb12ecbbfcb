"""API keys in Redis, with two workers of the real service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from api.embedded.redis_server import EmbeddedRedis
from api.endpoints.known_keys import KnownKeys
from api.ports.access import FoundKey, KeyRecord, KeySpec, digest_of, new_id, new_secret
from api.redis_store.stores import access_keys
from api.settings import AccessSettings
from tests.support.replies import texts
from tests.support.service import Service
from tests.support.waiting import wait_until_async

PATH = "/api/keys"
ROOT = {"Authorization": "Bearer the-admin-key"}
ACCESS: dict[str, Any] = {"require_keys": True, "admin_keys": "the-admin-key", "wrong_key_delay": 0.0}
QUESTION = {"question": "Who may ask?"}


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def created(client: httpx.AsyncClient, tenant: str = "acme", **more: Any) -> Any:
    response = await client.post(PATH, json={"tenant": tenant, **more}, headers=ROOT)
    assert response.status_code == 201, response.text
    return response.json()


async def status(client: httpx.AsyncClient, secret: str, body: dict[str, Any] = QUESTION, path: str = "/query") -> int:
    return (await client.post(path, json=body, headers=bearer(secret))).status_code


@pytest.fixture
async def workers(serve: Service) -> list[httpx.AsyncClient]:
    return [await serve(access=ACCESS), await serve(access=ACCESS)]


async def known_to_all(workers: Sequence[httpx.AsyncClient], secret: str) -> None:
    """Asks until each worker answers from its fast path."""
    for client in workers:
        for _ in range(3):
            assert await status(client, secret) == 200


async def test_a_new_key_works_at_once_everywhere_and_only_its_digest_is_stored(
    workers: list[httpx.AsyncClient], redis: Redis
) -> None:
    one, other = workers
    key = await created(one, name="web shop")
    secret = key.pop("secret")
    assert secret.startswith(key["prefix"])
    assert (key["tenant"], key["role"], key["name"], key["expires_at"]) == ("acme", "user", "web shop", None)
    for client in workers:
        assert await status(client, secret) == 200
        assert await status(client, secret, {**QUESTION, "tenant": "acme"}) == 200
        assert await status(client, secret, {**QUESTION, "tenant": "globex"}) == 403, "another tenant's"
        assert (await client.get(PATH, headers=bearer(secret))).status_code == 403
        assert (await client.post("/query", json=QUESTION, headers={"X-Api-Key": secret})).status_code == 200
        assert (await client.post("/query", json=QUESTION)).status_code == 401
    stored = texts([*(await redis.hgetall(f"rag:key:{key['id']}")).values()])
    assert digest_of(secret) in stored
    assert not [value for value in stored if secret.removeprefix(key["prefix"]) in value]
    await created(other, "globex")
    listed = (await other.get(PATH, headers=ROOT)).json()["keys"]
    assert [one["tenant"] for one in listed] == ["acme", "globex"]
    assert "secret" not in listed[0]
    assert [one["id"] for one in (await one.get(PATH, params={"tenant": "acme"}, headers=ROOT)).json()["keys"]] == [
        key["id"]
    ]


async def test_a_wrong_secret_with_a_known_id_is_refused_before_the_body_is_read(
    workers: list[httpx.AsyncClient],
) -> None:
    key = await created(workers[0])
    for wrong in (new_secret(key["id"]), new_secret(new_id()), key["secret"][:-1], f"{key['secret']}x"):
        response = await workers[1].post("/query", content=b"{", headers=bearer(wrong))
        assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert await status(workers[1], key["secret"]) == 200


@pytest.mark.timed
async def test_every_worker_refuses_a_revoked_key_within_a_second(workers: list[httpx.AsyncClient]) -> None:
    key, kept = await created(workers[0]), await created(workers[0])
    await known_to_all(workers, key["secret"])
    gone = await workers[0].delete(f"{PATH}/{key['id']}", headers=ROOT)
    assert (gone.status_code, gone.json()["id"]) == (200, key["id"])
    ended = time.monotonic()

    async def is_refused() -> bool:
        return [await status(client, key["secret"]) for client in workers] == [401, 401]

    await wait_until_async(is_refused, timeout=5, interval=0.005)
    assert time.monotonic() - ended < 1
    assert await status(workers[1], kept["secret"]) == 200
    assert (await workers[1].delete(f"{PATH}/{key['id']}", headers=ROOT)).status_code == 404
    audited = (await workers[0].get("/api/audit", headers=ROOT)).json()["entries"]
    assert [one["details"]["key"] for one in audited if one["action"] == "key.revoke"] == [key["id"]] * 2


async def test_a_rotated_key_works_on_for_as_long_as_asked(workers: list[httpx.AsyncClient]) -> None:
    one, other = workers
    first = await created(one)
    await known_to_all(workers, first["secret"])
    path = f"{PATH}/{first['id']}/rotate"
    second = (await one.post(path, params={"overlap_seconds": 3600}, headers=ROOT)).json()
    assert second["former_valid_until"] is not None
    assert [await status(other, key["secret"]) for key in (first, second)] == [200, 200]
    third = (await one.post(path, headers=ROOT)).json()
    assert (third["id"], third["former_valid_until"]) == (first["id"], None)

    async def only_the_third() -> bool:
        return [await status(other, key["secret"]) for key in (first, second, third)] == [401, 401, 200]

    await wait_until_async(only_the_third, timeout=2)
    assert (await one.post(f"{PATH}/{new_id()}/rotate", headers=ROOT)).status_code == 404


async def test_a_key_expires_also_where_it_is_known(workers: list[httpx.AsyncClient]) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=0.6)).isoformat()
    key = await created(workers[0], expires_at=soon)
    await known_to_all(workers[:1], key["secret"])

    async def has_expired() -> bool:
        return await status(workers[0], key["secret"]) == 401

    await wait_until_async(has_expired)
    assert await status(workers[1], key["secret"]) == 401
    late = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
    assert (await created(workers[0], expires_at=late))["expires_at"] == "2100-01-01T00:00:00.000Z"
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    for refused in (past, "tomorrow", -1):
        response = await workers[0].post(PATH, json={"tenant": "acme", "expires_at": refused}, headers=ROOT)
        assert response.status_code == 422


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/query", QUESTION),
        ("/api/chat", {"messages": [{"role": "user", "content": "Who?"}], "stream": False}),
        ("/api/generate", {"prompt": "Who?", "stream": False}),
        ("/api/generate", {"prompt": "Who?", "stream": False, "raw": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Who?"}]}),
        ("/api/embed", {"input": "Who?"}),
    ],
)
async def test_a_key_may_use_only_its_models(serve: Service, path: str, body: dict[str, Any]) -> None:
    client = await serve(access=ACCESS)
    allowed = "nomic-embed-text" if path == "/api/embed" else "llama3.2"
    secret = (await created(client, models=[allowed]))["secret"]
    assert await status(client, secret, {**body, "model": f"{allowed}:latest"}, path) == 200
    assert await status(client, secret, {**body, "model": "mistral"}, path) == 403


async def test_each_role_may_do_what_lower_ones_may(serve: Service) -> None:
    client = await serve(access=ACCESS)
    secrets = {role: (await created(client, role=role))["secret"] for role in ("user", "operator", "admin")}
    report, change = "/api/circuit-breaker/metrics", "/api/circuit-breaker/reset"
    asked = {role: await status(client, secret) for role, secret in secrets.items()}
    read = {role: (await client.get(report, headers=bearer(one))).status_code for role, one in secrets.items()}
    changed = {role: (await client.post(change, headers=bearer(one))).status_code for role, one in secrets.items()}
    assert asked == {"user": 200, "operator": 200, "admin": 200}
    assert read == {"user": 403, "operator": 200, "admin": 200}
    assert changed == {"user": 403, "operator": 403, "admin": 200}
    assert (await client.get(report)).status_code == 401
    assert (await client.get("/health/ready")).status_code == 200


async def test_without_redis_known_keys_work_on_and_unknown_ones_are_not_called_wrong(
    serve: Service, redis_server: EmbeddedRedis
) -> None:
    client = await serve(access={**ACCESS, "api_keys": "globex=of-the-settings"})
    known, unknown = await created(client), await created(client)
    assert await status(client, known["secret"]) == 200
    redis_server.kill()
    try:
        assert await status(client, known["secret"]) == 200
        assert await status(client, "of-the-settings") == 200
        response = await client.post("/query", json=QUESTION, headers=bearer(unknown["secret"]))
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert response.json()["type"] == "urn:ragherd:problem:keys-unavailable"
        assert await status(client, "rgh_not-the-form-of-a-key") == 401
        assert (await client.post(PATH, json={"tenant": "acme"}, headers=ROOT)).status_code == 503
    finally:
        redis_server.start()


async def test_the_last_use_is_written(workers: list[httpx.AsyncClient]) -> None:
    key = await created(workers[0])
    assert await status(workers[1], key["secret"]) == 200

    async def is_written() -> bool:
        (listed,) = (await workers[0].get(PATH, headers=ROOT)).json()["keys"]
        return listed["last_used_at"] is not None

    await wait_until_async(is_written)


async def test_keys_are_limited_in_number(serve: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_keys, "MOST", 1)
    client = await serve(access=ACCESS)
    key = await created(client)
    response = await client.post(PATH, json={"tenant": "acme"}, headers=ROOT)
    assert (response.status_code, response.json()["type"]) == (409, "urn:ragherd:problem:key-limit")
    await client.delete(f"{PATH}/{key['id']}", headers=ROOT)
    await created(client)


# -- one worker's copies -----------------------------------------------------------------------------------------------


class StoredKeys:
    """A store whose replies a test can hold back."""

    def __init__(self) -> None:
        self.now_epoch = 1
        self.reads = 0
        self.record: KeyRecord | None = None
        self.may_reply = asyncio.Event()
        self.may_reply.set()

    async def read(self, key_id: str) -> FoundKey:
        self.reads += 1
        found = FoundKey(self.now_epoch, 1_000, self.record)
        await self.may_reply.wait()
        return found

    async def epoch(self) -> int:
        return self.now_epoch

    async def used(self, key_ids: Sequence[str]) -> None: ...

    async def create(self, key_id: str, digest: str, spec: KeySpec) -> None: ...

    async def rotate(self, key_id: str, digest: str, overlap_ms: int) -> None: ...

    async def revoke(self, key_id: str) -> None: ...

    async def all(self) -> Sequence[KeyRecord]:
        return []


def stored() -> tuple[StoredKeys, str]:
    store, key_id = StoredKeys(), new_id()
    secret = new_secret(key_id)
    store.record = KeyRecord(key_id, KeySpec("acme", "user"), digest_of(secret), 0)
    return store, secret


async def test_a_known_key_is_read_once_and_a_change_makes_it_unknown() -> None:
    store, secret = stored()
    known = KnownKeys(store, asyncio.Event(), 60)
    caller = await known.find(secret)
    assert caller is not None
    assert caller.is_valid
    assert await known.find(secret) is caller
    assert store.reads == 1
    store.record, store.now_epoch = None, 2
    await known.follow()
    assert not caller.is_valid, "its holders notice"
    assert [await known.find(secret) for _ in range(2)] == [None, None]
    assert store.reads == 2, "it is known to be wrong"


async def test_a_change_ends_every_copy_also_of_uses_at_the_same_time() -> None:
    store, secret = stored()
    known = KnownKeys(store, asyncio.Event(), 60)
    store.may_reply.clear()
    asked = [asyncio.create_task(known.find(secret)) for _ in range(3)]
    await asyncio.sleep(0)
    store.may_reply.set()
    callers = await asyncio.gather(*asked)
    store.record, store.now_epoch = None, 2
    await known.follow()
    assert [caller is not None and caller.is_valid for caller in callers] == [False] * 3


async def test_a_reply_from_before_a_change_is_not_kept() -> None:
    store, secret = stored()
    known = KnownKeys(store, asyncio.Event(), 60)
    await known.find(new_secret(new_id()))
    store.may_reply.clear()
    late = asyncio.create_task(known.find(secret))
    await asyncio.sleep(0)
    store.record, store.now_epoch = None, 2
    await known.follow()
    store.may_reply.set()
    caller = await late
    assert caller is not None
    assert not caller.is_valid, "the request that asked is the last"
    assert await known.find(secret) is None


async def test_a_copy_is_not_trusted_for_ever_without_news() -> None:
    store, secret = stored()
    known = KnownKeys(store, asyncio.Event(), 0.01)
    caller = await known.find(secret)
    assert caller is not None
    await wait_until_async(lambda: _is_over(known, secret, store), timeout=2)


async def _is_over(known: KnownKeys, secret: str, store: StoredKeys) -> bool:
    await known.find(secret)
    return store.reads > 1


# -- keys in files -----------------------------------------------------------------------------------------------------


async def test_keys_in_files_are_read_again_when_they_change(serve: Service, tmp_path: Path) -> None:
    users, admins = tmp_path / "users", tmp_path / "admins"
    users.write_text("# our keys\nacme=first-key-of-acme, globex=key-of-globex\n")
    admins.write_text("key-of-the-admin\n")
    client = await serve(access={"api_keys_file": str(users), "admin_keys_file": str(admins)})

    async def status(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return (await client.post("/query", json={"question": "What?"}, headers=headers)).status_code

    async def shows(text: str) -> bool:
        return text in (await client.get("/metrics")).text

    for _ in range(3):  # the last ones by the fast path
        assert [await status(key) for key in ("first-key-of-acme", "key-of-globex", "another")] == [200, 200, 401]
    replacement = tmp_path / "new"
    replacement.write_text("acme=second-key-of-acme\nglobex=key-of-globex\n")
    replacement.replace(users)

    async def is_adopted() -> bool:
        return await status("second-key-of-acme") == 200

    await wait_until_async(is_adopted)
    assert [await status(key) for key in ("first-key-of-acme", "key-of-globex")] == [401, 200]
    users.write_text("acme")
    await wait_until_async(partial(shows, 'ragherd_key_file_changes_total{outcome="broken"} 1.0'))
    users.unlink()
    await wait_until_async(partial(shows, 'ragherd_key_file_changes_total{outcome="broken"} 2.0'))
    assert await status("second-key-of-acme") == 200, "the last good keys"
    assert (await client.get("/api/keys", headers={"Authorization": "Bearer key-of-the-admin"})).status_code == 200


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "cannot be read"), ("", "has no key"), ("# none\n", "has no key"), ("acme", "not of the form tenant=key")],
)
def test_a_worker_does_not_start_with_a_broken_file(tmp_path: Path, content: str | None, why: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=why):
        AccessSettings(_env_file=None, api_keys_file=str(file)).users_and_admins()
