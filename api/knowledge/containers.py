"""Reads files that contain others: zip archives, and e-mails with attachments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from io import BytesIO
from typing import Final
from zipfile import BadZipFile, ZipFile, ZipInfo

from api.errors import PayloadTooLarge, RagherdError, UnreadableDocument
from api.knowledge import html
from api.knowledge.kinds import HTML, media_type
from api.knowledge.plain_text import Parsed, too_long

Read = Callable[[bytes, str, int], Parsed]
"""Reads a contained file: its bytes, its kind, the most characters."""
MAX_ENTRIES: Final = 500
MAX_UNPACKED: Final = 100 * 1024 * 1024
MAX_DEPTH: Final = 3
"""Archives in e-mails in archives."""
SNIFFED_BYTES: Final = 1024
HEADERS: Final = ("From", "To", "Cc", "Date")


@dataclass(slots=True)
class _Contents:
    """What was read so far, at most `characters`."""

    characters: int
    parts: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, heading: str, text: str) -> None:
        """Raises `PayloadTooLarge`."""
        self.characters -= len(text)
        if self.characters < 0:
            raise too_long(sum(map(len, self.parts)))
        if text.strip():
            self.parts.append(f"# {heading}\n\n{text.strip()}" if heading else text.strip())

    def add_file(self, name: str, declared: str, data: bytes, read: Read) -> None:
        """Adds a file under a heading with its name. One that cannot be read is left out."""
        try:
            kind = media_type(name, declared, data[:SNIFFED_BYTES])
            self.add(name, read(data, kind, self.characters).text)
        except PayloadTooLarge:
            raise
        except RagherdError:
            self.left_out.append(name)

    def warnings(self) -> tuple[str, ...]:
        """Names the files that are left out."""
        if not self.left_out:
            return ()
        named = ", ".join(self.left_out[:10]) + (" ..." if len(self.left_out) > 10 else "")
        return (f"{len(self.left_out)} files were left out: {named}.",)


def read_zip(data: bytes, characters: int, read: Read) -> Parsed:
    """Each file under a heading with its path. Folders, hidden files and links are ignored.

    Raises `UnreadableDocument`, `PayloadTooLarge`.
    """
    contents = _Contents(characters)
    try:
        with ZipFile(BytesIO(data)) as archive:
            for entry in _entries(archive):
                contents.add_file(entry.filename, "", archive.read(entry), read)
    except BadZipFile as error:
        raise UnreadableDocument(f"The archive is damaged: {error}") from None
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
    return any(part.startswith((".", "__MACOSX")) for part in path.split("/"))


def read_email(data: bytes, characters: int, read: Read) -> Parsed:
    """Sender, recipients, date and body, then each attachment under a heading. The subject is the title."""
    message = message_from_bytes(data, policy=policy.default)
    if not isinstance(message, EmailMessage) or not (message["From"] or message["Subject"]):
        raise UnreadableDocument("The file is not an e-mail: it has no headers.")
    contents = _Contents(characters)
    subject = " ".join(str(message["Subject"] or "").split())
    contents.add(subject, "\n".join(f"{name}: {message[name]}" for name in HEADERS if message[name]))
    contents.add("", _body(message))
    for attachment in message.iter_attachments():
        name = attachment.get_filename() or "attachment"
        contents.add_file(name, attachment.get_content_type(), _bytes(attachment), read)
    return Parsed("\n\n".join(contents.parts), subject or None, warnings=contents.warnings())


def _body(message: EmailMessage) -> str:
    body = message.get_body(preferencelist=("plain", "html"))
    if body is None:
        return ""
    text = str(body.get_content())
    return html.read(text, 0, 0).text if body.get_content_type() == HTML else text


def _bytes(attachment: EmailMessage) -> bytes:
    """A message in a message has no bytes of its own."""
    content = attachment.get_payload(decode=True)
    if isinstance(content, bytes):
        return content
    parts = attachment.get_payload() if attachment.is_multipart() else ()
    return b"".join(bytes(part) for part in parts if isinstance(part, EmailMessage))
