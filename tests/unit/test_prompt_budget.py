"""A prompt fits the model's context and contains the best passages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.query.prompt import LEAST, TURN, Prompts, budget, estimated_tokens, fit, load_template
from api.values import ChatMessage, Source

PROMPTS = Prompts(load_template(None))
QUESTION = "How long is the warranty?"


def source(text: str, number: int = 0) -> Source:
    return Source(f"d{number}", f"Document {number}", number, text, 0.9)


def turns(*contents: str) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage("assistant" if index % 2 else "user", content) for index, content in enumerate(contents))


def words(text: str) -> int:
    return len(text.split())


def size(history: tuple[ChatMessage, ...], sources: tuple[Source, ...]) -> int:
    return sum(words(turn.content) + TURN for turn in PROMPTS.grounded(QUESTION, history, sources))


@pytest.mark.parametrize(
    ("num_ctx", "num_predict", "expected"),
    [
        (None, None, 3072),
        (8192, None, 7168),
        (8192, 200, 7992),
        (8192, 100_000, 4096),
        (1024, None, 512),
        (None, -1, 3072),
        (None, 0, 3072),
        (0, None, 3072),
        (1, None, 1),
    ],
)
def test_the_budget_is_the_context_minus_the_answer(
    num_ctx: int | None, num_predict: int | None, expected: int
) -> None:
    assert budget(num_ctx, num_predict) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("a" * 32, 10), ("a", 1), ("日本語", 3), ("한국어 text", 3 + 2), ("гарантия", 6), ("2024", 4), ("😀", 1)],
)
def test_tokens_are_estimated_by_alphabet(text: str, expected: int) -> None:
    assert estimated_tokens(text) == expected


def test_everything_is_included_if_it_fits() -> None:
    sources = tuple(source("ten words " * 5, number) for number in range(4))
    history = turns("Hello", "Good day")
    assert fit(PROMPTS, QUESTION, history, sources, 1000, words) == (sources, history)


def test_the_first_passages_that_fit_are_kept_complete() -> None:
    sources = tuple(source("word " * 50, number) for number in range(6))
    exactly_three = size((), sources[:3])
    assert fit(PROMPTS, QUESTION, (), sources, exactly_three, words) == (sources[:3], ())
    assert fit(PROMPTS, QUESTION, (), sources, exactly_three - 1, words) == (sources[:2], ())


def test_no_passage_is_skipped_for_a_shorter_one() -> None:
    sources = (source("short"), source("word " * 500), source("short"))
    assert fit(PROMPTS, QUESTION, (), sources, 300, words) == (sources[:1], ())


def test_a_first_passage_that_is_too_long_ends_at_a_sentence() -> None:
    text = " ".join(f"Sentence {number} says a little." for number in range(400))
    (kept,), _ = fit(PROMPTS, QUESTION, (), (source(text), source("more")), 300, words)
    assert kept.text.endswith("says a little.")
    assert text.startswith(kept.text)
    assert 280 < size((), (kept,)) <= 300
    assert (kept.document_id, kept.score) == ("d0", 0.9)


def test_it_ends_at_a_word_if_no_sentence_ends() -> None:
    (kept,), _ = fit(PROMPTS, QUESTION, (), (source("wordy " * 2000),), 300, words)
    assert kept.text.endswith(" wordy")
    assert 290 < size((), (kept,)) <= 300


def test_it_ends_anywhere_if_there_are_no_spaces() -> None:
    (kept,), _ = fit(PROMPTS, QUESTION, (), (source("保" * 5000),), 600)
    assert 250 < len(kept.text) < 600


def test_the_first_passage_keeps_something_however_small_the_budget() -> None:
    sources = (source("wordy " * 2000), source("more"))
    (kept,), history = fit(PROMPTS, "why " * 500, turns("Hello", "Good day"), sources, 10, words)
    assert LEAST - 6 <= len(kept.text) <= LEAST
    assert history == ()


def test_without_sources_only_the_history_is_shortened() -> None:
    history = turns("word " * 100, "b", "c", "d")
    assert fit(PROMPTS, QUESTION, history, (), 200, words) == ((), history[2:])


def test_the_oldest_turns_are_dropped_if_history_exceeds_half() -> None:
    history = turns("word " * 50, "an answer", "word " * 40, "an answer")
    question = 5 + TURN
    latter = 40 + 2 + 2 * TURN
    assert fit(PROMPTS, QUESTION, history, (source("text"),), 2 * (question + latter), words)[1] == history[2:]
    assert fit(PROMPTS, QUESTION, history, (source("text"),), 2 * (question + latter) - 2, words)[1] == ()
    assert fit(PROMPTS, QUESTION, history, (source("text"),), 1000, words)[1] == history


def test_a_history_may_start_with_an_answer() -> None:
    history = (ChatMessage("assistant", "Good day"), *turns("Hello"))
    assert fit(PROMPTS, QUESTION, history, (source("text"),), 1000, words)[1] == history


@pytest.mark.slow
@given(
    st.lists(st.text(alphabet="ab. \n保9", max_size=400), min_size=1, max_size=5),
    st.lists(st.text(alphabet="ab ", max_size=200), max_size=6),
    st.integers(500, 2000),
)
def test_the_prompt_never_exceeds_the_budget(texts: list[str], said: list[str], tokens: int) -> None:
    sources = tuple(map(source, texts))
    kept, history = fit(PROMPTS, QUESTION, turns(*said), sources, tokens)
    messages = PROMPTS.grounded(QUESTION, history, kept)
    assert sum(estimated_tokens(message.content) + TURN for message in messages) <= tokens
    assert kept
    assert sources[1 : len(kept)] == kept[1:]
    assert sources[0].text.startswith(kept[0].text)
