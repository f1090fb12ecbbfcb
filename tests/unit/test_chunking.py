"""Text is split into chunks by its structure without losing any of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from api.embedders.minilm import SHIPPED, load_tokenizer
from api.knowledge.chunking import SECTION, Chunker, estimated_tokens, numbered, sections, spans
from api.knowledge.markdown import first_heading, heading_words
from api.knowledge.plain_text import PAGE, Parsed, joined

DOCUMENTS = Path(__file__).parents[1] / "data" / "documents"
GUIDE = """# Holiday

Ask for it two weeks before.

## Approval

The team lead approves it. The office keeps the list.

# Canteen

It is open from eleven to two.
"""


def words(text: str) -> int:
    """Counts each word as a token."""
    return len(text.split())


def test_a_short_text_is_one_chunk_with_its_offsets() -> None:
    (chunk,) = Chunker(words, 50, 5).chunks("The canteen is on the third floor.")
    assert (chunk.number, chunk.text, chunk.heading) == (0, "The canteen is on the third floor.", "")
    assert (chunk.start, chunk.end) == (0, 34)


def test_chunks_split_at_headings_and_keep_the_headings_above() -> None:
    chunks = Chunker(words, 16, 0).chunks(GUIDE)
    assert [chunk.heading for chunk in chunks] == ["Holiday", "Holiday > Approval", "Canteen"]
    assert [chunk.number for chunk in chunks] == [0, 1, 2]
    assert all(chunk.text == GUIDE[chunk.start : chunk.end] for chunk in chunks)


def test_a_heading_inside_a_code_block_is_ignored() -> None:
    text = "# Install\n\n```sh\n# this is a comment\nmake\n```\n\nThen run it."
    assert {chunk.heading for chunk in Chunker(words, 6, 0).chunks(text)} == {"Install"}


def test_long_paragraphs_split_at_sentences_with_an_overlap() -> None:
    sentences = [f"Sentence number {number} says a thing." for number in range(30)]
    text = " ".join(sentences)
    chunks = Chunker(words, 24, 7).chunks(text)
    assert len(chunks) > 5
    assert all(words(chunk.text) <= 24 for chunk in chunks)
    assert all(chunk.text.startswith("Sentence") and chunk.text.endswith(".") for chunk in chunks)
    assert all(before.end > after.start for before, after in pairwise(chunks))
    assert all(any(sentence in chunk.text for chunk in chunks) for sentence in sentences)


@pytest.mark.slow
@pytest.mark.parametrize("line", ["# " + "# " * 500_000 + "x", "# x" + " " * 1_000_000 + "y"])
def test_a_heading_of_a_megabyte_takes_little_time(line: str) -> None:
    """A pattern that searches for the end would block for an hour."""
    (chunk,) = numbered(line, [(0, line)])
    assert chunk.heading == line[2:202]
    assert (first_heading(line) or "").startswith(line[2:202])


@pytest.mark.parametrize(("line", "words"), [("Lists ##", "Lists"), ("C#", "C#"), ("C# #", "C#"), ("a # b", "a # b")])
def test_closing_hashes_are_not_part_of_a_heading(line: str, words: str) -> None:
    assert heading_words(line) == words


def test_headings_without_text_do_not_become_chunks() -> None:
    assert [chunk.text for chunk in Chunker(words, 4, 0).chunks("# One\n\n# Two\n\nA few words here.")] == [
        "A few words here."
    ]


def test_a_text_of_headings_is_one_chunk_and_an_empty_text_none() -> None:
    assert [chunk.text for chunk in Chunker(words, 50, 0).chunks("# Only this")] == ["# Only this"]
    assert Chunker(words, 50, 0).chunks("--- *** ---") == []


def test_long_texts_are_split_section_by_section_at_headings() -> None:
    part = "# Heading\n\n" + "Words of a paragraph. " * 400
    text = "\n\n".join([part] * 8)
    parts = sections(text)
    assert len(parts) == 4
    assert "".join(section for _, section in parts) == text
    assert all(len(section) <= SECTION for _, section in parts)
    assert all(section.lstrip().startswith("# Heading") for _, section in parts)


@given(st.text(alphabet="ab #\n.é漢", max_size=400), st.integers(0, 2))
def test_every_word_is_in_a_chunk_and_offsets_match_the_text(text: str, neighbours: int) -> None:
    chunker = Chunker(words, 8, 2)
    chunks = chunker.chunks(text)
    if not (len(chunks) == 1 and chunks[0].start == 0):
        assert all(chunk.text == text[chunk.start : chunk.end] for chunk in chunks)
    raw = text.encode()
    for chunk, (span, reach) in zip(chunks, spans(text, chunks, neighbours), strict=True):
        assert raw[span[0] : span[1]].decode() == text[chunk.start : chunk.end]
        assert reach[0] <= span[0] <= span[1] <= reach[1]
        raw[reach[0] : reach[1]].decode()


def test_context_spans_stay_within_the_document() -> None:
    text = " ".join(f"Sentence number {number} says a thing." for number in range(12))
    chunks = Chunker(words, 14, 0).chunks(text)
    reaches = [reach for _, reach in spans(text, chunks, 1)]
    assert reaches[0] == (0, chunks[1].end)
    assert reaches[-1] == (chunks[-2].start, chunks[-1].end)


def test_chunks_are_numbered_across_sections() -> None:
    text = "First words.\n\nSecond words."
    assert [(chunk.number, chunk.start) for chunk in numbered(text, [(0, "First words."), (14, "Second words.")])] == [
        (0, 0),
        (1, 14),
    ]


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a" * 32, 10)])
def test_tokens_are_estimated_without_a_tokenizer(text: str, tokens: int) -> None:
    assert estimated_tokens(text) == tokens


SIZE = 256
UNSPACED = {
    "thai": (DOCUMENTS / "txt-thai-no-spaces.txt").read_text("utf-8"),
    "hex dump": (DOCUMENTS / "md-hex-dump.md").read_text("utf-8"),
    "dna": "ACGTTGCA" * 2_000,
    "thai in words": ("พนักงานที่ต้องการลาพักร้อน" * 3 + " ") * 120,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(SHIPPED / "tokenizer.json", "EMBED_MODEL_PATH")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(UNSPACED))
def test_no_chunk_is_over_its_tokens_in_any_script(name: str, tokenizer: Tokenizer) -> None:
    """WordPiece reads a run of more than 100 letters, and a word of unknown letters, as one token."""
    tokenizer.no_truncation()
    text = UNSPACED[name]
    chunks = Chunker(lambda part: len(tokenizer.encode(part).ids), SIZE, 32, tokenizer).chunks(text)
    assert max(len(chunk.text) for chunk in chunks) <= SIZE * 5
    assert sum(len(chunk.text) for chunk in chunks) >= 0.95 * len(text)
    assert all(chunk.text == text[chunk.start : chunk.end] for chunk in chunks)


ROWS = [f"| QZ-{number} | Pump shaft {number} | {number}.50 |" for number in range(1100, 1160)]
TABLE = "\n".join(["| Part | Name | Price |", "|---|:---:|--:|", *ROWS])


def test_each_chunk_of_a_table_begins_with_its_header() -> None:
    text = f"# Prices\n\nThe list of May.\n\n{TABLE}\n\nCall us for more."
    chunks = Chunker(words, 60, 0).chunks(text)
    assert len(chunks) > 8
    assert all("| Part | Name | Price |\n|---|:---:|--:|\n" in chunk.text for chunk in chunks if "QZ-" in chunk.text)
    assert all(chunk.text.count("| Part |") <= 1 and words(chunk.text) <= 60 for chunk in chunks)
    assert all(any(row in chunk.text for chunk in chunks) for row in ROWS)
    assert all(chunk.text.endswith(text[chunk.start : chunk.end]) for chunk in chunks)
    assert "| Part |" not in chunks[-1].text or "QZ-" in chunks[-1].text


def test_a_table_over_several_sections_keeps_its_header() -> None:
    rows = "\n".join(f"| {number} | {'word ' * 12}|" for number in range(900))
    chunks = Chunker(words, 80, 0).chunks(f"| Number | Text |\n|--|--|\n{rows}")
    assert sum(len(chunk.text) for chunk in chunks) > 2 * SECTION
    assert all(chunk.text.startswith("| Number | Text |\n|--|--|\n") for chunk in chunks)


def test_a_header_that_leaves_no_room_for_rows_is_not_repeated() -> None:
    wide = "| " + " | ".join(f"Column {number}" for number in range(40)) + " |"
    text = "\n".join([wide, "|" + "--|" * 40, *ROWS])
    chunks = Chunker(words, 60, 0).chunks(text)
    assert all(words(chunk.text) <= 60 for chunk in chunks)
    assert all(chunk.text == text[chunk.start : chunk.end] for chunk in chunks)


@pytest.mark.parametrize("fence", ["```", "```python", "~~~~ text"])
def test_a_code_fence_is_no_chunk(fence: str) -> None:
    text = f"Run these lines now please\n\n{fence}\none two three four five six\nseven eight nine ten\n{fence[:3]}"
    chunks = Chunker(words, 6, 0).chunks(text)
    assert [chunk.text for chunk in chunks if chunk.text.startswith(fence[:3]) and "\n" not in chunk.text] == []
    assert all(any(word in chunk.text for chunk in chunks) for word in ("now", "three", "ten"))


def test_chunks_know_the_page_on_which_they_begin() -> None:
    text, starts = joined(["First page.", "", "Third page. It ends", "on the fourth."])
    stored = Parsed(text, page_starts=starts).marked_text
    assert text == "First page.\n\nThird page. It ends\n\non the fourth."
    assert (stored.count(PAGE), stored.replace(PAGE, "")) == (4, text)
    chunks = Chunker(words, 4, 0).chunks(stored)
    assert [(chunk.text, chunk.page) for chunk in chunks] == [
        ("First page.", 1),
        ("Third page. It ends", 3),
        ("on the fourth.", 4),
    ]
    assert all(chunk.text == stored[chunk.start : chunk.end] for chunk in chunks)
    assert all(PAGE not in chunk.text for chunk in Chunker(words, 50, 0).chunks(stored))


def test_a_chunk_holds_no_two_pages_unless_a_sentence_runs_on() -> None:
    full = "These are words of a page, and there are many of them"
    stored = Parsed("".join(pages := [f"{full}.", f"{full} which", "go on. Ends.", "7"]))
    starts = tuple(sum(map(len, pages[:number])) for number in range(len(pages)))
    chunks = Chunker(words, 90, 0).chunks(replace(stored, page_starts=starts).marked_text)
    assert [(chunk.page, chunk.text.split("\n")) for chunk in chunks] == [
        (1, [f"{full}."]),
        (2, [f"{full} which", "go on. Ends.", "7"]),
    ]


def test_a_text_without_pages_has_no_page_numbers() -> None:
    assert Parsed("Text.").marked_text == "Text."
    assert {chunk.page for chunk in Chunker(words, 16, 0).chunks(GUIDE)} == {None}
