"""Runs the start scripts of the Redis components like their pods: names, folders, the image's entrypoint.

The folders belong to the test. The names are in a separate hosts file (a mount namespace), and each pod has a loopback
address. The entrypoint is a stand-in for that of redis:8: it loads the search module.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import redis

from api.embedded.redis_server import find_redis_binary
from tests.k8s.rendered import K8S, ROOT, rendered
from tests.support.needed_tools import need_tool

PASSWORD: Final = "0123abcd" * 8
NETWORK: Final = f"127.{1 + os.getpid() // 256 % 254}.{os.getpid() % 256}"
"""Unique to this run, so that runs on the same machine do not collide."""
ADDRESSES: Final = {f"redis-{n}": f"{NETWORK}.1{n}" for n in range(3)} | {
    f"redis-sentinel-{n}": f"{NETWORK}.2{n}" for n in range(3)
}
ENTRYPOINT: Final = """#!/bin/sh
shift
case " $* " in *" --sentinel "*) set -- "$@" ;; *) set -- "$@" --loadmodule {module} ;; esac
exec {server} "$@" --bind {address}
"""
CLIENT: Final = """#!/bin/sh
exec {client} -h {address} "$@"
"""
"""A pod's own loopback address is the one of that pod; a later -h wins."""
MOUNTED: Final = {
    "/etc/redis-secret": "secret",
    "/etc/redis": "configuration",
    "/run/redis": "run",
    "/data": "data",
}
FOLDERS: Final = {"redis": "overlays/staging", "redis-sentinel": "overlays/production"}
"""An overlay that has the component."""
WITH_NAMES: Final = 'mount --bind "$0" /etc/hosts && exec "$@"'


class RedisPods:
    """Pods by name in `folder`. The data on a pod's volume survives it. Pods start with `password`."""

    def __init__(self, component: str, folder: Path) -> None:
        self._component = K8S / "components" / component
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._hosts = folder / "hosts"
        self.password = PASSWORD
        names = [f"{ip} {name}.{name.rpartition('-')[0]}" for name, ip in ADDRESSES.items()]
        self._hosts.write_text("\n".join(["127.0.0.1 localhost", *names, ""]))

    def start(self, name: str, script: str) -> subprocess.Popen[bytes]:
        """Runs a script of the component as that pod."""
        pod = self._folder / name
        self._write_files(pod, name)
        command = self._with_names("/bin/sh", str(pod / "configuration" / script))
        with (pod / "log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, env=self._environment(name), stdout=log, stderr=log, start_new_session=True
            )
        return self._running[name]

    def probe(self, name: str, kind: str) -> bool:
        """Returns the result of a probe; `kind` is as in `readinessProbe`."""
        workload = rendered(FOLDERS[self._component.name]).pods()[name.rpartition("-")[0]]
        [container] = workload["spec"]["containers"]
        command = [self._here(word, self._folder / name) for word in container[kind]["exec"]["command"]]
        done = subprocess.run(
            self._with_names(*command),
            env=self._environment(name),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=30,
            check=False,
        )
        return done.returncode == 0

    def _write_files(self, pod: Path, name: str) -> None:
        for each in ("bin", "run", "data", "configuration", "secret"):
            (pod / each).mkdir(parents=True, exist_ok=True)
        (pod / "secret" / "password").write_text(self.password)
        for source in self._component.iterdir():
            (pod / "configuration" / source.name).write_text(self._here(source.read_text(), pod))
        binary = find_redis_binary()
        entrypoint = ENTRYPOINT.format(module=binary.search_module, server=binary.server, address=ADDRESSES[name])
        client = CLIENT.format(client=need_tool("redis-cli"), address=ADDRESSES[name])
        for program, text in (("docker-entrypoint.sh", entrypoint), ("redis-cli", client)):
            (pod / "bin" / program).write_text(text)
            (pod / "bin" / program).chmod(0o755)

    def _here(self, text: str, pod: Path) -> str:
        for path, folder in MOUNTED.items():
            text = text.replace(path, f"{pod}/{folder}")
        return text

    def _environment(self, name: str) -> dict[str, str]:
        return {"PATH": f"{self._folder / name}/bin:{os.environ['PATH']}", "POD_NAME": name}

    def ask(self, program: str) -> str:
        """Runs Python where the pods' names resolve."""
        command = self._with_names(sys.executable, "-c", program)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def client(self, name: str, *, stranger: bool = False) -> redis.Redis:
        """Connects to that pod. A client without the password is refused."""
        sentinel = name.startswith("redis-sentinel")
        return redis.Redis(
            host=ADDRESSES[name],
            port=26379 if sentinel else 6379,
            password=None if sentinel or stranger else self.password,
            decode_responses=True,
            socket_timeout=2,
        )

    def primary(self) -> str | None:
        """Returns the primary's name once all three Sentinels agree."""
        said = set()
        for number in range(3):
            try:
                with self.client(f"redis-sentinel-{number}") as sentinel:
                    said.add(sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "ragherd")[0])
            except redis.RedisError:
                return None
        return said.pop().partition(".")[0] if len(said) == 1 else None

    def role(self, name: str) -> str | None:
        try:
            with self.client(name) as client:
                return str(client.info("replication")["role"])
        except redis.RedisError:
            return None

    def kill(self, name: str) -> None:
        """Kills the pod like a node failure."""
        process = self._running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def kill_all(self) -> None:
        for name in list(self._running):
            self.kill(name)

    def _with_names(self, *command: str) -> list[str]:
        return [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "/bin/sh",
            "-c",
            WITH_NAMES,
            str(self._hosts),
            *command,
        ]


@contextmanager
def redis_pods(component: str, folder: Path) -> Iterator[RedisPods]:
    """Stops all pods at the end."""
    pods = RedisPods(component, folder)
    try:
        yield pods
    finally:
        pods.kill_all()
