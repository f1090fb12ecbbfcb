"""Ragherd's own pages as the first documents of a knowledge base: a newcomer asks about the product itself."""

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

PAGES: Final = "docs"
TAG: Final = "ragherd"
CONCURRENCY: Final = 4


def store_own_docs(url: str, settings: Settings, report: Callable[[str], None]) -> int:
    """The number of pages that are in the knowledge base now; 0 outside of a checkout, or where that fails."""
    folder = Path(api.__file__).parents[1]
    files = find([folder / PAGES], collection=PAGES).files if (folder / PAGES).is_dir() else ()
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
