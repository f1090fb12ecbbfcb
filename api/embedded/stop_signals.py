"""Ctrl-C, SIGTERM and a closed terminal end a run the same way: one `KeyboardInterrupt`, then an undisturbed stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_signals_interrupt() -> Iterator[None]:
    """Within the block the first stop signal raises `KeyboardInterrupt`; further ones are ignored."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        if number is not signal.SIGHUP or before[number] is not signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_stop_signals() -> None:
    """From here on the stopping is under way: another Ctrl-C does not cut it short."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    ignore_stop_signals()
    raise KeyboardInterrupt
