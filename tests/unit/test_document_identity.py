"""The identity of documents."""

from __future__ import annotations

from dataclasses import replace

import pytest

from api.knowledge.document_service import content_digest, document_id
from api.ports.document_store import DocumentFacts

PLAIN = DocumentFacts("acme", "Holiday policy")
SOURCED = replace(PLAIN, source="https://example.com/holiday")


def test_the_same_source_is_the_same_document_whatever_its_content() -> None:
    renamed = replace(SOURCED, title="Another title", tags=("hr",), version="2")
    assert document_id(SOURCED, b"one") == document_id(renamed, b"two")


def test_without_a_source_the_title_identifies_a_document() -> None:
    assert document_id(replace(PLAIN, version="1"), b"one") == document_id(replace(PLAIN, version="2"), b"two")


def test_without_a_title_the_file_name_identifies_a_document() -> None:
    untitled = DocumentFacts("acme", "", version="1")
    assert document_id(untitled, b"one", "a.txt") == document_id(replace(untitled, version="2"), b"two", "a.txt")
    assert document_id(untitled, b"one", "a.txt") != document_id(untitled, b"one", "b.txt")
    assert document_id(untitled, b"one") != document_id(untitled, b"two")


def test_without_either_the_content_identifies_a_document() -> None:
    assert document_id(PLAIN, b"one") == document_id(PLAIN, b"one")
    assert document_id(PLAIN, b"one") != document_id(PLAIN, b"two")


@pytest.mark.parametrize("facts", [PLAIN, SOURCED, replace(PLAIN, version="1")])
def test_tenants_share_no_document(facts: DocumentFacts) -> None:
    assert document_id(facts, b"one") != document_id(replace(facts, tenant="other"), b"one")


def test_a_title_is_not_taken_for_a_source() -> None:
    assert document_id(replace(PLAIN, title="x", version="1"), b"") != document_id(replace(PLAIN, source="x"), b"")


@pytest.mark.parametrize(
    "changed",
    [replace(SOURCED, title="Other"), replace(SOURCED, tags=("hr",)), replace(SOURCED, version="2")],
)
def test_other_metadata_changes_the_content_digest(changed: DocumentFacts) -> None:
    assert content_digest(SOURCED, b"one", "text/plain") != content_digest(changed, b"one", "text/plain")
    assert content_digest(SOURCED, b"one", "text/plain") != content_digest(SOURCED, b"two", "text/plain")


def test_the_order_of_tags_does_not_matter() -> None:
    one, other = replace(PLAIN, tags=("a", "b")), replace(PLAIN, tags=("b", "a"))
    assert content_digest(one, b"", "text/plain") == content_digest(other, b"", "text/plain")
