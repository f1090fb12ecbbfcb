"""Encryption at rest: the texts that the stores write to Redis, under the keys of ENCRYPTION_KEYS, with AES-256-GCM.

A stored value names its key, so that keys can be rotated. It is bound to its place, the key in Redis and the field: a
value that was moved elsewhere cannot be decrypted. Nonces are random, of 96 bits: a key may encrypt 2^32 values. Values
without the prefix are plain, from before the setting. No UTF-8 text begins with the prefix.

A short value is the prefix, the length of the key's ID, the ID, the nonce, and the ciphertext with its tag. A long one,
such as the text of a document, is a header and segments, so that a part of it can be read: each segment has its own
nonce and tag, and is bound to the header and to its number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from api.errors import SettingsError, Undecryptable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VALUE: Final = b"\xffrh1"
"""Begins an encrypted value. UTF-8 has no byte 255."""
CONTENT: Final = b"\xffrh2"
"""The same for a long one. Files that users upload do not begin so."""
PLAIN: Final = "plain"
"""Stands for no key: as the first of the ring, nothing is encrypted."""
NONCE, TAG, ID, SALT, LENGTH = 12, 16, 16, 8, 8
"""Bytes of each part; `ID` is that in a header, filled with zeros."""
HEADER: Final = len(CONTENT) + ID + SALT + LENGTH
SEGMENT: Final = 4096
"""Bytes of text in a segment."""
STORED: Final = NONCE + SEGMENT + TAG
"""Bytes of a whole segment as stored."""


class TextCipher:
    """Encrypts with the first of `keys` and decrypts with any of them. Without keys it leaves texts as they are.

    `keys`: IDs with their 32 bytes; `plain` has none. `on_unreadable` is called for each undecryptable value.
    """

    def __init__(
        self, keys: Sequence[tuple[str, bytes]] = (), on_unreadable: Callable[[], None] = lambda: None
    ) -> None:
        self.keys: dict[str, AESGCM] = {}
        """The keys by ID."""
        self._faults: tuple[type[Exception], ...] = (ValueError,)
        if keys:
            aes, wrong = _cryptography()
            self.keys = {name: aes(key) for name, key in keys if name != PLAIN}
            self._faults = (ValueError, wrong)
        self._first = keys[0][0] if keys and keys[0][0] != PLAIN else ""
        self._head = VALUE + bytes([len(self._first)]) + self._first.encode()
        self._on_unreadable = on_unreadable

    @property
    def encrypts(self) -> bool:
        """True if what is written is encrypted."""
        return bool(self._first)

    def encrypt(self, place: str, field: str, text: str | bytes) -> str | bytes:
        """The value to store under the key `place` as `field`."""
        if not self._first:
            return text
        nonce, plain = os.urandom(NONCE), text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        return self._head + nonce + self.keys[self._first].encrypt(nonce, plain, _bound(place, field))

    def decrypt(self, place: str, field: str, value: bytes) -> bytes:
        """The text of a stored value. Raises `Undecryptable`."""
        if not value.startswith(VALUE):
            return value
        start = len(VALUE) + 1 + value[len(VALUE)] if len(value) > len(VALUE) else len(value)
        name, rest = value[len(VALUE) + 1 : start], value[start:]
        return self._opened(name, rest, _bound(place, field))

    def is_current(self, value: bytes) -> bool:
        """Returns whether a stored value is as this cipher would write it: under the first key, or plain."""
        if value.startswith(CONTENT):
            return self._first != "" and value[len(CONTENT) : len(CONTENT) + ID].rstrip(b"\0") == self._first.encode()
        return value.startswith(self._head) if self._first else not value.startswith(VALUE)

    # -- long values --------------------------------------------------------------------------------------------------

    def encrypt_content(self, place: str, content: bytes) -> bytes:
        """The long value to store under the key `place`."""
        if not self._first:
            return content
        header = CONTENT + self._first.encode().ljust(ID, b"\0") + os.urandom(SALT)
        header += len(content).to_bytes(LENGTH, "big")
        aes, parts = self.keys[self._first], [header]
        for number, start in enumerate(range(0, len(content), SEGMENT)):
            nonce = os.urandom(NONCE)
            parts += nonce, aes.encrypt(nonce, content[start : start + SEGMENT], _segment(place, header, number))
        return b"".join(parts)

    def decrypt_content(self, place: str, value: bytes) -> bytes:
        """The text of a long value. Raises `Undecryptable`."""
        if not value.startswith(CONTENT):
            return value
        return self.decrypt_part(place, value[:HEADER], value[HEADER:], (0, _length(value)))

    def decrypt_part(self, place: str, header: bytes, segments: bytes, part: tuple[int, int]) -> bytes:
        """Bytes from and to of a long text, from its header and the stored range of `stored_range`.

        Raises `Undecryptable`.
        """
        name, first = header[len(CONTENT) : len(CONTENT) + ID].rstrip(b"\0"), part[0] // SEGMENT
        pieces = [
            self._opened(name, segment, _segment(place, header, first + number))
            for number, segment in enumerate(_segments(segments))
        ]
        start, end = part[0] - first * SEGMENT, min(part[1], _length(header)) - first * SEGMENT
        found = b"".join(pieces)
        if len(found) < end:
            raise self._unreadable(name)  # it was cut off
        return found[start:end]

    def _opened(self, name: bytes, sealed: bytes, bound: bytes) -> bytes:
        aes = self.keys.get(name.decode("ascii", "replace"))
        if aes is None:
            raise self._unreadable(name)
        try:
            return aes.decrypt(sealed[:NONCE], sealed[NONCE:], bound)
        except self._faults:
            raise self._unreadable(name) from None

    def _unreadable(self, name: bytes) -> Undecryptable:
        self._on_unreadable()
        return Undecryptable(name.decode("ascii", "replace"), is_known=name.decode("ascii", "replace") in self.keys)


def stored_range(part: tuple[int, int]) -> tuple[int, int]:
    """The bytes of a long value, from and to, whose segments have these bytes of its text."""
    first, last = part[0] // SEGMENT, -(-part[1] // SEGMENT)
    return HEADER + first * STORED, HEADER + last * STORED


def _segments(stored: bytes) -> Iterator[bytes]:
    return (stored[start : start + STORED] for start in range(0, len(stored), STORED))


def _length(header: bytes) -> int:
    return int.from_bytes(header[HEADER - LENGTH : HEADER], "big")


def _bound(place: str, field: str) -> bytes:
    return f"{place}\0{field}".encode("utf-8", "surrogatepass")


def _segment(place: str, header: bytes, number: int) -> bytes:
    return _bound(place, "content") + header + number.to_bytes(LENGTH, "big")


def _cryptography() -> tuple[type[AESGCM], type[Exception]]:
    """The cipher, and its error for a value that was changed. Raises `SettingsError` without the extra."""
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise SettingsError("ENCRYPTION_KEYS: install `ragherd[encryption]`") from None
    return AESGCM, InvalidTag


NO_CIPHER: Final = TextCipher()
"""Encrypts nothing."""
