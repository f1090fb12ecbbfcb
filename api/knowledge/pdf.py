"""Reads the text of PDF files with PDFium, and of scanned pages with Tesseract. Runs in the reading process.

PDFium returns rows of a table as lines.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import pypdfium2
import pypdfium2.raw as pdfium

from api.errors import PayloadTooLarge, UnreadableDocument
from api.knowledge.pdf_columns import page_text
from api.knowledge.plain_text import Parsed, joined, too_long
from api.knowledge.repair import garbage, repaired

OCR_DPI: Final = 200
"""Resolution at which Tesseract reads a page, if the page is at most `OCR_PIXELS` large."""
OCR_PIXELS: Final = 20_000_000
POINTS: Final = 72
"""Units of a page's size per inch."""
PLACEHOLDER: Final = re.compile(
    r"""\W*(?:
        (?:untitled(?:[ ]document)?|unnamed|anonymous|unspecified|unknown|none|null|title|document|doc|book|slide|
            presentation|scan)[\W_]*\d*
        |no(?:ne)?[ ]title|powerpoint[ ]presentation|new[ ]document.*|scanned[ ].*
        |(?:microsoft|libreoffice|openoffice|adobe|acrobat|quarkxpress|pagemaker)\b.*|(?:word|excel|powerpoint)\s+-.*
        |\S.*\.(?:docx?|dotx?|odt|rtf|pages|wpd|pdf|xps|ps|eps|ai|indd|qxd|fm|pmd|cdr|tex|dvi|xlsx?|ods|pptx?|odp|
            vsdx?|pub|html?|aspx?|php|jsp|txt|md|tiff?|jpe?g|png)
        |(?:file|https?):.*
    )\W*""",
    re.IGNORECASE | re.VERBOSE,
)
"""Titles that come from a program or a file name."""


def read(data: bytes, pages: int, characters: int, ocr_languages: str = "") -> Parsed:
    """The text with a blank line between pages, the title, the page count, and warnings about pages without text.

    `pages` and `characters` are limits. `ocr_languages` are Tesseract's, such as `eng+deu`; empty for no OCR.
    Raises `UnreadableDocument`, `PayloadTooLarge`.
    """
    with _opened(data) as document:
        count = len(document)
        if count > pages:
            raise PayloadTooLarge(f"The PDF has {count} pages; the limit is {pages}.")
        texts = _within(characters, (_page_text(document, number) for number in range(count)))
        empty = [number for number, text in enumerate(texts) if not text]
        recognized = _recognized(document, empty, ocr_languages)
        for number, text in recognized.items():
            texts[number] = text
        title = _title(document)
    _check(texts, ocr_languages)
    warnings = tuple(_warnings(count, empty, recognized))
    text, starts = joined(texts)
    return Parsed(text, title, count, warnings=warnings, page_starts=starts)


def _opened(data: bytes) -> pypdfium2.PdfDocument:
    try:
        return pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code == pdfium.FPDF_ERR_PASSWORD:
            raise UnreadableDocument("The PDF is encrypted. Remove its password.") from None
        raise UnreadableDocument(f"The PDF cannot be read: {error}") from None


def _within(characters: int, texts: Iterator[str]) -> list[str]:
    found: list[str] = []
    length = 0
    for text in texts:
        found.append(text)
        length += len(text)
        if length > characters:
            raise too_long(characters)
    return found


def _page_text(document: pypdfium2.PdfDocument, number: int) -> str:
    """The repaired text of a page; empty for one that PDFium cannot load, which counts as a page without text."""
    try:
        page = document[number]
    except pypdfium2.PdfiumError:
        return ""
    try:
        text = page_text(page.get_textpage())
    finally:
        page.close()
    return repaired(text).strip()


def _title(document: pypdfium2.PdfDocument) -> str | None:
    title = " ".join(document.get_metadata_value("Title").split())
    return title if title and PLACEHOLDER.fullmatch(title) is None else None


def _check(texts: Sequence[str], ocr_languages: str) -> None:
    """Raises `UnreadableDocument` if the text cannot be used."""
    if not any(texts):
        remedy = "Set OCR_LANGUAGES to read them with Tesseract."
        if ocr_languages:
            has_tesseract = shutil.which("tesseract") is not None
            remedy = "OCR found no text in them." if has_tesseract else "Install Tesseract on the server to read them."
        raise UnreadableDocument(f"The PDF contains only scanned images. {remedy}")
    reason = garbage("\n".join(texts))
    if reason is not None:
        raise UnreadableDocument(f"The PDF's fonts do not say which characters they show: {reason}. Export it again.")


def _warnings(count: int, empty: Sequence[int], recognized: dict[int, str]) -> Iterator[str]:
    without = [number for number in empty if not recognized.get(number)]
    read = [number for number in empty if recognized.get(number)]
    if read:
        yield f"{_pages(read, count)} read by OCR."
    if without:
        yield f"{_pages(without, count)} without text."


def _pages(numbers: Sequence[int], count: int) -> str:
    """`3 of 4 pages (2-4)`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1][1] = number + 1
        else:
            runs.append([number + 1, number + 1])
    listed = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"{len(numbers)} of {count} pages ({listed})"


def _recognized(document: pypdfium2.PdfDocument, numbers: Sequence[int], languages: str) -> dict[int, str]:
    """What Tesseract reads on these pages. Empty without languages or Tesseract."""
    program = shutil.which("tesseract") if languages else None
    if program is None:
        return {}
    found: dict[int, str] = {}
    for number in numbers:
        with suppress(pypdfium2.PdfiumError):  # a damaged page has no text either way
            found[number] = repaired(_read_by_ocr(program, document[number], languages)).strip()
    return found


def _read_by_ocr(program: str, page: pypdfium2.PdfPage, languages: str) -> str:
    width, height = page.get_size()
    scale = min(OCR_DPI / POINTS, (OCR_PIXELS / max(width * height, 1.0)) ** 0.5)
    bitmap = page.render(scale=scale, grayscale=True)
    image = b"P5 %d %d 255\n" % (bitmap.width, bitmap.height) + _rows(bitmap)
    done = subprocess.run(  # noqa: S603 - the program is fixed, and the languages are the operator's
        [program, "stdin", "stdout", "-l", languages],
        input=image,
        capture_output=True,
        env={**os.environ, "OMP_THREAD_LIMIT": "1"},
        check=False,
    )
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise UnreadableDocument(f"Tesseract could not read a scanned page: {reason[0][:200]}")
    return done.stdout.decode(errors="replace")


def _rows(bitmap: pypdfium2.PdfBitmap) -> bytes:
    """The pixels without the padding that ends each row."""
    raw = bytes(bitmap.buffer)
    return b"".join(raw[at : at + bitmap.width] for at in range(0, bitmap.stride * bitmap.height, bitmap.stride))
