"""Terminates TLS in front of Redis with haproxy: a CA, server certificates, required client certificates."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from api.embedded.service_plan import free_port
from tests.support.needed_tools import need_tool
from tests.support.waiting import wait_until

CONFIG = """
global
    maxconn 200
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
frontend tls
    bind 127.0.0.1:{port} ssl crt {folder}/server.pem ca-file {folder}/ca.pem verify required
    default_backend redis
backend redis
    server one 127.0.0.1:{target}
"""

MIXED = """
frontend either
    bind 127.0.0.1:{port}
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.len gt 0 }}
    use_backend under_tls if {{ req.ssl_hello_type 1 }}
    default_backend redis
backend under_tls
    server tls 127.0.0.1:{tls_port}
"""
"""The same port also accepts plain connections: Sentinels here have no TLS, and give clients the port that they use."""


@dataclass(frozen=True)
class Certificates:
    """PEM files of one CA. `pair` is the client's certificate with its key."""

    folder: Path
    ca: Path
    pair: Path


def certificates(folder: Path, *server_names: str) -> Certificates:
    """Creates a CA, a certificate for a server with these names, and one for a client."""
    folder.mkdir(parents=True, exist_ok=True)
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    ca.issue_cert(*server_names).private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    client = ca.issue_cert("worker@ragherd.test")
    client.private_key_and_cert_chain_pem.write_to_path(folder / "client.pem")
    client.private_key_pem.write_to_path(folder / "client.key")
    return Certificates(folder, folder / "ca.pem", folder / "client.pem")


class TlsProxy:
    """haproxy on `port`. It can be stopped and restarted with other certificates."""

    def __init__(self, folder: Path, target: int, *, mixed: bool = False) -> None:
        self.port = free_port()
        self._config = folder / "haproxy.cfg"
        text = CONFIG.format(folder=folder, target=target, port=free_port() if mixed else self.port)
        if mixed:
            tls_port = text.partition("bind 127.0.0.1:")[2].split()[0]
            text += MIXED.format(port=self.port, tls_port=tls_port)
        self._config.write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it listens."""
        self._process = subprocess.Popen([need_tool("haproxy"), "-db", "-f", str(self._config)])
        wait_until(self._listens)

    def stop(self) -> None:
        """Cuts every connection through it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(5)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "haproxy did not start"
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


@contextmanager
def tls_proxy(folder: Path, target: int, *, mixed: bool = False) -> Iterator[TlsProxy]:
    """Runs a proxy with the certificates of `folder`. `mixed` also accepts plain connections on the same port."""
    proxy = TlsProxy(folder, target, mixed=mixed)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
