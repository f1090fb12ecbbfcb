"""The start scripts of the Redis components, each run as its pod would: its name, its folders, the image's entrypoint.

The folders are those of a test, the names are in a hosts file of their own (a mount namespace), each pod has a loopback
address. The entrypoint is a stand-in that does what redis:8's does: it loads the search module for a server.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import redis

from api.embedded.redis_binary import find_redis_binary
from tests.k8s.rendered import K8S, ROOT

PASSWORD: Final = "0123abcd" * 8
ADDRESSES: Final = {f"redis-{n}": f"127.0.77.1{n}" for n in range(3)} | {
    f"redis-sentinel-{n}": f"127.0.77.2{n}" for n in range(3)
}
ENTRYPOINT: Final = """#!/bin/sh
shift
case " $* " in *" --sentinel "*) set -- "$@" ;; *) set -- "$@" --loadmodule {module} ;; esac
exec {server} "$@" --bind {address}
"""
WITH_NAMES: Final = 'mount --bind "$0" /etc/hosts && exec "$@"'


class RedisPods:
    """Pods by name, in `folder`. What a pod keeps on its volume outlives it."""

    def __init__(self, component: str, folder: Path) -> None:
        self._component = K8S / "components" / component
        self._folder = folder
        self._running: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._hosts = folder / "hosts"
        names = [f"{ip} {name}.{name.rpartition('-')[0]}" for name, ip in ADDRESSES.items()]
        self._hosts.write_text("\n".join(["127.0.0.1 localhost", *names, ""]))

    def start(self, name: str, script: str, post_start: str | None = None) -> subprocess.Popen[bytes]:
        """Runs a script of the component as that pod, and beside it the one of its postStart."""
        pod = self._folder / name
        self._write_files(pod, name)
        environment = {"PATH": f"{pod}/bin:{os.environ['PATH']}", "POD_NAME": name}
        with (pod / "log").open("ab") as log:
            for each in filter(None, (script, post_start)):
                command = self._with_names("/bin/sh", str(pod / "configuration" / each))
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
                self._running.setdefault(name, []).append(process)
        return self._running[name][0]

    def _write_files(self, pod: Path, name: str) -> None:
        for each in ("bin", "run", "data", "configuration", "secret"):
            (pod / each).mkdir(parents=True, exist_ok=True)
        (pod / "secret" / "password").write_text(PASSWORD)
        mounted = {"/etc/redis-secret": "secret", "/etc/redis": "configuration", "/run/redis": "run", "/data": "data"}
        for source in self._component.iterdir():
            text = source.read_text()
            for path, folder in mounted.items():
                text = text.replace(path, f"{pod}/{folder}")
            (pod / "configuration" / source.name).write_text(text)
        self._write_entrypoint(pod / "bin" / "docker-entrypoint.sh", name)

    def ask(self, program: str) -> str:
        """Runs Python where the pods' names are known."""
        command = self._with_names(sys.executable, "-c", program)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def client(self, name: str, password: str | None = PASSWORD) -> redis.Redis:
        """Of that pod itself."""
        sentinel = name.startswith("redis-sentinel")
        return redis.Redis(
            host=ADDRESSES[name],
            port=26379 if sentinel else 6379,
            password=None if sentinel else password,
            decode_responses=True,
            socket_timeout=2,
        )

    def primary(self) -> str | None:
        """Its name, when all three Sentinels say the same."""
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
        """As a node that is gone."""
        for process in self._running.pop(name):
            process.kill()
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

    def _write_entrypoint(self, path: Path, name: str) -> None:
        binary = find_redis_binary()
        path.write_text(ENTRYPOINT.format(module=binary.search_module, server=binary.server, address=ADDRESSES[name]))
        path.chmod(0o755)


@contextmanager
def redis_pods(component: str, folder: Path) -> Iterator[RedisPods]:
    """Nothing of them is left at the end."""
    pods = RedisPods(component, folder)
    try:
        yield pods
    finally:
        pods.kill_all()
