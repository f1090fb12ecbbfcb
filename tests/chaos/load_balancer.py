"""haproxy in front of the replicas: round robin, without retries. It removes replicas whose readiness check fails."""

from __future__ import annotations

import csv
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.hosts import Host
from tests.support.waiting import wait_until

PORT = 80
CHECK_SECONDS = 0.5
CONFIGURATION = """
global
  stats socket {admin} mode 600
defaults
  mode http
  retries 0
  timeout connect 2s
  timeout client 120s
  timeout server 120s
  timeout check 2s
frontend service
  bind {address}:{port}
  default_backend replicas
backend replicas
  balance roundrobin
  option httpchk GET /health/ready
  http-check expect status 200
  default-server check inter {milliseconds}ms fall 1 rise 1
{servers}
"""


class LoadBalancer:
    """Created by `load_balancer`."""

    def __init__(self, url: str, admin: Path) -> None:
        self.url = url
        self._admin = admin

    def up(self) -> set[str]:
        """Returns the replicas that receive requests."""
        return {name for name, facts in self._servers().items() if facts["status"].startswith("UP")}

    def requests(self) -> dict[str, int]:
        """Returns the number of requests per replica."""
        return {name: int(facts["stot"]) for name, facts in self._servers().items()}

    def _servers(self) -> dict[str, dict[str, str]]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self._admin))
            connection.sendall(b"show stat\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        rows = csv.DictReader(text.removeprefix("# ").splitlines())
        return {row["svname"]: row for row in rows if row["pxname"] == "replicas" and row["svname"] != "BACKEND"}


@contextmanager
def load_balancer(host: Host, replicas: Mapping[str, str], folder: Path) -> Iterator[LoadBalancer]:
    """Runs haproxy on `host` in front of `replicas` (addresses by name). Returns when all of them are up."""
    admin = folder / "admin"
    servers = "\n".join(f"  server {name} {address}" for name, address in replicas.items())
    milliseconds = int(CHECK_SECONDS * 1000)
    facts = {"admin": admin, "address": host.address, "port": PORT, "milliseconds": milliseconds, "servers": servers}
    (folder / "haproxy.cfg").write_text(CONFIGURATION.format(**facts))
    with (folder / "haproxy.log").open("wb") as log:
        command = [*host.enter, "haproxy", "-db", "-f", str(folder / "haproxy.cfg")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        balancer = LoadBalancer(f"http://{host.address}:{PORT}", admin)
        wait_until(lambda: admin.exists() and balancer.up() == set(replicas), timeout=30)
        yield balancer
    finally:
        process.kill()
        process.wait(5)
