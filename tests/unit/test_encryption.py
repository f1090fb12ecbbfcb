"""Texts are encrypted with the first key, decrypted with any, and bound to their place."""

from __future__ import annotations

import os
from base64 import b64encode

import pytest

from api.errors import Undecryptable
from api.redis_store.encryption import HEADER, SEGMENT, STORED, TextCipher, stored_range
from api.settings import AccessSettings

OLD, NEW = ("2025", bytes(range(32))), ("2026", bytes(range(1, 33)))
PLACE = "rag:cache:scope:digest"


def test_the_first_key_encrypts_and_all_decrypt() -> None:
    old, both = TextCipher([OLD]), TextCipher([NEW, OLD])
    stored = old.encrypt(PLACE, "answer", "Grüße an alle")
    assert isinstance(stored, bytes)
    assert "Grüße".encode() not in stored
    assert both.decrypt(PLACE, "answer", stored).decode() == "Grüße an alle"
    again = both.encrypt(PLACE, "answer", "Grüße an alle")
    assert isinstance(again, bytes)
    assert (both.is_current(stored), both.is_current(again)) == (False, True)
    with pytest.raises(Undecryptable, match="Add its key to ENCRYPTION_KEYS: '2026'"):
        old.decrypt(PLACE, "answer", again)


def test_equal_texts_differ_and_plain_ones_stay_readable() -> None:
    texts = TextCipher([OLD])
    assert texts.encrypt(PLACE, "answer", "yes") != texts.encrypt(PLACE, "answer", "yes")
    assert texts.decrypt(PLACE, "answer", b"from before") == b"from before"


@pytest.mark.parametrize(("place", "field"), [("rag:cache:scope:other", "answer"), (PLACE, "question")])
def test_a_value_cannot_be_moved(place: str, field: str) -> None:
    unreadable: list[int] = []
    texts = TextCipher([OLD], lambda: unreadable.append(1))
    stored = texts.encrypt(PLACE, "answer", "yes")
    assert isinstance(stored, bytes)
    with pytest.raises(Undecryptable, match="another than the one"):
        texts.decrypt(place, field, stored)
    assert unreadable == [1]


def test_damaged_values_are_errors_of_their_own() -> None:
    texts = TextCipher([OLD])
    stored = texts.encrypt(PLACE, "answer", "yes")
    assert isinstance(stored, bytes)
    for length in range(4, len(stored)):
        with pytest.raises(Undecryptable):
            texts.decrypt(PLACE, "answer", stored[:length])


def test_without_keys_nothing_is_encrypted_and_ciphertext_is_an_error() -> None:
    none, plain = TextCipher(), TextCipher([("plain", b""), OLD])
    stored = TextCipher([OLD]).encrypt(PLACE, "answer", "yes")
    assert isinstance(stored, bytes)
    assert none.encrypt(PLACE, "answer", "yes") == plain.encrypt(PLACE, "answer", "yes") == "yes"
    assert plain.decrypt(PLACE, "answer", stored) == b"yes"
    with pytest.raises(Undecryptable):
        none.decrypt(PLACE, "answer", stored)


@pytest.mark.parametrize("length", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 5])
def test_any_part_of_a_long_text_can_be_read(length: int) -> None:
    texts, content = TextCipher([OLD]), os.urandom(length)
    stored = texts.encrypt_content(PLACE, content)
    assert texts.decrypt_content(PLACE, stored) == content
    for part in ((0, min(length, 10)), (length // 2, length), (max(0, SEGMENT - 2), min(length, SEGMENT + 2))):
        start, end = stored_range(part)
        if part[0] < part[1]:
            assert texts.decrypt_part(PLACE, stored[:HEADER], stored[start:end], part) == content[slice(*part)]


def test_segments_cannot_be_cut_off_swapped_or_taken_from_elsewhere() -> None:
    texts, content = TextCipher([OLD]), os.urandom(3 * SEGMENT)
    stored, other = texts.encrypt_content(PLACE, content), texts.encrypt_content(PLACE, content)
    first, second = (slice(HEADER + n * STORED, HEADER + (n + 1) * STORED) for n in (0, 1))
    swapped = stored[:HEADER] + stored[second] + stored[first] + stored[second.stop :]
    mixed = stored[:HEADER] + other[first] + stored[second.start :]
    for damaged in (stored[:-STORED], stored[:-1], swapped, mixed):
        with pytest.raises(Undecryptable):
            texts.decrypt_content(PLACE, damaged)
    with pytest.raises(Undecryptable):
        texts.decrypt_content("rag:doc:other:text", stored)


def encoded(key: bytes) -> str:
    return b64encode(key).decode()


def test_the_ring_is_read_in_order() -> None:
    ring = AccessSettings(encryption_keys=f"plain,a={encoded(OLD[1])}, b-2={encoded(NEW[1])}").encryption_ring()
    assert ring == (("plain", b""), ("a", OLD[1]), ("b-2", NEW[1]))
    assert AccessSettings().encryption_ring() == ()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("secretsecret", "entry 1: expected id=key"),
        ("a=c2VjcmV0", "entry 1: expected the base64 of 32 bytes"),
        ("a=*secret*", "entry 1: expected the base64 of 32 bytes"),
        (f"a={encoded(OLD[1])},a={encoded(NEW[1])}", "an ID is there twice"),
        (f"a={encoded(OLD[1])},b={encoded(OLD[1])}", "two IDs have the same key"),
        (f"{'a' * 17}={encoded(OLD[1])}", "an ID of up to 16"),
    ],
)
def test_wrong_rings_are_refused_without_their_keys(keys: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        AccessSettings(encryption_keys=keys).encryption_ring()
    assert "secret" not in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)
