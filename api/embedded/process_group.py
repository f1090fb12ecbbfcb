"""Signals to a whole process group: a child that leads its own session, and all that it started."""

from __future__ import annotations

import os
import signal

from api.embedded.waiting import wait_until


def signal_group(group: int, number: signal.Signals) -> None:
    """Sends `number` to every process of `group`; one that is gone is what was wanted."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # PermissionError: macOS, when only zombies are left
        return


def group_exists(group: int) -> bool:
    """Whether any process of `group`, a zombie included, is left."""
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def end_group(group: int, deadline: float) -> None:
    """SIGTERM to `group`, and SIGKILL to what is left of it after `deadline` seconds."""
    signal_group(group, signal.SIGTERM)
    if not wait_until(lambda: not group_exists(group), deadline):
        signal_group(group, signal.SIGKILL)
