"""`python -m api.embedded.orphan_guard GROUP`: ends process group GROUP when standard input closes.

Only the parent of GROUP holds the other end of that pipe, so it closes when the parent is gone for any reason.
"""

from __future__ import annotations

import signal
import sys

from api.embedded.child_process import end_group


def main() -> None:
    """Waits for the end of standard input, then ends the group."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    group = int(sys.argv[1])
    sys.stdin.buffer.read()
    end_group(group, deadline=3.0)


if __name__ == "__main__":
    main()
