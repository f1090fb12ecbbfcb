"""Files as people have them: PDFs with tables and scans, Word documents with formulas, pages with hidden text."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from fpdf import FPDF

from api.errors import UnreadableDocument
from api.knowledge import parse_process, pdf
from api.knowledge.docx import linear
from api.knowledge.kinds import DOCX, HTML, MARKDOWN, PDF, TEXT
from api.knowledge.markdown import read as read_markdown
from api.knowledge.pdf import PLACEHOLDER
from api.knowledge.pdf_columns import Line, column_gaps
from api.knowledge.plain_text import read_text
from tests.support.needed_tools import need_tool

DOCUMENTS = Path(__file__).parents[1] / "data" / "documents"
KINDS = {".pdf": PDF, ".docx": DOCX, ".html": HTML, ".md": MARKDOWN, ".txt": TEXT}
PARTS = "QZ-1107 Seal ring 12.40\nQZ-1108 Pump shaft 310.00\nQZ-1109 Valve seat 45.90"
LEAVE_JA, LEAVE_ZH, LEAVE_KO = (
    "休暇の申請は課長が承認します。",
    "请假申请由部门经理批准。",
    "휴가 신청은 팀장이 승인합니다.",
)


def read(name: str, languages: str = "") -> dict[str, object]:
    file = DOCUMENTS / name
    return parse_process.read(file.read_bytes(), parse_process.reader(KINDS[file.suffix], languages), 100, 100_000)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pdf-cjk-90ms-RKSJ-H.pdf", LEAVE_JA),
        ("pdf-cjk-ETen-B5-H.pdf", "請假申請由部門經理批准。"),
        ("pdf-cjk-EUC-H.pdf", LEAVE_JA),
        ("pdf-cjk-GBK-EUC-H.pdf", LEAVE_ZH),
        ("pdf-cjk-KSCms-UHC-H.pdf", LEAVE_KO),
        ("pdf-cjk-UniJIS-UTF16-H.pdf", LEAVE_JA),
        ("pdf-cjk-predefined-cmap-ja.pdf", LEAVE_JA),
        ("pdf-cjk-predefined-cmap-ko.pdf", LEAVE_KO),
        ("pdf-cjk-predefined-cmap-zh.pdf", LEAVE_ZH),
        (
            "pdf-table-one-text-object.pdf",
            "QZ-1107 Seal ring 12.40\nQZ-1108 Pump shaft 310.00\nQZ-1109 Valve seat 45.90",
        ),
        (
            "pdf-table-drawn-right-to-left.pdf",
            "QZ-1107 Seal ring 12.40\nQZ-1108 Pump shaft 310.00\nQZ-1109 Valve seat 45.90",
        ),
        (
            "pdf-two-columns.pdf",
            "The left column is about bread.\nDough rests for two hours.\nThen it is baked at 230 degrees.\n"
            "The right column is about soup.\nIt simmers for forty minutes.\nSalt is added at the end.",
        ),
        (
            "html-glued-blocks.html",
            "More\n\nDogs are not allowed.\n\nOpen on Sunday\n\nClosed on Monday\n\nLift to floor 3\n\nCall 5501",
        ),
        ("html-superscript.html", "The lab holds 10^6 cells per m^2."),
        ("html-xml-declaration.html", "The lift stops at floor 3."),
        ("md-comment.md", "# Plan\n\n\nThe plan starts in May."),
        ("md-front-matter.md", "# Leave policy\n\nLeave is approved by the team lead."),
        (
            "md-setext.md",
            "# Billing\n\n## Refunds\n\nRefunds take nine days.\n\n## Invoices\n\nInvoices come on the first.",
        ),
    ],
)
def test_a_file_is_read_as_its_author_sees_it(name: str, text: str) -> None:
    assert read(name)["text"] == text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("docx-superscript.docx", "The lab holds 10^6 cells per m^2. Water is H2O."),
        (
            "docx-content-control-math.docx",
            "# Form\n\nIn the control: the cost centre is 8812.\n\nFormula: E=mc2",
        ),
        (
            "docx-text-box.docx",
            "# Poster\n\nBody text of the poster.\n\nThe box says: assembly point is the north gate.",
        ),
        (
            "docx-text-box-no-fallback.docx",
            "# Poster\n\nBody text of the poster.\n\nThe box says: assembly point is the north gate.",
        ),
        (
            "docx-table-header-footer.docx",
            "Header: document number WH-2207\n\n# Warehouse rules\n\nThe warehouse opens at seven.\n\n"
            "| Product code | Shelf | Limit |\n| --- | --- | --- |\n| KX-4471 | B7 | 40 crates |\n"
            "| KX-4472 | C2 | 15 crates |\n| LM-0090 | A1 | 3 pallets |\n\nFooter: released by the logistics board",
        ),
        (
            "docx-merged-cells.docx",
            "# Shift plan\n\n| Night shift | | |\n| --- | --- | --- |\n"
            "| Monday | Tuesday | Wednesday |\n| Ada | Berta | Cleo |",
        ),
        ("docx-numbered-list.docx", "# Steps\n\n1. Unplug the press.\n2. Wait four minutes.\n3. Open the guard."),
        ("docx-tracked-changes.docx", "# Contract\n\nThe notice period is six weeks to the end of a month."),
    ],
)
def test_a_word_document_is_read_as_its_author_sees_it(name: str, text: str) -> None:
    assert read(name)["text"] == text


def run(text: str) -> str:
    return f"<m:r><m:t>{text}</m:t></m:r>"


def raised(base: str, power: str) -> str:
    return f"<m:sSup><m:e>{run(base)}</m:e><m:sup>{run(power)}</m:sup></m:sSup>"


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (run("E=m") + raised("c", "2"), "E=mc^2"),
        (raised("x", "2") + run("y+1"), "x^2 y+1"),
        (raised("x", "n+1") + run("=4"), "x^(n+1)=4"),
        (f"<m:f><m:num>{run('1')}</m:num><m:den>{run('2')}</m:den></m:f>" + run("x"), "1/2 x"),
        (f"<m:rad><m:deg>{run('3')}</m:deg><m:e>{run('8')}</m:e></m:rad>", "(8)^(1/3)"),
        (f"<m:rad><m:deg/><m:e>{run('8')}</m:e></m:rad>", "√(8)"),
        (f'<m:d><m:dPr><m:begChr m:val="|"/><m:endChr m:val="|"/></m:dPr><m:e>{run("x")}</m:e></m:d>', "|x|"),
        (f"<m:d><m:e>{run('x')}</m:e></m:d>", "(x)"),
        (f"<m:m><m:mPr/><m:mr><m:e>{run('1')}</m:e><m:e>{run('2')}</m:e></m:mr><m:mr><m:e>{run('3')}</m:e>"
         f"<m:e>{run('4')}</m:e></m:mr></m:m>", "[1, 2; 3, 4]"),
        (f"<m:eqArr><m:e>{run('x=1')}</m:e><m:e>{run('y=2')}</m:e></m:eqArr>", "[x=1; y=2]"),
        (f"<m:func><m:fName>{run('sin')}</m:fName><m:e>{run('x')}</m:e></m:func>", "sin x"),
    ],
)  # fmt: skip
def test_a_formula_on_one_line_says_the_same(formula: str, text: str) -> None:
    math = "http://schemas.openxmlformats.org/officeDocument/2006/math"
    assert linear(ElementTree.fromstring(f'<m:oMath xmlns:m="{math}">{formula}</m:oMath>')) == text


def test_hidden_text_of_a_page_is_left_out() -> None:
    found = read("html-hidden.html")
    assert found["title"] == "Rooms"
    assert str(found["text"]).split("\n\n")[-1] == "Room 3 is open."
    assert "secret" not in str(found["text"])
    assert "cookies" not in str(found["text"])


BREAD = (
    "Bread needs flour, water and",
    "salt. The dough rests for two",
    "hours, and is baked at a high",
    "heat until it sounds hollow.",
)
SOUP = (
    "Soup simmers slowly. It needs",
    "bones, roots and herbs. Salt",
    "is added at the end, when the",
    "meat is tender and soft.",
)
TEA = (
    "Tea is brewed with water that",
    "has just boiled. Black tea",
    "takes four minutes, and green",
    "tea takes only two of them.",
)


def drawn(*rows: tuple[str, ...]) -> str:
    """The text that is read from rows of cells, each drawn as a whole before the next. One cell spans the page."""
    made = FPDF()
    made.set_font("helvetica", size=10)
    made.add_page()
    for number, row in enumerate(rows):
        for place, cell in enumerate(row):
            if cell:
                made.text(20 + 60 * place, 20 + 5 * number, cell)
    return pdf.read(bytes(made.output()), 10, 100_000).text


def test_columns_that_are_drawn_line_by_line_are_read_one_after_the_other() -> None:
    over_all = "Recipes of the canteen for the whole of the coming winter, as chosen by all who eat there every day"
    text = drawn((over_all,), *zip(BREAD, SOUP, TEA, strict=True), (over_all,), *zip(TEA, BREAD, strict=False))
    assert text == "\n".join((over_all, *BREAD, *SOUP, *TEA, over_all, *TEA, *BREAD))


def test_rows_stay_together_where_columns_are_no_sentences() -> None:
    table = [(f"Pump shaft of type {number}", f"QZ-110{number} costs 31{number}.00 EUR", line)
             for number, line in enumerate(BREAD)]  # fmt: skip
    assert drawn(*table) == "\n".join(" ".join(row) for row in table)
    labels = [("name of the person", "city where they live"), ("day of the visit", "reason for the visit"),
              ("hour of the visit", "host of the person"), ("badge they hold", "room that they visit")]  # fmt: skip
    titled = [tuple(cell.title() for cell in row) for row in labels]
    assert drawn(*titled) == "\n".join(" ".join(row) for row in titled)


def row_by_row(*rows: tuple[str, str], right: float = 300.0) -> list[Line]:
    return [
        Line(left, -12.0 * number, left + 5.0 * len(text), 10 - 12.0 * number, text)
        for number, row in enumerate(rows)
        for left, text in zip((0.0, right), row, strict=True)
    ]


def test_columns_need_lines_and_words_and_a_page_of_a_possible_size() -> None:
    rows = list(zip(BREAD, SOUP, strict=True))
    (gap,) = column_gaps(row_by_row(*rows))
    assert 145 < gap < 300
    assert column_gaps(row_by_row(*rows[:2])) == []
    assert column_gaps([line._replace(top=line.bottom) for line in row_by_row(*rows)]) == []
    assert column_gaps(row_by_row(*rows, right=1e300)) == []
    assert column_gaps(row_by_row(*rows, right=float("nan"))) == []
    assert column_gaps(row_by_row(*((line, "and QZ-1108 310.00 4711") for line in BREAD))) == []
    assert column_gaps(row_by_row(*((line, "valve.") for line in BREAD))) == []


def test_a_table_below_columns_that_are_drawn_one_after_the_other_keeps_its_rows() -> None:
    left, right = (BREAD * 3, SOUP * 3)
    table = [(f"salt and pepper for {number}", f"flour and water for {number}") for number in range(7)]
    text = drawn(*((line,) for line in left), *(("", line) for line in right), *table)
    assert text == "\n".join((*left, *right, *map(" ".join, table)))


def test_a_line_on_one_column_only_leaves_the_others_in_order() -> None:
    rows = [*zip(BREAD, SOUP, strict=True), (SOUP[0],), *zip(TEA, BREAD, strict=True)]
    assert drawn(*rows) == "\n".join((*BREAD, SOUP[0], *TEA, *SOUP, *BREAD))


def test_divided_words_and_ligatures_are_found_as_words() -> None:
    divided, ligatures = (str(read(name)["text"]) for name in ("txt-hyphenated-lines.txt", "txt-ligatures.txt"))
    for word in ("reimbursement", "receipt", "accounting", "statement"):
        assert word in divided
    assert "Office certificates" in ligatures
    assert ligatures.isascii()


def test_pages_without_text_are_named() -> None:
    found = read("pdf-partly-scanned.pdf")
    assert (found["pages"], found["warnings"]) == (4, ("3 of 4 pages (2-4) without text.",))


@pytest.mark.parametrize("languages", ["", "eng"])
def test_a_page_that_cannot_be_loaded_counts_as_one_without_text(
    monkeypatch: pytest.MonkeyPatch, languages: str
) -> None:
    made = FPDF()
    made.set_font("helvetica")
    for words in ("The first page.", "The second page."):
        made.add_page()
        made.cell(text=words)
    data = bytes(made.output())
    kids = re.search(rb"/Kids \[(\d+) 0 R\s+(\d+) 0 R", data)
    assert kids is not None
    damaged = data[: kids.start(2)] + b"0" * len(kids[2]) + data[kids.end(2) :]
    monkeypatch.setattr(shutil, "which", lambda _: "tesseract")
    found = pdf.read(damaged, 10, 1_000, languages)
    assert (found.text, found.warnings) == ("The first page.", ("1 of 2 pages (2) without text.",))


@pytest.mark.slow
def test_scanned_pages_are_read_with_tesseract() -> None:
    need_tool("tesseract")
    found = read("pdf-partly-scanned.pdf", "eng")
    assert found["warnings"] != ("3 of 4 pages (2-4) without text.",)


def test_a_scan_without_tesseract_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    made = FPDF()
    made.add_page()
    with pytest.raises(UnreadableDocument, match="Install Tesseract on the server to read them"):
        pdf.read(bytes(made.output()), 10, 1_000, "eng")


def test_an_unknown_language_of_ocr_is_a_clear_error() -> None:
    need_tool("tesseract")
    with pytest.raises(UnreadableDocument, match="Tesseract could not read a scanned page"):
        pdf.read((DOCUMENTS / "pdf-partly-scanned.pdf").read_bytes(), 100, 100_000, "no such language")


def test_a_placeholder_is_no_title() -> None:
    assert read("pdf-placeholder-title.pdf")["title"] is None


@pytest.mark.parametrize(
    "title",
    ["untitled", "Untitled-1", "(anonymous)", "Document1", "Microsoft Word - leave.doc", "report_final.indd", "Slide 1",
     "PowerPoint Presentation", "file:///tmp/x.html", "Untitled document"],
)  # fmt: skip
def test_titles_that_programs_write_are_placeholders(title: str) -> None:
    assert PLACEHOLDER.fullmatch(title) is not None


@pytest.mark.parametrize("title", ["Leave policy", "Word processing for all", "Documents we keep", "Minutes 2026", "C"])
def test_titles_that_people_write_are_kept(title: str) -> None:
    assert PLACEHOLDER.fullmatch(title) is None


def test_front_matter_gives_title_tags_and_date() -> None:
    found = read_markdown("---\ntitle: Leave\ntags: [hr, 2026, hr]\ndate: 2026-05-01\nlayout: page\n---\n\nText.")
    assert (found.title, found.tags, found.text) == ("Leave", ("hr", "2026"), "Date: 2026-05-01\n\nText.")
    assert read_markdown("---\ntags: hr, travel\n---\n# Trip\n").tags == ("hr", "travel")


@pytest.mark.parametrize("text", ["---\nA rule above.\n---\n\nText.", "---\n: [\n---\nText.", "---\nno end", "--- x\n"])
def test_rules_and_broken_front_matter_stay_text(text: str) -> None:
    assert read_markdown(text).text == text


@pytest.mark.parametrize(
    "value",
    [
        f"0x{'f' * 6000}", ":".join(["1"] * 4000), f"{':'.join(['1'] * 400)}.5", "!!int ''", "!!bool maybe",
        "!!timestamp x", '"\\ud800"', '"\\0"', '"a\\n\\n# b"', "x" * 5000,
        pytest.param("[" * 5000, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_no_value_of_front_matter_fails_or_gives_what_is_not_text(value: str) -> None:
    found = read_text(f"---\ntitle: {value}\ntags: [{value}]\ndate: {value}\n---\nText.".encode(), MARKDOWN)
    for line in filter(None, (found.title, *found.tags)):
        assert line.encode().isascii()
        assert line.isprintable()
        assert len(line) <= 500
    assert "\ud800" not in found.text
    assert max(map(len, found.tags), default=0) <= 100


def test_code_in_markdown_is_not_changed() -> None:
    text = "```\nA\n=\n<!-- kept -->\n```\n\nB\n-\n"
    assert read_markdown(text).text == text
