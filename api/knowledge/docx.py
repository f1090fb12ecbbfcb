"""Reads .docx documents by way of HTML, with what mammoth leaves out: headers, footers, formulas and text boxes.

A .docx is a zip file, so its unpacked size is checked first.
"""

from __future__ import annotations

import re
from io import BytesIO
from typing import Final
from xml.etree import ElementTree as ET
from zipfile import BadZipFile, ZipFile

import mammoth
from bs4 import BeautifulSoup
from defusedxml.ElementTree import fromstring

from api.errors import UnreadableDocument
from api.knowledge import html
from api.knowledge.markdown import LONGEST_LANGUAGE
from api.knowledge.plain_text import Parsed, too_long

MAX_ENTRIES: Final = 2_000
MAX_BYTES: Final = 100 * 1024 * 1024
MAX_RATIO: Final = 200
"""Highest compression ratio of an entry larger than a mebibyte."""
BODY: Final = "word/document.xml"
PROPERTIES: Final = "docProps/core.xml"
STYLES: Final = "word/styles.xml"
_DC_LANGUAGE: Final = "{http://purl.org/dc/elements/1.1/}language"
_MARGINS: Final = re.compile(r"word/(header|footer)\d*\.xml")
_W: Final = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M: Final = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_MC: Final = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_NOTE: Final = re.compile(r"#?(?:foot|end)note-(?!ref-)")


def read(data: bytes, pages: int, characters: int) -> Parsed:
    """The text, with the first heading as title. Images are left out."""
    check(data)
    with ZipFile(BytesIO(data)) as archive:
        margins = _margins(archive)
        language = _language(archive)
        plain = _with_plain_body(archive)
    page = mammoth.convert_to_html(
        BytesIO(plain),
        convert_image=mammoth.images.img_element(lambda _: {}),
        style_map="p[style-name='Title'] => h1:fresh",
    ).value
    if len(page) > 4 * characters:
        raise too_long(characters)
    soup = BeautifulSoup(page, "html.parser")
    _place_notes(soup)
    heading = soup.h1
    title = heading.get_text(" ", strip=True) if heading else None
    text = html.to_markdown(soup).strip()
    texts = filter(None, (*margins["header"], text, *margins["footer"]))
    return Parsed("\n\n".join(texts), title, language=language)


def check(data: bytes) -> None:
    """Raises `UnreadableDocument` for other files and for zip bombs."""
    try:
        with ZipFile(BytesIO(data)) as archive:
            entries = archive.infolist()
    except BadZipFile:
        raise UnreadableDocument("The file is not a .docx document: it is not a zip archive.") from None
    if BODY not in {entry.filename for entry in entries}:
        raise UnreadableDocument(f"The file is not a .docx document: it has no {BODY}.")
    unpacked = sum(entry.file_size for entry in entries)
    bomb = any(e.file_size > 1024 * 1024 and e.file_size > MAX_RATIO * max(e.compress_size, 1) for e in entries)
    if len(entries) > MAX_ENTRIES or unpacked > MAX_BYTES or bomb:
        raise UnreadableDocument(
            f"The file would unpack to {unpacked} bytes in {len(entries)} parts, more than is allowed."
        )


def _margins(archive: ZipFile) -> dict[str, list[str]]:
    """The texts of headers and footers, each once. Page numbers say nothing."""
    found: dict[str, list[str]] = {"header": [], "footer": []}
    for name in sorted(archive.namelist()):
        kind = _MARGINS.fullmatch(name)
        if kind is None:
            continue
        lines = [_words(paragraph) for paragraph in fromstring(archive.read(name)).iter(f"{_W}p")]
        text = "\n".join(line for line in lines if any(map(str.isalpha, line)))
        if text and text not in found[kind[1]]:
            found[kind[1]].append(text)
    return found


def _language(archive: ZipFile) -> str | None:
    """The document's language, or the one that its styles have by default."""
    for name, tag, attribute in ((PROPERTIES, _DC_LANGUAGE, ""), (STYLES, f"{_W}lang", f"{_W}val")):
        if name in archive.namelist():
            found = next(fromstring(archive.read(name)).iter(tag), None)
            value = "" if found is None else (found.get(attribute) if attribute else found.text)
            if value:
                return str(value)[:LONGEST_LANGUAGE]
    return None


def _words(paragraph: ET.Element) -> str:
    parts = []
    for part in paragraph.iter():
        if part.tag == f"{_W}t":
            parts.append(part.text or "")
        elif part.tag in (f"{_W}tab", f"{_W}br"):
            parts.append(" ")
    return " ".join("".join(parts).split())


def _with_plain_body(archive: ZipFile) -> bytes:
    """The document with formulas as text and text boxes as paragraphs, which mammoth reads."""
    body = archive.read(BODY)
    if b"oMath" in body or b"txbxContent" in body:
        root = fromstring(body)
        _lift_text_boxes(root)
        _write_formulas(root)
        body = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    out = BytesIO()
    with ZipFile(out, "w") as copy:
        for entry in archive.infolist():
            copy.writestr(entry.filename, body if entry.filename == BODY else archive.read(entry))
    return out.getvalue()


def _lift_text_boxes(root: ET.Element) -> None:
    """Moves the paragraphs of each text box behind the paragraph that it is anchored in."""
    parents = {child: parent for parent in root.iter() for child in parent}
    anchors = [element for element in root.iter() if element.tag in (f"{_MC}AlternateContent", f"{_W}pict")]
    lifted: set[ET.Element] = set()
    for anchor in anchors:
        boxes = list(_first_choice(anchor).iter(f"{_W}txbxContent"))
        if anchor in lifted or not boxes:
            continue
        lifted.update(anchor.iter())
        paragraph = anchor
        while paragraph.tag != f"{_W}p" and paragraph in parents:
            paragraph = parents[paragraph]
        if paragraph in parents:
            parents[anchor].remove(anchor)
            place = list(parents[paragraph]).index(paragraph) + 1
            parents[paragraph][place:place] = [part for box in boxes for part in box]


def _first_choice(anchor: ET.Element) -> ET.Element:
    """A choice and its fallback have the same content."""
    choices = [one for one in anchor if one.find(f".//{_W}txbxContent") is not None]
    return choices[0] if anchor.tag == f"{_MC}AlternateContent" and choices else anchor


def _write_formulas(root: ET.Element) -> None:
    for parent in list(root.iter()):
        for place, child in enumerate(parent):
            if child.tag in (f"{_M}oMath", f"{_M}oMathPara"):
                run = ET.Element(f"{_W}r")
                ET.SubElement(run, f"{_W}t").text = f" {linear(child)} "
                parent[place] = run


_RAISED: Final = frozenset(f"{_M}{name}" for name in ("f", "sSup", "sSub", "sSubSup", "func", "nary"))
_OPENING: Final = tuple("(√[{|")


def linear(formula: ET.Element) -> str:
    """A formula of Office Math on one line, as in Unicode's UnicodeMath: `(a+b)/2`, `x^2`, `√(y)`."""
    match formula.tag.removeprefix(_M):
        case "t":
            return formula.text or ""
        case "f":
            return f"{_grouped(formula, 'num')}/{_grouped(formula, 'den')}"
        case "sSup":
            return f"{_part(formula, 'e')}^{_grouped(formula, 'sup')}"
        case "sSub":
            return f"{_part(formula, 'e')}_{_grouped(formula, 'sub')}"
        case "sSubSup":
            return f"{_part(formula, 'e')}_{_grouped(formula, 'sub')}^{_grouped(formula, 'sup')}"
        case "rad":
            degree, root = _part(formula, "deg"), _part(formula, "e")
            return f"({root})^(1/{degree})" if degree else f"√({root})"
        case "nary":
            sign = formula.find(f"{_M}naryPr/{_M}chr")
            symbol = "∫" if sign is None else sign.get(f"{_M}val", "∫")
            return f"{symbol}_{_grouped(formula, 'sub')}^{_grouped(formula, 'sup')} {_part(formula, 'e')}"
        case "d":
            first, last = _sign(formula, "begChr", "("), _sign(formula, "endChr", ")")
            return f"{first}{', '.join(map(linear, formula.findall(f'{_M}e')))}{last}"
        case "m" | "eqArr":
            rows = [", ".join(map(linear, row)) if row.tag == f"{_M}mr" else linear(row) for row in formula]
            return f"[{'; '.join(filter(None, rows))}]"
        case "func":
            return f"{_part(formula, 'fName')} {_part(formula, 'e')}"
        case "oMathPara":
            return " ".join(map(linear, formula.findall(f"{_M}oMath")))
        case _:
            return _side_by_side(formula)


def _side_by_side(formula: ET.Element) -> str:
    """A space ends what stands below or above: `x^2 y` is not `x^2y`."""
    parts: list[str] = []
    raised = False
    for child in formula:
        part = linear(child)
        if raised and (part[:1].isalnum() or part[:1] in _OPENING):
            parts.append(" ")
        parts.append(part)
        if part:
            raised = child.tag in _RAISED
    return "".join(parts)


def _sign(delimited: ET.Element, name: str, usual: str) -> str:
    sign = delimited.find(f"{_M}dPr/{_M}{name}")
    return usual if sign is None else sign.get(f"{_M}val", usual)


def _part(formula: ET.Element, name: str) -> str:
    part = formula.find(f"{_M}{name}")
    return "" if part is None else linear(part)


def _grouped(formula: ET.Element, name: str) -> str:
    part = _part(formula, name)
    return part if part.isalnum() else f"({part})"


def _place_notes(soup: BeautifulSoup) -> None:
    """Writes each footnote where its mark stands. mammoth lists them at the end, with links."""
    notes: dict[str, str] = {}
    for item in soup.find_all("li", id=_NOTE):
        notes[str(item["id"])] = item.get_text(" ", strip=True).removesuffix("↑").strip()
        item.decompose()
    for link in soup.find_all("a", href=_NOTE):
        mark = link.find_parent("sup") or link
        mark.replace_with(f" (note: {notes.get(str(link['href']).removeprefix('#'), '')})")
