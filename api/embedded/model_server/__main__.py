"""`python -m api.embedded.model_server`: the command line."""

from __future__ import annotations

import argparse
import asyncio
import sys

from api.embedded.model_server.app import serve
from api.embedded.model_server.catalog import LABEL
from api.errors import SettingsError


def main() -> int:
    """Serves until it is stopped and returns 0. Returns 1 with one line on standard error if it cannot start."""
    arguments = _parser().parse_args()
    try:
        asyncio.run(serve(arguments.host, arguments.port, arguments.threads, arguments.embed_model_path))
    except (SettingsError, OSError) as error:
        print(f"model server: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m api.embedded.model_server", description=LABEL)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=11434, help="port; 0 selects a free one (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads that generate text (default: %(default)s)")
    parser.add_argument("--embed-model-path", help="folder with model.onnx and tokenizer.json of all-MiniLM-L6-v2")
    return parser


if __name__ == "__main__":
    sys.exit(main())
