"""Stores Ragherd's own pages as the first documents, so that a newcomer can ask about the product itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import api
from api.cli.document_client import connected
from api.cli.document_files import find
from api.cli.ingest_run import About, Result, upload_all
from api.settings import Settings

COLLECTION: Final = "docs"
TAG: Final = "ragherd"
CONCURRENCY: Final = 4


def own_pages() -> Path | None:
    """The folder of the pages: in a wheel beside this file, in a checkout `docs`."""
    root = Path(api.__file__).parents[1]
    in_wheel, in_checkout = Path(__file__).parent / "pages", root / "docs"
    if in_wheel.is_dir():
        return in_wheel
    return in_checkout if (root / "pyproject.toml").is_file() and in_checkout.is_dir() else None


def store_own_docs(url: str, settings: Settings, report: Callable[[str], None]) -> int:
    """The number of pages that are now in the knowledge base; 0 if there are none, or they cannot be stored."""
    folder = own_pages()
    files = find([folder], collection=COLLECTION).files if folder else ()
    if not files:
        return 0
    keys = settings.access.admins()
    began = time.monotonic()

    async def run() -> Result:
        async with connected(url, keys[0] if keys else None) as client:
            return await upload_all(client, files, About(tags=(TAG,)), CONCURRENCY)

    result = asyncio.run(run())
    stored = len(files) - result.counts["failed"]
    if result.failures:
        report(f"Documents: {result.failures[0]}")
    if stored:
        seconds = time.monotonic() - began
        report(f"Documents: {stored} pages of Ragherd's own, in {result.chunks} chunks, after {seconds:.1f} s")
    return stored
