"""Runs `ragherd ingest` as a process, and checks what it stored."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from api.embedders.minilm import MiniLM, model_files
from api.knowledge.chunking import Chunker
from api.settings import DocumentSettings
from ragherd.document_client import find
from tests.support.stored_corpus import Texts

ROOT = Path(__file__).parents[2]


def ingest_process(url: str, folder: Path, *more: str) -> subprocess.Popen[str]:
    """Starts to ingest a folder into the service at `url`."""
    command = [sys.executable, "-m", "ragherd", "ingest", str(folder), "--url", url, *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)


def expected_texts(folders: Iterable[Path]) -> Texts:
    """Returns the expected chunks of the folders' files with EMBEDDER=onnx and the default sizes."""
    chunker = _chunker()
    files = find(list(folders)).files
    return {file.source: [chunk.text for chunk in chunker.chunks(file.path.read_text().strip())] for file in files}


@cache
def _chunker() -> Chunker:
    usual = DocumentSettings(_env_file=None)
    return Chunker(MiniLM(model_files(None)).count_tokens, usual.chunk_tokens, usual.chunk_overlap)
