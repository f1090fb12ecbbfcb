"""Refusing invalid input takes bounded work and gives a small response."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, ValidationError

from api.endpoints import ollama_wire, openai_wire
from api.endpoints.documents import DocumentIn, FormIn
from api.endpoints.dropin_wire import parsed
from api.endpoints.query import QueryIn
from api.endpoints.semantic_cache import WarmQuestionIn, WarmUpIn
from api.endpoints.validation import MAX_CONTAINERS, MAX_FAULTS, json_of, validated
from api.errors import InvalidRequest

MANY = 100_000
BODIES: list[type[BaseModel]] = [
    QueryIn,
    WarmUpIn,
    WarmQuestionIn,
    DocumentIn,
    FormIn,
    *(ollama_wire.ChatBody, ollama_wire.GenerateBody, ollama_wire.EmbedBody, ollama_wire.ShowBody),
    *(openai_wire.ChatCompletionBody, openai_wire.EmbeddingsBody, openai_wire.OpenAIMessage),
]
BOUND_ELSEWHERE = {"DocumentIn.text"}
"""Limited by the size of the body and by `DOCUMENT_MAX_BYTES`."""


def leaves(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Returns every string and list in a schema by its location."""
    if isinstance(schema, list):
        for part in schema:
            yield from leaves(part, place)
    elif isinstance(schema, dict):
        if schema.get("type") in ("string", "array"):
            yield place, schema
        for name, part in schema.items():
            if isinstance(part, dict | list) and name != "example":
                yield from leaves(part, place if name in {"anyOf", "items", "properties"} else f"{place}.{name}")


@pytest.mark.parametrize("kind", BODIES)
def test_every_string_and_every_list_of_a_body_is_bounded(kind: type[BaseModel]) -> None:
    for place, schema in leaves(kind.model_json_schema(), kind.__name__):
        bounds = {"maxLength", "maxItems", "enum", "const"}
        assert bounds & set(schema) or place in BOUND_ELSEWHERE, (place, schema)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BODIES)
def test_many_wrong_values_give_a_handful_of_errors(kind: type[BaseModel]) -> None:
    unknown = {f"unknown-{number}-{'x' * 200}": number for number in range(MANY)}
    lists = dict.fromkeys(kind.model_fields, [1] * MANY)
    objects = dict.fromkeys(kind.model_fields, unknown)
    pairs = dict.fromkeys(kind.model_fields, [unknown] * 10)
    for given in (unknown, lists, objects, pairs):
        with pytest.raises(ValidationError) as refused:
            kind.model_validate(given)
        assert refused.value.error_count() <= 10 * len(kind.model_fields), kind
        with pytest.raises(InvalidRequest) as told:
            validated(kind, given)
        assert len(told.value.members["errors"]) <= MAX_FAULTS
        assert len(orjson.dumps([told.value.detail, told.value.members])) < 4000


def test_a_drop_in_body_gets_one_error() -> None:
    for content in ([1] * MANY, {"a": 1}, [{"type": "text", "text": 1}] * MANY):
        with pytest.raises(InvalidRequest) as told:
            parsed({"role": "user", "content": content}, openai_wire.OpenAIMessage)
        assert len(told.value.detail) < 500


def test_a_list_that_is_too_long_gets_one_error() -> None:
    with pytest.raises(InvalidRequest, match=r"^input: List should have at most 10000 items"):
        parsed({"model": "m", "input": ["a"] * MANY}, ollama_wire.EmbedBody)


def test_long_names_are_shortened_and_further_errors_are_counted() -> None:
    with pytest.raises(InvalidRequest) as told:
        validated(QueryIn, {"question": "Who?", **{f"{number}{'x' * 1000}": 1 for number in range(50)}})
    assert told.value.detail.endswith("; and more")
    assert told.value.members["errors"][0]["field"].endswith("…")


NESTED = b"[" * 1000 + b"]" * 1000
HOSTILE = {
    "empty lists": b"[" + b"[]," * (2**20 // 3 - 2) + b"1]",
    "empty objects": b"[" + b"{}," * (2**20 // 3 - 2) + b"1]",
    "nested": b"[" + b",".join([NESTED] * 500) + b"]",
    "strings and lists": b"[" + b'"",' * 200_000 + b"[]," * 20_000 + b"1]",
    "no end": b"[" * 2**20,
    "a string without an end": b'["' + b"[" * 2**19 + b'\\"' * 2**18,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.timed
def test_json_with_too_many_values_is_refused_before_decoding(name: str) -> None:
    began = time.thread_time()
    with pytest.raises(InvalidRequest):
        json_of(HOSTILE[name])
    assert time.thread_time() - began < 0.1  # decoding the worst case takes at least a tenth of a second


def test_brackets_within_strings_do_not_count() -> None:
    text = '[1, [2, "x\\"]"]], {' * 30_000
    assert json_of(orjson.dumps({"title": "Brackets", "text": text})) == {"title": "Brackets", "text": text}


def test_the_maximum_number_of_lists_is_accepted() -> None:
    fitting: list[list[object]] = [[]] * (MAX_CONTAINERS - 1)
    assert json_of(orjson.dumps(fitting)) == fitting
    with pytest.raises(InvalidRequest):
        json_of(orjson.dumps([*fitting, []]))


@pytest.mark.slow
@pytest.mark.parametrize("piece", [b'"a\\', b'"', b"\\", b'"\\"', b'""', b'"['])
@pytest.mark.timed
def test_counting_is_linear_in_the_body(piece: bytes) -> None:
    """Each string is scanned once, even if none of them ends."""
    body = b'"' + b"[" * (MAX_CONTAINERS + 1) + b'",' + piece * 200_000
    began = time.thread_time()
    with pytest.raises(InvalidRequest):
        json_of(body)
    assert time.thread_time() - began < 0.2
