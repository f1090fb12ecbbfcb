"""Embedded text never exceeds the model's limit by its own tokenizer, so nothing is truncated silently."""

from __future__ import annotations

from string import printable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from api.embedders.minilm import MARKS, MAX_TOKENS, MiniLM, model_files
from api.knowledge.chunk_embedding import PLACE, EmbeddedText
from api.knowledge.chunking import Chunker, TokenCounter
from api.ports.document_store import Chunk, DocumentFacts
from api.settings import ONNX_CHUNK_TOKENS, DocumentSettings

pytestmark = [pytest.mark.slow, pytest.mark.once(reason="the tokenizer counts")]

MODEL = MiniLM(model_files(None))
USUAL = DocumentSettings(_env_file=None)
WORDS = (
    "holiday",
    "antidisestablishmentarianism",
    "休暇は上司が承認します",
    "Öffnungszeiten",
    "x_9$%!",
    "🙂🚀",
    "a.b.c/d-e",
    "naïve",
)
BLOCKS = ("", "# One", "## Two of them", "| a | b |\n|---|---|", "```\ncode()\n```")


def lines(words: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Texts of such words, with headings, tables and code between them."""
    texts = st.lists(st.sampled_from(WORDS) | words, max_size=200).map(" ".join)
    return st.lists(texts | st.sampled_from(BLOCKS), max_size=12).map("\n\n".join)


def tokens_read(text: str) -> int:
    """Returns the number of tokens without truncation."""
    return MODEL.count_tokens(text) + MARKS


def embedded(chunker: Chunker, title: str, text: str) -> list[tuple[Chunk, str]]:
    made = EmbeddedText(MODEL.count_tokens, MAX_TOKENS - MARKS)
    facts = DocumentFacts("default", title)
    return [(chunk, made.of(facts, chunk)) for chunk in chunker.chunks(text)]


@settings(max_examples=60, deadline=None)
@given(title=st.text(min_size=1, max_size=500), text=lines(st.text(max_size=30)), largest=st.booleans())
def test_no_embedded_text_exceeds_the_model_limit(title: str, text: str, largest: bool) -> None:
    size, overlap = (ONNX_CHUNK_TOKENS, 100) if largest else (USUAL.chunk_tokens, USUAL.chunk_overlap)
    for chunk, whole in embedded(Chunker(MODEL.count_tokens, size, overlap, MODEL.tokenizer), title, text):
        assert MODEL.count_tokens(chunk.text) <= size
        assert tokens_read(whole) <= MAX_TOKENS
        assert whole.endswith(chunk.text)


@settings(max_examples=30, deadline=None)
@given(text=lines(st.text(printable, max_size=30)))
def test_truncation_and_counting_agree(text: str) -> None:
    # Only the chunker with the tokenizer counts an unknown token by its letters.
    assume(TokenCounter(MODEL.tokenizer)(text) == MODEL.count_tokens(text))
    sizes = (USUAL.chunk_tokens, USUAL.chunk_overlap)
    by_tokenizer = Chunker(MODEL.count_tokens, *sizes, MODEL.tokenizer)
    assert by_tokenizer.chunks(text) == Chunker(MODEL.count_tokens, *sizes).chunks(text)


@pytest.mark.parametrize(
    "language", ["Urlaub genehmigt der Chef. ", "休暇は上司が承認します。", "🙂 " * 10, "ab1" * 80 + " "]
)
def test_the_text_takes_precedence_over_a_long_title_and_deep_headings(language: str) -> None:
    chunk = Chunk(0, "The passage itself. " * 20, " > ".join(["Part " + language * 3] * 5)[:200], 0, 400)
    made = EmbeddedText(MODEL.count_tokens, MAX_TOKENS - MARKS).of(
        DocumentFacts("default", (language * 50)[:500]), chunk
    )
    assert made.endswith(chunk.text)
    place = made.removesuffix(chunk.text)
    assert 0 < MODEL.count_tokens(place) <= PLACE


def test_a_text_that_fits_is_embedded_unchanged() -> None:
    made = EmbeddedText(MODEL.count_tokens, MAX_TOKENS - MARKS)
    facts = DocumentFacts("default", "Holiday policy")
    assert (
        made.of(facts, Chunk(0, "Ask first.", "Work > Holiday", 0, 10)) == "Holiday policy\nWork > Holiday\nAsk first."
    )
    assert made.of(facts, Chunk(0, "Ask first.", "", 0, 10)) == "Holiday policy\nAsk first."


def test_the_innermost_heading_is_kept_if_not_all_fit() -> None:
    made = EmbeddedText(len, None)
    assert made.of(DocumentFacts("default", "T"), Chunk(0, "x", "A" * 60 + " > Holiday", 0, 1)) == "T\nHoliday\nx"


def test_a_long_text_of_headings_alone_is_cut_like_any_other() -> None:
    text = "\n\n".join(f"# What is done about the matter number {number}" for number in range(100))
    found = embedded(Chunker(MODEL.count_tokens, 160, 0, MODEL.tokenizer), "Headings", text)
    assert all(tokens_read(whole) <= MAX_TOKENS for _, whole in found)
    assert all(f"number {number}" in text for number in range(100))
    assert sum(chunk.text.count("#") for chunk, _ in found) == 100


def test_the_largest_chunk_leaves_room_for_its_headings() -> None:
    assert ONNX_CHUNK_TOKENS + MARKS < MAX_TOKENS
    assert USUAL.chunk_tokens + PLACE + MARKS <= MAX_TOKENS
