"""The entry point of `ragherd` and `python -m ragherd`."""

from __future__ import annotations

import errno
import os
import sys
from io import TextIOWrapper

from ragherd.exits import FAILED, ctrl_c_exits

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


def app() -> None:
    """Runs the command from the command line."""
    with ctrl_c_exits():
        from ragherd.commands import commands
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal lacks is not a reason to fail
    try:
        commands()
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would try again to write the rest
        sys.stderr.write(f"ragherd: the output cannot be written: {error.strerror}\n")
        sys.exit(FAILED)


if __name__ == "__main__":
    app()
