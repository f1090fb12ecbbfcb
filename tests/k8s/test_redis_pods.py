"""The start scripts of the Redis components with real servers and Sentinels, and with pods that die and return."""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from tests.k8s.redis_pods import ADDRESSES, PASSWORD, RedisPods, redis_pods
from tests.k8s.rendered import K8S
from tests.support.needed_tools import need_tool, not_here
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes
URL = (
    "redis+sentinel://:{password}@redis-sentinel-0.redis-sentinel:26379,"
    "redis-sentinel-1.redis-sentinel:26379,redis-sentinel-2.redis-sentinel:26379/ragherd"
)
AS_THE_SERVICE = """
import asyncio
from api.redis_store.client import RedisAddress, short_commands
async def main():
    async with short_commands(RedisAddress({url!r}, 2, 2, 4)) as client:
        print(await client.{call})
asyncio.run(main())
"""
NAMES = [f"redis-{number}" for number in range(3)]


@pytest.fixture(autouse=True)
def _names_of_their_own() -> None:
    if os.geteuid() != 0:
        not_here("only root can give processes a separate hosts file")
    need_tool("unshare")
    need_tool("redis-cli")


def start_all(pods: RedisPods) -> None:
    for name in NAMES:
        pods.start(name, "start-redis.sh")  # first, although they wait for the Sentinels
    for number in range(3):
        start_sentinel(pods, number)


def start_sentinel(pods: RedisPods, number: int) -> None:
    pods.start(f"redis-sentinel-{number}", "start-sentinel.sh")


def is_armed(pods: RedisPods) -> bool:
    """Returns whether every Sentinel has the down-after setting of arm-sentinel.sh."""
    found = set()
    for number in range(3):
        with pods.client(f"redis-sentinel-{number}") as sentinel:
            found.add(sentinel.sentinel_master("ragherd")["down-after-milliseconds"])
    return found == {5000}


def is_whole(pods: RedisPods) -> bool:
    """Returns whether there is one primary with two replicas, and the Sentinels know all of them."""
    primary = pods.primary()
    if primary is None or pods.role(primary) != "master":
        return False
    with pods.client(primary) as client, pods.client("redis-sentinel-0") as sentinel:
        followed = client.info("replication")["min_slaves_good_slaves"] == 2
        facts = sentinel.sentinel_master("ragherd")
        return followed and (facts["num-slaves"], facts["num-other-sentinels"]) == (2, 2)


def takes_writes(pods: RedisPods, name: str) -> bool:
    """Returns whether it is the primary and has a replica (min-replicas-to-write)."""
    if pods.role(name) != "master":
        return False
    with pods.client(name) as client:
        return bool(client.info("replication")["min_slaves_good_slaves"])


def as_the_service(pods: RedisPods, call: str) -> str:
    return pods.ask(AS_THE_SERVICE.format(url=URL.format(password=pods.password), call=call))


def test_one_redis_asks_for_its_password_and_can_search_and_keeps_what_it_has(tmp_path: Path) -> None:
    with redis_pods("redis", tmp_path) as pods:
        process = pods.start("redis-0", "start-redis.sh")
        wait_until(lambda: pods.role("redis-0") == "master")
        with pods.client("redis-0", stranger=True) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.get("key")
        with pods.client("redis-0") as client:
            client.set("key", "kept")
            assert "search" in {module["name"] for module in client.module_list()}
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-lfu"}
        process.terminate()
        assert process.wait(10) == 0
        assert {path.name for path in (tmp_path / "redis-0" / "data").iterdir()} == {"appendonlydir"}
        pods.start("redis-0", "start-redis.sh")
        wait_until(lambda: pods.role("redis-0") == "master")
        with pods.client("redis-0") as client:
            assert client.get("key") == "kept"
        assert PASSWORD not in " ".join(path.read_text() for path in (tmp_path / "redis-0" / "configuration").iterdir())


@pytest.mark.timeout(300)
def test_another_redis_takes_over_and_the_old_primary_comes_back_as_its_replica(tmp_path: Path) -> None:
    with redis_pods("redis-sentinel", tmp_path) as pods:
        start_all(pods)
        wait_until(lambda: is_whole(pods), timeout=60)
        wait_until(lambda: is_armed(pods))
        wait_until(lambda: all(pods.probe(name, "readinessProbe") for name in ADDRESSES), timeout=30)
        assert pods.primary() == "redis-0"
        assert as_the_service(pods, "set('before', '1')") == "True"
        with pods.client("redis-0") as client:
            assert "search" in {module["name"] for module in client.module_list()}
            client.wait(2, 5000)

        pods.kill("redis-0")
        wait_until(lambda: pods.primary() not in {None, "redis-0"}, timeout=60)
        successor = pods.primary()
        assert successor is not None
        wait_until(lambda: takes_writes(pods, successor), timeout=60)
        assert as_the_service(pods, "get('before')") == "b'1'"
        assert as_the_service(pods, "set('after', '2')") == "True"

        pods.start("redis-0", "start-redis.sh")
        wait_until(lambda: pods.role("redis-0") == "slave", timeout=60)
        wait_until(lambda: is_whole(pods), timeout=60)
        with pods.client("redis-0") as client:
            wait_until(lambda: client.get("after") == "2")
        # Also with the configuration that the failover rewrote.
        wait_until(lambda: all(pods.probe(name, "readinessProbe") for name in ADDRESSES), timeout=30)

        pods.kill("redis-0")
        wait_until(lambda: takes_writes(pods, successor))
        assert as_the_service(pods, "set('after', '3')") == "True"
        pods.kill_all()
        pods.password = "4567cdef" * 8
        start_all(pods)
        wait_until(lambda: is_whole(pods), timeout=90)
        assert pods.primary() == successor, "only the last primary has all writes"
        assert as_the_service(pods, "get('after')") == "b'3'"


def test_a_redis_that_hears_of_no_primary_waits(tmp_path: Path) -> None:
    with redis_pods("redis-sentinel", tmp_path) as pods:
        process = pods.start("redis-0", "start-redis.sh")
        start_sentinel(pods, 0)
        log = tmp_path / "redis-0" / "log"
        wait_until(lambda: log.read_text().count("waiting for two Sentinels") > 1, timeout=30)
        assert process.poll() is None
        assert pods.role("redis-0") is None
        start_sentinel(pods, 1)
        wait_until(lambda: pods.role("redis-0") == "master", timeout=30)


def test_a_replica_is_ready_once_it_has_what_its_primary_has_and_lives_without(tmp_path: Path) -> None:
    with redis_pods("redis-sentinel", tmp_path) as pods:
        for number in range(2):
            start_sentinel(pods, number)
            pods.start(f"redis-{number}", "start-redis.sh")
        wait_until(lambda: all(pods.probe(name, "readinessProbe") for name in NAMES[:2]), timeout=60)
        assert [pods.role(name) for name in NAMES[:2]] == ["master", "slave"]
        assert all(pods.probe(name, "startupProbe") for name in NAMES[:2])

        (tmp_path / "redis-1" / "secret" / "password").write_text("another")  # it is used from the next start on
        assert pods.probe("redis-1", "readinessProbe")

        for name in ("redis-sentinel-0", "redis-sentinel-1", "redis-0"):  # nobody can promote it
            pods.kill(name)
        wait_until(lambda: not pods.probe("redis-1", "readinessProbe"))
        assert pods.probe("redis-1", "livenessProbe")


def test_a_busy_redis_is_not_ready_and_lives(tmp_path: Path) -> None:
    with redis_pods("redis", tmp_path) as pods:
        pods.start("redis-0", "start-redis.sh")
        wait_until(lambda: pods.probe("redis-0", "readinessProbe"), timeout=30)
        with pods.client("redis-0") as client, pods.client("redis-0") as endless:
            client.config_set("busy-reply-threshold", 1)
            thread = threading.Thread(target=lambda: _until_killed(endless))
            thread.start()
            wait_until(lambda: not pods.probe("redis-0", "readinessProbe"))
            assert pods.probe("redis-0", "livenessProbe")
            client.script_kill()
            thread.join()
        wait_until(lambda: pods.probe("redis-0", "readinessProbe"))


def _until_killed(client: redis.Redis) -> None:
    with suppress(redis.RedisError):
        client.eval("while true do end", 0)


FACTS_BY_FILE = """#!/bin/sh
case "$*" in
  *"SENTINEL MASTER"*) cat "{folder}/facts" ;;
  *"SENTINEL SET"*) touch "{folder}/armed"; echo OK ;;
esac
"""


@pytest.mark.parametrize(
    "not_yet",
    [
        {"runid": "", "last-ping-sent": "500"},  # the first second, before any answer
        {"runid": "abcd", "last-ping-sent": "28000"},  # it still asks at the address of before
    ],
)
def test_seconds_count_only_when_the_sentinel_itself_hears_the_primary(tmp_path: Path, not_yet: dict[str, str]) -> None:
    """Else it would find the primary down at once, and another would take its place for nothing."""
    client = tmp_path / "redis-cli"
    client.write_text(FACTS_BY_FILE.format(folder=tmp_path))
    client.chmod(0o755)

    def say(facts: dict[str, str]) -> None:
        lines = [line for pair in facts.items() for line in pair]
        (tmp_path / "facts.new").write_text("\n".join(["name", "ragherd", *lines, ""]))
        (tmp_path / "facts.new").rename(tmp_path / "facts")

    say(not_yet)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = K8S / "components" / "redis-sentinel" / "arm-sentinel.sh"
    with subprocess.Popen(["/bin/sh", str(script)], env=environment) as process:
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
            assert not (tmp_path / "armed").exists()
            say({"runid": "abcd", "last-ping-sent": "0"})
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert (tmp_path / "armed").exists()
