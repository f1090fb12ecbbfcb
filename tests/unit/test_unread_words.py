"""Words that are missing from the embedder's vocabulary, with the real tokenizer."""

from __future__ import annotations

import time

import pytest

from api.embedders.minilm import MiniLM, model_files

LONG = "x" * 101


@pytest.fixture(scope="module")
def model() -> MiniLM:
    return MiniLM(model_files(None))


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("How do I reset my password?", ()),
        ("Résumé, naïve, İstanbul, re\u0301sume\u0301: 5 € and ½", ()),
        ("How do I reset 密码?", ("密码",)),
        ("What does ☀ mean, and ☀\ufe0f?", ("☀", "☀")),
        ("the 🇫🇷 team", ("🇫🇷",)),
        ("What is ∑ over N?", ("∑",)),
        ("hello☀ world", ("hello☀",)),
        (f"What is {LONG}?", (LONG,)),
        (f"What is {LONG.upper()}?", (LONG,)),
        ("Is a ≠ b?", ("≠",)),
        ("翻訳 to English", ("翻訳",)),
        ("a \u200b b\u00ad", ()),
    ],
)
def test_unread_words_are_reported(model: MiniLM, text: str, unread: tuple[str, ...]) -> None:
    (embedding,) = model.embed([text])
    assert embedding.unread == unread


def test_dropped_marks_that_change_a_letter_are_unread(model: MiniLM) -> None:
    """Otherwise `with ga` and `with ka` would be equal, and so would Hindi words with the same consonants."""
    for one, other in (("が", "か"), ("जोड़ें", "जोड़ा"), ("x ≮ y", "x < y"), ("ก่", "ก้")):
        first, second = model.embed([one, other])
        assert first.unread != second.unread, (one, other)


def test_truncated_text_is_unread(model: MiniLM) -> None:
    read, cut = model.embed(["bridge " * 254, "bridge " * 254 + "and Something else"])
    assert read.unread == ()
    assert cut.unread == ("and something else",)
    assert read.vector == cut.vector


def test_the_rest_of_the_batch_changes_nothing(model: MiniLM) -> None:
    texts = ["plain", "密码", "two words", "☀ ☂"]
    assert [one.unread for one in model.embed(texts)] == [model.embed([text])[0].unread for text in texts]


@pytest.mark.slow
@pytest.mark.timed
def test_long_runs_of_marks_take_linear_time(model: MiniLM) -> None:
    def seconds(marks: int) -> float:
        text = "a" + "\u0315\u0300" * marks
        best = min(_timed(model, text) for _ in range(3))
        return best + 1e-3

    assert seconds(40_000) < 12 * seconds(10_000)


def _timed(model: MiniLM, text: str) -> float:
    encoding = model._encoded(text)
    began = time.process_time()
    model._unread.of(text, encoding)
    return time.process_time() - began
