"""The entry point of `ragherd` and `python -m ragherd`."""

from __future__ import annotations

from ragherd.exits import ctrl_c_exits


def app() -> None:
    """Runs the command from the command line."""
    with ctrl_c_exits():
        from ragherd.commands import commands
    commands()


if __name__ == "__main__":
    app()
