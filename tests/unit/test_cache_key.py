"""A cache key changes with everything that the answer depends on, and with nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from api.ports.document_store import DocumentFilter
from api.ports.question import CacheControl, Query
from api.query.cache_key import fingerprint
from api.values import ChatMessage, EmbedderIdentity

EMBEDDER = EmbedderIdentity("minilm", 384, "aaaaaaaaaa")
QUERY = Query("How long is the warranty?", "acme", "llama3.2", history=(ChatMessage("user", "Hello"),))


def place(query: Query, embedder: EmbedderIdentity = EMBEDDER, digest: str = "sha256:1") -> tuple[str, str]:
    found = fingerprint(query, embedder, digest)
    return found.scope, found.digest


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "ACME"},
        {"model": "llama3.2:1b"},
        {"template": "raw"},
        {"system": "Be brief."},
        {"top_k": 0},
        {"documents": DocumentFilter(("handbook",))},
        {"documents": DocumentFilter(ids=("d1",))},
        {"options": {"temperature": 0.5}},
        {"history": ()},
        {"history": (ChatMessage("assistant", "Hello"),)},
        {"question": "How long is the guarantee?"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_key_depends_on_every_input_of_the_answer(change: dict[str, Any]) -> None:
    assert place(replace(QUERY, **change)) != place(QUERY)


def test_the_key_depends_on_the_weights_of_model_and_embedder() -> None:
    assert place(QUERY, digest="sha256:2") != place(QUERY)
    assert place(QUERY, replace(EMBEDDER, fingerprint="bbbbbbbbbb")) != place(QUERY)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "LLAMA3.2:latest"},
        {"question": "how long is the  WARRANTY"},
        {"timeout": 5.0},
        {"cache_control": CacheControl(max_age=5)},
        {"documents": DocumentFilter()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_key_ignores_inputs_that_do_not_change_the_answer(change: dict[str, Any]) -> None:
    assert place(replace(QUERY, **change)) == place(QUERY)


def test_the_order_of_tags_and_options_does_not_matter() -> None:
    one = replace(QUERY, documents=DocumentFilter(("a", "b", "a")), options={"seed": 1, "top_p": 0.5})
    other = replace(QUERY, documents=DocumentFilter(("b", "a")), options={"top_p": 0.5, "seed": 1})
    assert place(one) == place(other)


def test_adjacent_lists_do_not_collide() -> None:
    assert place(replace(QUERY, documents=DocumentFilter(("a", "b")))) != place(
        replace(QUERY, documents=DocumentFilter(("a,b",)))
    )
