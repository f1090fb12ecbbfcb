"""Loaded at the start of processes whose wall clock libfaketime moves. `time.sleep` fails there with EINVAL.

So gunicorn's master ended in the middle of a graceful stop.
"""

from __future__ import annotations

import select
import time
from typing import Any


def sleep(seconds: Any) -> None:
    """Replaces `time.sleep`."""
    select.select((), (), (), seconds)


time.sleep = sleep
