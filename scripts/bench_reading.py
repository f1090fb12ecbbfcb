"""Compares the words that readers find in PDF files with those of pdftotext.

`python -m scripts.bench_reading FOLDER` prints, for each reader, the words lost (only pdftotext has them) and invented
(only the reader has them). Words are compared as multisets after ligatures and divided words were repaired in both.
pypdf is what earlier releases read with. Needs pdftotext (poppler-utils).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from api.errors import RagherdError
from api.knowledge import pdf
from api.knowledge.repair import repaired

PAGES: Final = 2_000
CHARACTERS: Final = 5_000_000
SECONDS: Final = 60.0
WORD: Final = re.compile(r"\w+")


@dataclass(slots=True)
class Count:
    """What a reader did with all files. `refused`: files that it could not read, which count as lost."""

    words: int = 0
    lost: int = 0
    invented: int = 0
    refused: int = 0
    seconds: float = 0.0

    def row(self, name: str) -> str:
        """A row of the table."""
        return f"| {name} | {self.words:,} | {self.lost:,} | {self.invented:,} | {self.refused} | {self.seconds:.1f} |"


def words(text: str) -> Counter[str]:
    """The words of a text, however it is spaced."""
    return Counter(WORD.findall(repaired(text)))


def by_pdfium(data: bytes) -> str:
    """What the service stores."""
    return pdf.read(data, PAGES, CHARACTERS).text


def by_pypdf(data: bytes) -> str:
    """What releases before PDFium stored."""
    from pypdf import PdfReader

    reader = PdfReader(BytesIO(data), strict=False)
    if reader.is_encrypted:
        reader.decrypt("")
    return "\n\n".join(page.extract_text() for page in reader.pages)


READERS: Final[dict[str, Callable[[bytes], str]]] = {"PDFium (pypdfium2)": by_pdfium, "pypdf": by_pypdf}


def reference(path: Path) -> str | None:
    """The text by pdftotext; None if it cannot read the file."""
    command = ["pdftotext", "-q", "-enc", "UTF-8", str(path), "-"]
    done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def add(count: Count, read: Callable[[bytes], str], data: bytes, expected: Counter[str]) -> None:
    """Reads one file and counts."""
    began = time.process_time()
    try:
        found = words(read(data))
    except RagherdError:
        found = Counter()
        count.refused += 1
    except Exception:  # noqa: BLE001 - pypdf's errors share no base
        found = Counter()
        count.refused += 1
    count.seconds += time.process_time() - began
    count.words += expected.total()
    count.lost += (expected - found).total()
    count.invented += (found - expected).total()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    counts = {name: Count() for name in READERS}
    files = 0
    for path in sorted(parser.parse_args().folder.rglob("*.pdf")):
        text = reference(path)
        if text is None or not text.strip():
            continue
        files += 1
        for name, read in READERS.items():
            add(counts[name], read, path.read_bytes(), words(text))
    print(
        f"{files} files\n\n| reader | words | lost | invented | files refused | s of CPU |\n|---|---|---|---|---|---|"
    )
    print("\n".join(count.row(name) for name, count in counts.items()))


if __name__ == "__main__":
    main()
