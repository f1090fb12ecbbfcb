"""Reads files that contain others: zip archives, and e-mails with attachments."""

from __future__ import annotations

import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage, MIMEPart
from io import BytesIO
from lzma import LZMAError
from typing import Any, Final
from zipfile import BadZipFile, ZipFile, ZipInfo

from api.errors import PayloadTooLarge, UnreadableDocument
from api.knowledge import html
from api.knowledge.kinds import HTML, TEXT, media_type
from api.knowledge.plain_text import Parsed, decoded, too_long
from api.unicode_text import one_line

Read = Callable[[bytes, str, str, int], Parsed]
"""Reads a contained file: its bytes, its kind, its name, the most characters."""
MAX_ENTRIES: Final = 500
MAX_UNPACKED: Final = 100 * 1024 * 1024
MAX_DEPTH: Final = 3
"""Archives in e-mails in archives."""
SNIFFED_BYTES: Final = 4096
LONGEST_NAME: Final = 200
MAX_WARNINGS: Final = 20
"""Of contained files."""
ASCII: Final = ("us-ascii", "ascii")
"""Encodings that messages name by default."""
HEADERS: Final = ("From", "To", "Cc", "Date")
LONGEST_HEADER: Final = 2_000
"""Characters of a header that Python's parser takes at a time: it needs quadratic time."""
_HEADER_PARTS: Final = re.compile(rf"(?s).{{1,{LONGEST_HEADER}}}(?:[,\s]|\Z)|.{{1,{LONGEST_HEADER}}}")


@dataclass(slots=True)
class _Contents:
    """What was read so far, at most `most` characters."""

    most: int
    characters: int = 0
    parts: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)

    def add(self, heading: str, text: str) -> None:
        """Raises `PayloadTooLarge`."""
        self.characters += len(text)
        if self.characters > self.most:
            raise too_long(self.most)
        if text.strip():
            self.parts.append(f"# {heading}\n\n{text.strip()}" if heading else text.strip())

    def add_file(self, name: str, declared: str, data: bytes, read: Read) -> None:
        """Adds a file under a heading with its name. One that cannot be read is left out.

        Raises `PayloadTooLarge`.
        """
        heading = one_line(name, LONGEST_NAME) or "unnamed"
        left = self.most - self.characters
        try:
            kind = media_type(name, declared, data[:SNIFFED_BYTES])
            parsed = read(data, kind, heading, left)
            self.add("" if parsed.text.startswith(f"# {heading}\n") else heading, parsed.text)
            self.warned += [f"{heading}: {warning}" for warning in parsed.warnings]
        except PayloadTooLarge as error:
            detail = error.detail.replace(too_long(left).detail, too_long(self.most).detail)
            raise PayloadTooLarge(f"'{heading}': {detail}") from None
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - the libraries' errors share no base, and the other files may be fine
            self.left_out.append(heading)

    def warnings(self) -> tuple[str, ...]:
        """Names the files that are left out, and what the others lack."""
        named = ", ".join(self.left_out[:10]) + (" ..." if len(self.left_out) > 10 else "")
        count = len(self.left_out)
        own = (f"{count} file{'s were' if count > 1 else ' was'} left out: {named}.",) if count else ()
        return (*own, *self.warned[:MAX_WARNINGS])


def read_zip(data: bytes, characters: int, read: Read) -> Parsed:
    """Each file under a heading with its path. Folders, hidden files and links are ignored.

    Raises `UnreadableDocument`, `PayloadTooLarge`.
    """
    contents = _Contents(characters)
    try:
        with ZipFile(BytesIO(data)) as archive:
            for entry in _entries(archive):
                contents.add_file(entry.filename, "", archive.read(entry), read)
    except (BadZipFile, zlib.error, LZMAError, EOFError, OSError) as error:
        raise UnreadableDocument(f"The archive is damaged: {error}") from None
    except NotImplementedError as error:
        raise UnreadableDocument(f"The archive cannot be unpacked: {error}.") from None
    except RuntimeError:  # zipfile's error for a password
        raise UnreadableDocument("The archive is encrypted. Remove its password.") from None
    if not contents.parts:
        raise UnreadableDocument("The archive contains no file that can be read.")
    return Parsed("\n\n".join(contents.parts), warnings=contents.warnings())


def _entries(archive: ZipFile) -> list[ZipInfo]:
    entries = [one for one in archive.infolist() if not one.is_dir() and not _is_hidden(one.filename)]
    unpacked = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES or unpacked > MAX_UNPACKED:
        raise PayloadTooLarge(
            f"The archive has {len(entries)} files of {unpacked} bytes; "
            f"the limits are {MAX_ENTRIES} and {MAX_UNPACKED}."
        )
    return sorted(entries, key=lambda entry: entry.filename)


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.split("/") if part != ".")


def read_email(data: bytes, characters: int, read: Read) -> Parsed:
    """Sender, recipients, date and body, then each attachment under a heading. The subject is the title."""
    message = message_from_bytes(data.removeprefix(BOM_UTF8), policy=_Policy())
    if not isinstance(message, EmailMessage) or not (message["From"] or message["Subject"]):
        raise UnreadableDocument("The file is not an e-mail: it has no headers.")
    contents = _Contents(characters)
    subject = " ".join(_header(message, "Subject").split())
    headers = {name: _header(message, name) for name in HEADERS}
    contents.add(subject, "\n".join(f"{name}: {value}" for name, value in headers.items() if value))
    body = message.get_body(preferencelist=("plain", "html"))
    if body is not None:
        contents.add("", _text(body))
    for part in _files(message, body):
        name = part.get_filename()
        if name or part.get_content_type() not in (TEXT, HTML):
            contents.add_file(name or "attachment", part.get_content_type(), _bytes(part), read)
        else:
            contents.add("", _text(part))
    return Parsed("\n\n".join(contents.parts), subject or None, warnings=contents.warnings())


class _Policy(policy.EmailPolicy):
    """Parses the beginning of long headers. Some programs write headers without encoding, in UTF-8 or Latin letters."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        return super().header_fetch_parse(name, _readable(value)[:LONGEST_HEADER])


def _readable(header: str) -> str:
    """The parser passes on bytes that are not ASCII as lone surrogates."""
    data = header.encode("utf-8", "surrogateescape")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _header(message: EmailMessage, name: str) -> str:
    """A whole header as text. There may be thousands of recipients."""
    found = next((value for key, value in message.raw_items() if key.lower() == name.lower()), "")
    whole = "".join(_readable(found).splitlines())
    if len(whole) <= LONGEST_HEADER:
        return str(message[name] or "")
    return "".join(str(policy.default.header_factory("Subject", part)) for part in _HEADER_PARTS.findall(whole))


def _files(part: MIMEPart, body: MIMEPart | None, *, is_repeated: bool = False) -> Iterator[MIMEPart]:
    """The parts besides the body, in order: attachments, and further texts, which some programs put behind them.

    Without the pictures of a page, and without what repeats a text in another format (`is_repeated`).
    """
    kind = part.get_content_type()
    if part is body:
        return
    if part.get_content_maintype() != "multipart" or not part.is_multipart():
        if not is_repeated or part.is_attachment() or kind not in (TEXT, HTML):
            yield part
        return
    if kind == "multipart/alternative" and not any(one is body for one in part.walk()):
        body = part.get_body(preferencelist=("plain", "html"))
        if body is not None:
            yield body
    for inner in part.iter_parts():
        is_picture = kind == "multipart/related" and inner.get_content_maintype() == "image"
        if isinstance(inner, MIMEPart) and (not is_picture or inner.is_attachment()):
            yield from _files(inner, body, is_repeated=is_repeated or kind == "multipart/alternative")


def _text(part: MIMEPart) -> str:
    """The text of a part. Many messages name another encoding than theirs, or none."""
    said = part.get_content_charset()
    data = _bytes(part)
    try:
        text = decoded(data, None if said in ASCII else "cp1252" if said in html.LATIN else said)
    except UnreadableDocument:
        text = data.decode("utf-8", "replace")
    return html.read(text, 0, 0).text if part.get_content_type() == HTML else text


def _bytes(attachment: MIMEPart) -> bytes:
    """An attached message has parts instead of bytes."""
    content = attachment.get_payload(decode=True)
    if isinstance(content, bytes):
        return content
    parts = attachment.get_payload() if attachment.is_multipart() else ()
    return b"".join(bytes(part) for part in parts if isinstance(part, MIMEPart))
