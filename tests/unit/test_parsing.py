"""Files of each type become Markdown in a separate process; broken and malicious files give one clear error."""

from __future__ import annotations

import asyncio
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from typing import Any

import docx
import pytest
import uvloop
from fpdf import FPDF
from pypdf import PdfReader, PdfWriter

from api.errors import PayloadTooLarge, ServiceUnavailable, UnreadableDocument, UnsupportedDocument
from api.knowledge import html
from api.knowledge.kinds import DOCX, HTML, MARKDOWN, PDF, TEXT, media_type
from api.knowledge.parsing import CONCURRENCY, IN_A_THREAD, ParseLimits, Parser, _read
from api.knowledge.plain_text import Parsed, decoded, read_text, tidied

pytestmark = pytest.mark.slow

LIMITS = ParseLimits(pages=20, characters=100_000, timeout=30)


def parser(**limits: Any) -> Parser:
    return Parser(replace(LIMITS, **limits))


def pdf(*pages: str, title: str | None = None) -> bytes:
    made = FPDF()
    made.set_font("helvetica", size=12)
    if title is not None:
        made.set_title(title)
    for page in pages:
        made.add_page()
        if page:
            made.multi_cell(0, 10, page)
    return bytes(made.output())


def word(fill: Callable[[docx.document.Document], None]) -> bytes:
    document, out = docx.Document(), BytesIO()
    fill(document)
    document.save(out)
    return out.getvalue()


def archive(**entries: bytes) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in entries.items():
            made.writestr(name.replace("__", "/"), content)
    return out.getvalue()


async def test_a_pdf_is_the_text_of_its_pages_and_its_title() -> None:
    parsed = await parser().parse(pdf("First page.", "Second page.", title="Handbook"), PDF)
    assert (parsed.text, parsed.title, parsed.pages) == ("First page.\n\nSecond page.", "Handbook", 2)


async def test_a_word_document_keeps_headings_lists_and_tables() -> None:
    def fill(document: docx.document.Document) -> None:
        document.add_heading("Holiday", 1)
        document.add_paragraph("Ask your team lead.")
        document.add_paragraph("two weeks before", style="List Bullet")
        table = document.add_table(1, 2)
        table.cell(0, 0).text, table.cell(0, 1).text = "Days", "30"

    parsed = await parser().parse(word(fill), DOCX)
    assert "# Holiday" in parsed.text
    assert "- two weeks before" in parsed.text
    assert "| Days | 30 |" in parsed.text


async def test_an_html_page_keeps_its_visible_content() -> None:
    page = (
        "<html><head><title>The page</title><style>b{}</style></head><body><nav>Home</nav><h2>Canteen</h2>"
        "<p>Third <b>floor</b>.<script>alert(1)</script></p></body></html>"
    )
    parsed = await parser().parse(page.encode(), HTML)
    assert (parsed.title, parsed.text) == ("The page", "## Canteen\n\nThird **floor**.")


@pytest.mark.parametrize(
    ("said", "encoding"),
    [
        ("iso-8859-1", "cp1252"),
        ("shift_jis", "shift_jis"),
        ("iso-2022-jp", "iso-2022-jp"),
        ("utf-8", "utf-8"),
        ("utf-8", "utf-16"),
        ("utf-16", "utf-8"),
        ("no such", "utf-8"),
        ("undefined", "utf-8"),
    ],
)
def test_the_encoding_of_a_page_comes_from_its_meta_tag(said: str, encoding: str) -> None:
    text = "“Überstunden” für alle" if "jp" not in encoding and "jis" not in encoding else "休暇の規則"
    assert html.read(f'<meta charset="{said}"><p>{text}</p>'.encode(encoding), 1, 100).text.strip() == text


@pytest.mark.parametrize("said", ["", '<meta charset="utf-8">'])
def test_a_missing_or_wrong_encoding_is_detected(said: str) -> None:
    text = "São Paulo office opening hours: 9-17"
    assert html.read(f"{said}<p>{text}</p>".encode("cp1252"), 1, 100).text.strip() == text
    with pytest.raises(UnreadableDocument, match="It is UTF-8 but for byte"):
        html.read(f"{said}<p>{text}</p>".encode() + b"\xc3", 1, 100)


def test_the_text_inside_a_form_is_read_without_its_fields() -> None:
    fields = "<select><option>Berlin</select><textarea>Your words</textarea><button>Send</button>"
    assert html.read(f"<form><h1>Rules</h1><p>Text</p>{fields}</form>", 1, 100).text.strip() == "# Rules\n\nText"


def test_optional_end_tags_may_be_missing() -> None:
    page = (
        "<h1>Rules</h1><p>One <b>of</b> many<p>Two<ul><li>a<ul><li>b<li>c</ul><li>d</ul>"
        "<table><tr><th>City<th>Days<tr><td>Bern<td>5<tr><td>Basel<td>6</table><dl><dt>Term<dd>Meaning<dt>Other</dl>"
    )
    closed = (
        "<h1>Rules</h1><p>One <b>of</b> many</p><p>Two</p><ul><li>a<ul><li>b</li><li>c</li></ul></li><li>d</li></ul>"
        "<table><tr><th>City</th><th>Days</th></tr><tr><td>Bern</td><td>5</td></tr><tr><td>Basel</td><td>6</td></tr>"
        "</table><dl><dt>Term</dt><dd>Meaning</dd><dt>Other</dt></dl>"
    )
    assert html.read(page, 1, 1000) == html.read(closed, 1, 1000)
    for rest in ("<body>Text", "<p>Text"):
        assert html.read(f"<html><head><title>Rules</title>{rest}", 1, 100) == Parsed("Text", "Rules")
    assert html.read("<p>Text\n" * 2_000, 1, 100_000).text.count("Text") == 2_000


def test_a_missing_end_tag_does_not_close_ignored_elements() -> None:
    page = "<html><head><title>Rules</title><noscript><div>Enable scripts</div></noscript></head><body>Text"
    assert html.read(page, 1, 100) == Parsed("Text", "Rules")
    for part in ("<button><div>Send</div></button>", "<object><p>No player</p></object>"):
        assert html.read(f"<p>One {part}sentence.</p>", 1, 100).text == "One sentence."


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_process_reads_the_file_on_either_event_loop(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """uvloop accepts fewer arguments for a process."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(parser().parse(b"<p>Text", HTML)).text == "Text"


async def test_too_many_pages_are_refused_before_reading() -> None:
    with pytest.raises(PayloadTooLarge, match="3 pages; the limit is 2"):
        await parser(pages=2).parse(pdf("1", "2", "3"), PDF)


@pytest.mark.parametrize(("content", "kind"), [(pdf("word " * 80), PDF), (b"word " * 80, TEXT), (b"w " * 200, HTML)])
async def test_too_long_a_text_is_refused(content: bytes, kind: str) -> None:
    with pytest.raises(PayloadTooLarge, match="longer than 100 characters"):
        await parser(characters=100).parse(content, kind)


async def test_text_that_grows_during_parsing_stays_out_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested lists are indented, so these 20 kB become 168."""
    replies: list[int] = []

    def noted(reply: bytes, code: int | None) -> Parsed:
        replies.append(len(reply))
        return _read(reply, code)

    monkeypatch.setattr("api.knowledge.parsing._read", noted)
    with pytest.raises(PayloadTooLarge):
        await parser().parse(b"<ul><li>" * 40 + b"<ul>" + b"<li>x</li>" * 2_000 + b"</ul>", HTML)
    assert replies[0] < 1000


def encrypted(password: str, algorithm: str) -> bytes:
    writer, out = PdfWriter(clone_from=PdfReader(BytesIO(pdf("Secret.")))), BytesIO()
    writer.encrypt(password, "the owner's", algorithm=algorithm)
    writer.write(out)
    return out.getvalue()


async def test_an_encrypted_pdf_is_a_clear_error() -> None:
    with pytest.raises(UnreadableDocument, match="password"):
        await parser().parse(encrypted("password", "AES-256"), PDF)


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
async def test_a_pdf_that_opens_without_a_password_is_read(algorithm: str) -> None:
    assert (await parser().parse(encrypted("", algorithm), PDF)).text == "Secret."


async def test_a_scanned_pdf_is_a_clear_error() -> None:
    with pytest.raises(UnreadableDocument, match="scanned images"):
        await parser().parse(pdf(""), PDF)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (archive(word__document_xml=b"<x/>"), "has no word/document.xml"),
        (archive(**{"word__document.xml": b"<a>" + b"0" * 30_000_000}), "would unpack to"),
        (archive(**{"word__document.xml": b"<a>", **{f"part{n}": b"" for n in range(2_100)}}), "2101 parts"),
        (archive(**{"word__document.xml": b"<a>"}), "damaged"),
    ],
)
async def test_other_zip_files_and_zip_bombs_are_not_unpacked(content: bytes, said: str) -> None:
    with pytest.raises(UnreadableDocument, match=said):
        await parser().parse(content, DOCX)


async def test_expanding_xml_entities_are_refused() -> None:
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<!DOCTYPE d [<!ENTITY e0 "ha">{levels}]><w:document>&e11;</w:document>'
    with pytest.raises((UnreadableDocument, PayloadTooLarge)):
        await parser(timeout=10).parse(archive(**{"word__document.xml": bomb.encode()}), DOCX)


async def test_a_file_that_blocks_its_parser_is_given_up_with_the_process() -> None:
    with pytest.raises(UnreadableDocument, match=r"longer than 0\.05 s"):
        await parser(timeout=0.05).parse(pdf("Never read."), PDF)


async def test_the_time_limit_of_a_file_excludes_earlier_files() -> None:
    busy, page = parser(timeout=0.05), b"<p>On the third floor.</p>"
    turns = [busy._turn(busy._slots) for _ in range(CONCURRENCY)]
    for turn in turns:
        await turn.__aenter__()
    with pytest.raises(ServiceUnavailable):
        await busy.parse(page, HTML)
    for turn in turns:
        await turn.__aexit__(None, None, None)
    with pytest.raises(UnreadableDocument, match="took longer"):
        await busy.parse(page, HTML)


async def test_a_deeply_nested_page_is_read() -> None:
    page = "<p>Above.</p>" + "<div>" * 20_000 + "<p>Deep <b>inside</b>.</p>" + "</div>" * 20_000 + "<p>Below.</p>"
    parsed = await parser().parse(page.encode(), HTML)
    assert parsed.text.split() == ["Above.", "Deep", "inside", ".", "Below."]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Zürich".encode(), "Zürich"),
        ("Zürich".encode("utf-16"), "Zürich"),
        ("Zürich".encode("utf-32"), "Zürich"),
        ("Zürich".encode("utf-8-sig"), "Zürich"),
        (("Die Überstunden werden für alle Beschäftigten gezählt. " * 9).encode("cp1252"), None),
    ],
)
def test_an_encoding_is_detected_by_byte_order_mark_or_content(content: bytes, text: str | None) -> None:
    assert decoded(content) == text if text else "Überstunden werden für" in decoded(content)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("It’s here.", "cp1252"),
        ("Größe: 5 €", "cp1252"),
        ("São Paulo office opening hours: 9-17", "cp1252"),
        ("Für die Genehmigung ist der Teamleiter zuständig.", "cp1252"),
        ("Política de vacaciones: 23 días por año", "cp1252"),
        ("Urlop zatwierdza kierownik zespołu, a wniosek składa się dwa tygodnie wcześniej.", "cp1250"),
        ("Отпуск утверждает руководитель группы.", "cp1251"),
        ("休暇はチームリーダーが承認します。", "shift_jis"),
        ("エラーコード: 500 サーバーエラー", "shift_jis"),
        ("Use the 管理画面 to change your パスワード.", "shift_jis"),
        ("Die Überstunden werden für alle Mitarbeiter ausgezahlt.", "utf-16-le"),
        ("假期由团队负责人批准，需要提前两周申请。", "gb18030"),
    ],
)
def test_a_short_text_in_a_legacy_encoding_is_read_correctly(text: str, encoding: str) -> None:
    assert decoded(text.encode(encoding)) == text


@pytest.mark.parametrize(
    "content",
    ["Grün ist die Heide".encode() + b"\xc3", "Grün, ".encode() * 50 + "Müller".encode("cp1252")],
    ids=["cut off", "joined"],
)
def test_damaged_utf_8_is_refused_rather_than_guessed_at(content: bytes) -> None:
    with pytest.raises(UnreadableDocument, match="It is UTF-8 but for byte"):
        decoded(content)


def test_control_characters_and_extra_blank_lines_are_removed() -> None:
    assert tidied("a\r\nb\x00\x1b\n\n\n\n\n\nc\ufeff") == "a\nb\n\n\nc"


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("\n# Holiday policy #\n\nText.", "Holiday policy"),
        ("Text.\n\n# Later", None),
        ("## Lower", None),
        ("#hashtag", None),
        ("# ", None),
    ],
)
async def test_the_title_of_markdown_is_its_first_heading(text: str, title: str | None) -> None:
    assert (await parser().parse(f"{text}\n\nMore.".encode(), MARKDOWN)).title == title


@pytest.mark.parametrize(
    ("name", "declared", "head", "kind"),
    [
        ("a.md", None, b"# A", MARKDOWN),
        (None, "text/html; charset=utf-8", b"<p>", HTML),
        ("a.txt", "application/pdf", b"%PDF-1.7", PDF),
        ("A.DOCX", None, b"PK\x03\x04", DOCX),
        ("a.txt", None, b"MZ-700: a computer of 1982", TEXT),
    ],
)
def test_the_media_type_comes_from_content_then_name_then_header(
    name: str | None, declared: str | None, head: bytes, kind: str
) -> None:
    assert media_type(name, declared, head) == kind


@pytest.mark.parametrize(("name", "head"), [("a.csv", b"PK\x03\x04"), ("a.md", b"\x7fELF"), ("a.txt", b"a\x00b")])
def test_binary_data_is_not_mistaken_for_text(name: str, head: bytes) -> None:
    with pytest.raises(UnsupportedDocument):
        media_type(name, None, head)


async def test_texts_are_parsed_one_at_a_time_without_blocking_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most = 0, 0
    lock = threading.Lock()

    def counted(data: bytes, media_type: str) -> Parsed:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        text = read_text(data, media_type)
        with lock:
            at_once -= 1
        return text

    monkeypatch.setattr("api.knowledge.parsing.read_text", counted)
    busy = parser(characters=2_000_000)
    await asyncio.gather(*(busy.parse(b"On the third floor. " * 50_000, TEXT) for _ in range(8)))
    assert most == 1


@pytest.mark.parametrize("kind", [TEXT, MARKDOWN])
async def test_long_texts_in_a_process_and_short_ones_here_give_the_same_result(kind: str) -> None:
    short = "# Café\r\n\r\nOn the third floor.\n\n\n\n\nNot the fourth. "
    long = short + "It is said so. " * (IN_A_THREAD // 15)
    whole = parser(characters=2_000_000)
    one, other = await whole.parse(short.encode(), kind), await whole.parse(long.encode(), kind)
    assert other.title == one.title == ("Café" if kind == MARKDOWN else None)
    assert other.text.startswith(one.text)
