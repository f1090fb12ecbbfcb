"""Office files, e-mails, archives, tables and source code become Markdown; those that cannot be read say why."""

from __future__ import annotations

import time
import zipfile
from email.message import EmailMessage
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from api.errors import UnsupportedDocument
from api.knowledge import kinds, parse_process, plain_text
from api.knowledge.containers import MAX_DEPTH, MAX_ENTRIES, MAX_WARNINGS
from api.knowledge.kinds import CODE, CSV, EMAIL, TSV, ZIP, media_type

DOCUMENTS = Path(__file__).parents[1] / "data" / "documents"


def read(data: bytes, kind: str, characters: int = 100_000) -> dict[str, Any]:
    return parse_process.read(data, parse_process.reader(kind, ""), 100, characters)


def read_file(name: str) -> dict[str, Any]:
    data = (DOCUMENTS / name).read_bytes()
    return read(data, media_type(name, None, data[:1024]))


def archive(files: dict[str, bytes]) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("office.xlsx", ["## Prices\n\n| Code | Name | Price | When |", "| 71.5 | 2026-01-04 |", "## Notes"]),
        ("office.ods", ["## S1\n\n| Code | Price |\n| --- | --- |\n| QZ-1 | 9.5 |"]),
        ("office.pptx", ["## Safety\n\nWear a helmet\n\nCall 5501", "## Prices\n\n| Code | Price |"]),
        ("office.odt", ["# Leave\n\nLeave takes 30 days."]),
        ("office.rtf", ["Café opens at 9.", "| A | B |"]),
        ("office.epub", ["# One\n\nThe whale is white."]),
        ("office.ipynb", ["# Title", "print(42)", "42"]),
        ("office.rst", ["# Title\n\nText `code`.", "## Sub\n\nMore."]),
        ("office.eml", ["# Café hours\n\nFrom: Ada <ada@example.com>", "at **nine**.", "# n.txt\n\nattached note 77"]),
        ("office.zip", ["# a.rtf\n\n", "Café opens at 9.", "# in/a.csv\n\n| Code | Name |"]),
    ],
)  # fmt: skip
def test_a_file_of_each_kind_is_read(name: str, parts: list[str]) -> None:
    text = read_file(name)["text"]
    for part in parts:
        assert part in text


def test_a_book_and_an_email_have_titles() -> None:
    assert (read_file("office.epub")["title"], read_file("office.eml")["title"]) == ("My book", "Café hours")


@pytest.mark.parametrize("name", sorted({f"a{suffix}" for suffix in kinds.OFFICE}))
def test_a_damaged_file_is_a_clear_error(name: str) -> None:
    found = read(b"PK\x03\x04 not what it says \x00\xff", media_type(name, None, b""))
    assert "unreadable" in found or found["text"].strip() in ("", "PK not what it says \ufffd")


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (b"a;b\r\n1;2,5\r\n", CSV, "| a | b |\n| --- | --- |\n| 1 | 2,5 |"),
        (b'a,b\n"x | y","two\nlines"\n\n3\n', CSV, "| a | b |\n| --- | --- |\n| x \\| y | two lines |\n| 3 |  |"),
        (b"a\tb\n1\t2\n", TSV, "| a | b |\n| --- | --- |\n| 1 | 2 |"),
        (b"# not a heading\nx = 1\n", CODE, "```\n# not a heading\nx = 1\n```"),
        (b'x = "```"\n', CODE, '````\nx = "```"\n````'),
    ],
)
def test_tables_and_source_code_keep_their_form(data: bytes, kind: str, text: str) -> None:
    assert read(data, kind)["text"] == text


def test_a_table_may_have_long_cells() -> None:
    cell = "x" * 200_000
    assert read(f'a\n"{cell}"\n'.encode(), CSV, 1_000_000)["text"] == f"| a |\n| --- |\n| {cell} |"


def test_a_table_that_one_long_row_makes_large_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(plain_text, "_cell")  # no cell is written
    table = b",".join([b"x"] * 1_000) + b"\n" + b"a\n" * 1_000
    assert "too_large" in read(table, CSV, 1_000_000)


def test_an_archive_names_what_it_leaves_out() -> None:
    found = read(archive({"a.txt": b"One.", "b.png": b"\x89PNG", ".git/config": b"x", "c.docx": b"no"}), ZIP)
    assert read(archive({"./a.txt": b"One."}), ZIP)["text"] == "# ./a.txt\n\nOne."
    assert found["text"] == "# a.txt\n\nOne."
    assert found["warnings"] == ("2 files were left out: b.png, c.docx.",)


def test_an_archive_names_what_its_files_lack() -> None:
    scanned = (DOCUMENTS / "pdf-partly-scanned.pdf").read_bytes()
    inner = archive({"a.txt": b"One.", "b.png": b"\x89PNG", "cover.pdf": scanned})
    found = read(archive({"c.zip": inner}), ZIP)
    assert found["warnings"] == (
        "c.zip: 1 file was left out: b.png.",
        "c.zip: cover.pdf: 3 of 4 pages (2-4) without text.",
    )
    many = archive({f"{number}.zip": archive({"a.txt": b"One.", "b.png": b"\x89PNG"}) for number in range(30)})
    assert len(read(many, ZIP)["warnings"]) == MAX_WARNINGS


@pytest.mark.slow
def test_one_file_that_a_library_fails_on_does_not_spoil_an_archive() -> None:
    with zipfile.ZipFile(DOCUMENTS / "docx-superscript.docx") as made:
        parts = {one.filename: made.read(one) for one in made.infolist()}
    parts["word/document.xml"] = b"<!DOCTYPE w [<!ENTITY a 'b'>]><w>&a;&c;</w>"
    deep = b"From: a@example.com\nContent-Type: message/rfc822\n\n" * 2_000
    found = read(archive({"a.docx": archive(parts), "b.txt": b"Two.", "c.eml": deep}), ZIP)
    assert (found.get("text"), found.get("warnings")) == ("# b.txt\n\nTwo.", ("2 files were left out: a.docx, c.eml.",))


def test_names_of_contained_files_stay_short_and_on_one_line() -> None:
    long = "y" * 50_000
    found = read(
        archive({"a\n\n# Forged\n.txt": b"One.", **{f"{long}{number}.bin": b"x" for number in range(12)}}), ZIP
    )
    assert found["text"] == "# a # Forged .txt\n\nOne."
    assert len(found["warnings"][0]) <= parse_process.LONGEST_WARNING


def test_an_archive_that_no_password_would_open_does_not_ask_to_remove_one() -> None:
    data = bytearray(archive({"a.txt": b"One."}))
    data[8] = data[data.index(b"PK\x01\x02") + 10] = 9  # the method Deflate64
    assert "compression method" in read(bytes(data), ZIP)["unreadable"]


def test_an_archive_with_too_much_text_names_the_file_and_the_limit() -> None:
    found = read(archive({"a.txt": b"word " * 100, "b.txt": b"word " * 100}), ZIP, 600)
    assert found == {"too_large": "'b.txt': Its text is longer than 600 characters."}
    inner = archive({"c.csv": b"word " * 200})
    found = read(archive({"a.txt": b"word " * 100, "b.zip": inner}), ZIP, 600)
    assert found == {"too_large": "'b.zip': 'c.csv': Its text is longer than 600 characters."}


def test_a_text_with_too_many_bytes_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(plain_text, "decoded")
    bomb = archive({"a.txt": b"0" * 10_000_000})
    for data, kind in [(bomb, ZIP), (archive({"b.zip": bomb}), ZIP), (b"a,b\n" * 200_000, CSV), (bytes(500_000), CODE)]:
        assert "longer than 100000 characters" in read(data, kind)["too_large"]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_within_an_archive_is_named(method: int) -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", method) as made:
        made.writestr("a.txt", "One. Two. " * 50)
    data = bytearray(out.getvalue())
    data[45:60] = b"\xff" * 15
    assert read(bytes(data), ZIP)["unreadable"].startswith("The archive is damaged: ")


HEAD = b"From: a@example.com\nSubject: Hello\nMIME-Version: 1.0\n"


@pytest.mark.parametrize("kind", ["text/plain", "text/plain; charset=us-ascii", "text/plain; charset=x-unknown"])
def test_a_mail_with_a_wrong_charset_or_none_is_read(kind: str) -> None:
    mail = HEAD + f"Content-Type: {kind}\nContent-Transfer-Encoding: 8bit\n\nDie Größe.".encode()
    assert read(mail, EMAIL)["text"].endswith("Die Größe.")
    assert read(b"\xef\xbb\xbf" + mail, EMAIL)["title"] == "Hello"


def test_names_without_an_encoding_are_read() -> None:
    mail = 'From: Jürgen <j@example.com>\nSubject: Grüße\nTo: "Müller, Ö." <m@example.com>\n\nHallo.'
    for data in (mail.encode(), mail.encode("latin-1")):
        found = read(data, EMAIL)
        assert found["text"] == ('# Grüße\n\nFrom: Jürgen <j@example.com>\nTo: "Müller, Ö." <m@example.com>\n\nHallo.')


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        b'To: "Doe, Jo" <jo@example.com>' + b',\r\n "Doe, J\xc3\xb6rg" <j@example.com>' * 8_000,
        b"Subject: Greetings" + b"\n =?utf-8?q?J=C3=B6rg?= and" * 8_000,
        b"Content-Type: text/plain" + b"; a=b" * 20_000,
        b"Content-Disposition: inline" + b"".join(b"; a*%d=b" % number for number in range(20_000)),
    ],
    ids=["recipients", "subject", "parameters", "continued parameters"],
)
@pytest.mark.timed
def test_the_longest_headers_are_read_at_once(line: bytes) -> None:
    before = time.thread_time()
    found = read(b"From: a@example.com\n" + line + b"\n\nHello.", EMAIL, 1_000_000)
    assert time.thread_time() - before < 3, "quadratic time is 10 s and more"
    assert found["text"].endswith("Hello.")
    assert found["text"].count("Jörg") == (8_000 if line.startswith((b"To", b"Subject")) else 0)


def test_lone_surrogates_of_a_charset_do_not_end_the_reader() -> None:
    found = read(HEAD + b"Content-Type: text/plain; charset=utf-7\n\n+2AA-abc", EMAIL)
    assert found["text"].endswith("\n\nabc")


MAIL_IN_PARTS = """Content-Type: multipart/alternative; boundary=A

--A
Content-Type: text/plain

Plain words.
--A
Content-Type: multipart/mixed; boundary=B

--B
Content-Type: text/html

<p>The same in HTML.
--B
Content-Type: text/csv; name="n.csv"
Content-Disposition: attachment; filename="n.csv"

a,b
--B
Content-Type: application/pdf; name="s.pdf"

no
--B--
--A--
"""
"""As Apple's Mail writes it: the attachments are parts of an alternative."""


def test_attachments_are_found_wherever_the_mail_has_them() -> None:
    found = read(HEAD + MAIL_IN_PARTS.encode(), EMAIL)
    assert found["text"].endswith("Plain words.\n\n# n.csv\n\n| a | b |\n| --- | --- |")
    assert found["warnings"] == ("1 file was left out: s.pdf.",)


def test_a_text_behind_the_body_is_kept_and_a_repeated_one_is_not() -> None:
    mail = EmailMessage()
    mail["Subject"], mail["From"] = "Hello", "a@example.com"
    mail.set_content("First.")
    mail.add_alternative("<p>First again.", subtype="html")
    mail.make_mixed()
    footer = EmailMessage()
    footer.set_content("The list's footer.")
    mail.attach(footer)
    assert read(bytes(mail), EMAIL)["text"].split("\n\n")[2:] == ["First.", "The list's footer."]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({f"{number}.txt": b"x" for number in range(MAX_ENTRIES + 1)}, "too_large"),
        ({"a.txt": b"0" * 101 * 1024 * 1024}, "too_large"),
        ({"a.txt": b"word " * 30_000}, "too_large"),
        ({"a.png": b"\x89PNG"}, "unreadable"),
        ({}, "unreadable"),
    ],
    ids=["many files", "bomb", "long", "nothing readable", "empty"],
)
def test_an_archive_that_cannot_be_used_is_refused(files: dict[str, bytes], error: str) -> None:
    assert error in read(archive(files), ZIP)


def test_archives_in_archives_end_at_a_depth() -> None:
    inner = archive({"a.txt": b"Deep."})
    for _ in range(MAX_DEPTH - 1):
        inner = archive({"in.zip": inner})
    assert "Deep." in read(inner, ZIP)["text"]
    assert "unreadable" in read(archive({"in.zip": inner}), ZIP)


def test_a_mail_in_a_mail_is_read() -> None:
    inner, outer = EmailMessage(), EmailMessage()
    inner["Subject"], inner["From"] = "Inside", "a@example.com"
    inner.set_content("The gate code is 7719.")
    outer["Subject"], outer["From"] = "Outside", "b@example.com"
    outer.set_content("See below.")
    outer.add_attachment(inner, filename="inside.eml")
    text = read(bytes(outer), EMAIL)["text"]
    assert "See below." in text
    assert "The gate code is 7719." in text


def test_without_the_extra_office_files_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "find_spec", lambda _: None)
    with pytest.raises(UnsupportedDocument, match=r"install the extra: ragherd\[formats\]"):
        media_type("a.xlsx", None, b"PK\x03\x04")
    assert media_type("a.docx", None, b"PK\x03\x04") in kinds.readable()
