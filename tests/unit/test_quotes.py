"""The sentence that a citation rests on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.knowledge.quotes import closest, sentences
from api.query.citations import with_quotes
from api.values import Source

PASSAGE = """# Holiday

Holiday is approved by the team lead. Ask Dr. Berg for it two weeks before it begins, e.g. by mail.
A day costs 99.5 EUR! See [the form](https://example.com/a.b).

| Days | Who |
|---|---|
| 28 | apprentices |
| 30 | everybody else |"""


def source(text: str, **more: str) -> Source:
    return Source("d", "Title", 0, text, 0.5, **more)  # type: ignore[arg-type]


def test_a_text_is_split_at_sentences_rows_and_headings() -> None:
    assert sentences(PASSAGE) == [
        "# Holiday",
        "Holiday is approved by the team lead.",
        "Ask Dr. Berg for it two weeks before it begins, e.g. by mail.",
        "A day costs 99.5 EUR!",
        "See [the form](https://example.com/a.b).",
        "| Days | Who |",
        "| 28 | apprentices |",
        "| 30 | everybody else |",
    ]
    assert sentences("休暇は課長が承認します。二週間前に申請します。") == [
        "休暇は課長が承認します。",
        "二週間前に申請します。",
    ]
    assert sentences("It does [1]. So it is. [2] Done.") == ["It does [1].", "So it is. [2]", "Done."]


@pytest.mark.parametrize(
    ("claim", "quote"),
    [
        ("Who approves my holiday?", "Holiday is approved by the team lead."),
        ("How long before do I ask?", "Ask Dr. Berg for it two weeks before it begins, e.g. by mail."),
        ("What are 99.5 EUR?", "A day costs 99.5 EUR!"),
        ("How many days have apprentices?", "| 28 | apprentices |"),
        ("Where is the canteen?", None),
        ("", None),
    ],
)
def test_the_sentence_closest_to_a_question(claim: str, quote: str | None) -> None:
    assert closest(claim, PASSAGE) == quote


def test_a_heading_tells_what_the_sentences_below_it_are_about() -> None:
    codes = "## PPR-9046\n\nThe pump turns backwards. Call 366.\n\n## PPR-9047\n\nThe drum jams. Call 367."
    assert closest("What does PPR-9047 mean?", codes) in ("The drum jams.", "Call 367.")


def test_a_language_without_spaces() -> None:
    passage = "食堂は三階にあります。休暇の申請は課長が承認します。"
    assert closest("休暇は誰が承認しますか", passage) == "休暇の申請は課長が承認します。"


def test_a_cited_source_quotes_what_the_answer_says_and_another_keeps_its_quote() -> None:
    sources = [
        source(PASSAGE, quote="Holiday is approved by the team lead."),
        source("Other text.", quote="Other text."),
    ]
    told = with_quotes(sources, "You pay 99.5 EUR for a day [1]. That is all.")
    assert [one.quote for one in told] == ["A day costs 99.5 EUR!", "Other text."]
    assert told == tuple(sources)  # a quote does not make sources differ
    assert [one.quote for one in with_quotes(sources, "Nothing in common [1][2].")] == [one.quote for one in sources]


@given(st.text("ab. \n|#[1]!。", max_size=200), st.text("ab. ", max_size=40))
def test_a_quote_is_a_part_of_the_passage(passage: str, claim: str) -> None:
    quote = closest(claim, passage)
    assert quote is None or (quote in passage and quote.strip())
    assert all(one in passage for one in sentences(passage))
