"""Redis over TLS (haproxy): CA, host name, client certificate, and the errors for wrong ones."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio import ConnectionPool
from redis.exceptions import TimeoutError as RedisTimeoutError

from api.embedded.redis_server import EmbeddedRedis, find_redis_binary
from api.embedded.service_plan import free_port
from api.redis_store.client import RedisAddress, Tls, blocking_reader, connection_options, short_commands
from tests.stub_ollama import StubOllama
from tests.support.service import ask, make_settings, running_service
from tests.support.tls_proxy import Certificates, TlsProxy, certificates, tls_proxy
from tests.support.waiting import wait_until_async

QUESTION = "How long is the warranty?"

pytestmark = pytest.mark.usefixtures("redis")


@pytest.fixture
def trusted(tmp_path: Path) -> Certificates:
    """For a server that is reached as `localhost`."""
    return certificates(tmp_path / "trusted", "localhost")


@pytest.fixture
def proxy(trusted: Certificates, redis_server: EmbeddedRedis) -> Iterator[TlsProxy]:
    with tls_proxy(trusted.folder, redis_server.port) as running:
        yield running


def of(held: Certificates) -> dict[str, Any]:
    return {"ca_file": str(held.ca), "cert_file": str(held.pair), "connect_timeout": 2.0}


async def test_cache_breaker_and_messages_work_under_tls(
    trusted: Certificates, proxy: TlsProxy, stub: StubOllama
) -> None:
    settings = make_settings(f"rediss://localhost:{proxy.port}", stub.base_url, redis=of(trusted))
    async with running_service(settings) as client:
        assert (await ask(client, QUESTION))["cache"]["status"] == "miss"
        assert (await ask(client, "The warranty, how long is it?"))["cache"]["kind"] == "semantic"
        assert (await client.get("/api/circuit-breaker/metrics")).json()["store"] == "shared"
        assert (await client.get("/health")).json()["database"] is True


@pytest.mark.parametrize(
    ("wrong", "host", "says", "advice"),
    [
        ("ca", "localhost", "CERTIFICATE_VERIFY_FAILED", "REDIS_CA_FILE"),
        ("name", "127.0.0.1", "IP address mismatch", "another name"),
        ("client", "localhost", "ALERT", "REDIS_CERT_FILE"),
    ],
)
async def test_what_is_wrong_is_said_once_and_answers_go_on(
    trusted: Certificates,
    proxy: TlsProxy,
    stub: StubOllama,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    wrong: str,
    host: str,
    says: str,
    advice: str,
) -> None:
    other = certificates(tmp_path / "other", "localhost")
    files = of(trusted) | ({"ca_file": str(other.ca)} if wrong == "ca" else {})
    files |= {"cert_file": str(other.pair)} if wrong == "client" else {}
    settings = make_settings(f"rediss://{host}:{proxy.port}", stub.base_url, redis=files)
    async with running_service(settings) as client:
        answered = await ask(client, QUESTION)
        assert answered["cache"]["status"] == "bypass"
        health = (await client.get("/health")).json()
        assert (health["status"], health["database"]) == ("degraded", False)
        metrics = (await client.get("/metrics")).text
        assert 'ragherd_redis_errors_total{operation="ping"}' in metrics
        await client.get("/health")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"redis_lost"' in line]
    assert len(lines) == 1
    assert says in lines[0]["error"]
    assert advice in lines[0]["message"]
    assert lines[0]["setting"] == "REDIS_URL"


async def test_a_server_that_accepts_and_says_nothing_costs_the_connect_timeout(
    trusted: Certificates, stub: StubOllama
) -> None:
    async def say_nothing(reader: Any, writer: Any) -> None:
        await reader.read()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    address = RedisAddress(f"rediss://localhost:{port}", 0.2, 0.2, 4, Tls(str(trusted.ca)))
    async with short_commands(address) as client:
        with pytest.raises(RedisTimeoutError):
            await client.ping()
    server.close()


async def test_renewed_files_are_used_without_a_restart(
    trusted: Certificates, proxy: TlsProxy, redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    tls = Tls(str(trusted.ca), str(trusted.pair))
    address = RedisAddress(f"rediss://localhost:{proxy.port}", 1.0, 1.0, 4, tls)
    async with short_commands(address) as client:
        assert await client.ping()
        first = tls.context()
        assert tls.context() is first
        proxy.stop()
        certificates(trusted.folder, "localhost")  # another CA, in the same files
        proxy.start()
        await client.connection_pool.disconnect()
        assert await client.ping()
        assert tls.context() is not first


async def test_every_kind_of_client_takes_the_same_options(trusted: Certificates, proxy: TlsProxy) -> None:
    address = RedisAddress(f"rediss://localhost:{proxy.port}", 1.0, 1.0, 4, Tls(str(trusted.ca), str(trusted.pair)))
    async with blocking_reader(address, 0.1) as client:
        assert await client.xread({"rag:nothing": "0"}, block=10) in ([], {})
    assert connection_options(RedisAddress("redis://localhost", 1.0, 1.0, 4)).keys() == {
        "connection_class",
        "socket_connect_timeout",
        "retry",
        "maint_notifications_config",
        "driver_info",
    }


def test_a_connection_reads_no_metadata_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(metadata, "version")
    pool = ConnectionPool(**connection_options(RedisAddress("redis://localhost", 1.0, 1.0, 4)))
    connection = pool.make_connection()  # type: ignore[no-untyped-call]
    assert connection.driver_info.lib_version == redis.__version__


async def test_sentinels_and_the_primary_they_name_under_tls(
    trusted: Certificates, redis_server: EmbeddedRedis, stub: StubOllama, tmp_path: Path
) -> None:
    by_address = certificates(tmp_path / "by-address", "localhost", "127.0.0.1")
    with tls_proxy(by_address.folder, redis_server.port, mixed=True) as primary:
        config = tmp_path / "sentinel.conf"
        config.write_text(f"port {(port := free_port())}\nsentinel monitor primary 127.0.0.1 {primary.port} 1\n")
        sentinel_folder = certificates_beside(by_address, tmp_path / "sentinel")
        command = [str(find_redis_binary().server), str(config), "--sentinel"]
        with (
            subprocess.Popen(command, stdout=subprocess.DEVNULL) as sentinel,
            tls_proxy(sentinel_folder, port) as watcher,
        ):
            try:
                url = f"rediss+sentinel://localhost:{watcher.port}/primary"
                settings = make_settings(url, stub.base_url, redis=of(by_address))
                async with running_service(settings) as client:

                    async def is_found() -> bool:
                        return bool((await client.get("/health")).json()["database"])

                    await wait_until_async(is_found)
                    await ask(client, QUESTION)
                    assert (await ask(client, QUESTION))["cache"]["kind"] == "exact"
            finally:
                sentinel.kill()


def certificates_beside(held: Certificates, folder: Path) -> Path:
    """The same files in another folder, for a second haproxy."""
    folder.mkdir()
    for name in ("ca.pem", "server.pem"):
        (folder / name).write_bytes((held.folder / name).read_bytes())
    return folder
