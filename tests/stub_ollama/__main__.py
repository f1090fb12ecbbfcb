"""Runs the stub as a process: `python -m tests.stub_ollama --port N`. Prints its two addresses as one line of JSON."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys

from tests.stub_ollama.server import running_stub


async def serve(host: str, port: int, until_stdin_closes: bool) -> None:
    """Runs the stub until it is ended."""
    async with running_stub(port, host) as stub:
        print(json.dumps({"base_url": stub.base_url, "control_url": stub.control_url}), flush=True)
        if until_stdin_closes:
            await asyncio.to_thread(sys.stdin.read)
        else:
            await asyncio.Event().wait()


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.stub_ollama", description="A controllable stub of Ollama.")
    parser.add_argument("--port", type=int, default=0, help="0 for any free port")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--until-stdin-closes", action="store_true", help="exit when standard input closes")
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(given.host, given.port, given.until_stdin_closes))


if __name__ == "__main__":
    main()
