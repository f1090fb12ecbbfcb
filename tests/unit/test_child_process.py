"""Children die with their parent, are stopped as a group, and start only from the main thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from api.embedded.child_process import start_child
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]

STUBBORN_WITH_CHILD = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(grandchild.pid, flush=True)
time.sleep(600)
"""

PARENT = """
import sys, time
from pathlib import Path
from api.embedded.child_process import start_child
child = start_child("sleeper", ["sleep", "600"], log=Path(sys.argv[1]), use_death_signal=sys.argv[2] == "kernel")
print(child.pid, flush=True)
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    """Returns whether `pid` runs. Zombies, which stay in a container without init, do not count."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_stop_ends_the_child_with_sigterm(tmp_path: Path) -> None:
    child = start_child("sleeper", SLEEPER, log=tmp_path / "log")
    wait_until(lambda: child.end_reason() == "up")
    child.stop(deadline=10.0)
    assert child.exit_code() == -signal.SIGTERM
    assert not child.is_running()


@pytest.mark.timed
def test_stop_kills_the_whole_group_after_the_deadline(tmp_path: Path) -> None:
    child = start_child("stubborn", [sys.executable, "-c", STUBBORN_WITH_CHILD], log=tmp_path / "log")
    wait_until(lambda: child.end_reason().isdigit())
    grandchild = int(child.end_reason())
    began = time.monotonic()
    child.stop(deadline=0.2)
    assert time.monotonic() - began < 5
    assert child.exit_code() == -signal.SIGKILL
    wait_until(lambda: not is_alive(grandchild))


def test_a_child_that_already_ended_is_stopped_without_complaint(tmp_path: Path) -> None:
    child = start_child("short", [sys.executable, "-c", "print('why it ended')"], log=tmp_path / "log")
    wait_until(lambda: not child.is_running())
    child.stop(deadline=1.0)
    assert child.exit_code() == 0
    assert child.end_reason() == "why it ended"


def test_the_child_leads_a_new_session(tmp_path: Path) -> None:
    child = start_child("sleeper", SLEEPER, log=tmp_path / "log")
    try:
        assert os.getsid(child.pid) == child.pid != os.getsid(0)
    finally:
        child.kill()


@pytest.mark.parametrize("watcher", ["kernel", "guard"])
def test_the_child_dies_when_its_parent_is_killed(tmp_path: Path, watcher: str) -> None:
    if watcher == "kernel" and sys.platform != "linux":
        pytest.skip("PR_SET_PDEATHSIG is Linux's")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "log"), watcher], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.communicate()
    wait_until(lambda: not is_alive(child))


def test_only_the_main_thread_may_start_children(tmp_path: Path) -> None:
    raised: list[BaseException] = []

    def start() -> None:
        try:
            start_child("sleeper", SLEEPER, log=tmp_path / "log")
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])
