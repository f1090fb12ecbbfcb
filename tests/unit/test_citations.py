"""Citations that refer to no passage are removed from answers, and nothing else is."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.query.citations import LONGEST, MAX_GLUE, Citations, clean

PIECES = ["[1]", "[2]", "[7]", "[0]", "[1, 7]", "[5-9]", "[2–8]", "word", "x", "- ", " ", ", ", ".", "\n", *"()`"]
answers = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)
anything = st.text(alphabet="[]()0127 ,;-–.`a\n\t", max_size=60)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("policy [1].", "policy [1]."),
        ("policy [7].", "policy."),
        ("policy[7].", "policy."),
        ("policy [0] says", "policy says"),
        ("policy [7] says", "policy says"),
        ("policy[7] says", "policy says"),
        ("policy [7]says", "policy says"),
        ("policy [7], so", "policy, so"),
        ("policy, [7] so", "policy, so"),
        ("policy, [7].", "policy."),
        ("policy [7]", "policy"),
        ("policy [7],", "policy,"),
        ("policy  [7]\nnext", "policy\nnext"),
        ("[7] Policy", "Policy"),
        ("One.\n[7] Two.", "One.\nTwo."),
        ("- [7] Policy", "- Policy"),
        ("[7]", ""),
    ],
)
def test_a_citation_without_a_passage_is_removed_with_its_space(answer: str, expected: str) -> None:
    assert clean(answer, 3) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("a [1, 7].", "a [1]."),
        ("a [7,1;9; 3].", "a [1, 3]."),
        ("a [1,3].", "a [1,3]."),
        ("a [ 2 ].", "a [ 2 ]."),
        ("a [1-3].", "a [1-3]."),
        ("a [1–7].", "a [1–3]."),
        ("a [3-7].", "a [3]."),
        ("a [7-2].", "a [2-3]."),
        ("a [5-7].", "a."),
        ("a [1], [7].", "a [1]."),
        ("a [7], [1].", "a [1]."),
        ("a [1], [7], [2].", "a [1], [2]."),
        ("a [1], [7] b", "a [1] b"),
        ("a [1][7][2].", "a [1][2]."),
        ("a [7][8] b", "a b"),
        ("a [7], [8]; b", "a; b"),
        ("a ([7]).", "a."),
        ("a ([1], [7]).", "a ([1])."),
        ("a ([7], [1]).", "a ([1])."),
        ("a ([7] b)", "a (b)"),
        ("a [1]([7]).", "a [1]."),
        ("a [7]([1]).", "a ([1])."),
        ("a [1]([2]).", "a [1]([2])."),
    ],
)
def test_lists_ranges_and_adjacent_citations(answer: str, expected: str) -> None:
    assert clean(answer, 3) == expected


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no brackets, (none) at all; ok",
        "[x] and [text](url) and [ ] and []",
        "[7](https://example.org/7)",
        "![7](picture.png)",
        "in [2024] and [1234]",
        "between [0, 1] or [0-9]",
        "[-7] and [7-] and [1,] and [,7]",
        "open [7",
        "open [",
        "`list[7]` and ``a ` [7]``",
        "```python\nrow[7]\n\nrow[8] `\n```",
        "    indented   far                         away",
        "one ( two, , three (( four [five",
        "ends with a space ",
        "[" + "1," * 30 + "1]",
    ],
)
def test_other_brackets_stay(answer: str) -> None:
    citations = Citations(3)
    assert citations.feed(answer) + citations.end() == answer
    assert (citations.cited, citations.removed) == (set(), 0)


def test_code_ends_at_its_closing_backticks() -> None:
    assert clean("`a[7]` b[7]", 3) == "`a[7]` b"
    assert clean("```\na[7]\n```\nb[7]", 3) == "```\na[7]\n```\nb"


def test_a_single_backtick_reaches_no_further_than_its_paragraph() -> None:
    assert clean("a ` b [7]\nc [7]\n\nd [7].", 3) == "a ` b [7]\nc [7]\n\nd."


def test_it_reports_cited_passages_and_removed_citations() -> None:
    citations = Citations(4)
    citations.feed("a [1], b [2-3], c [1, 7], d [3-9], e [8], `[4]` and [4](url)")
    citations.end()
    assert citations.cited == {1, 2, 3, 4}
    assert citations.removed == 3

    spared = Citations(4)
    spared.feed("`[4]` and [4](url)")
    assert (spared.cited, spared.removed) == (set(), 0)


def test_text_is_withheld_only_while_it_may_be_a_citation() -> None:
    citations = Citations(3)
    assert citations.feed("As the policy [") == "As the policy"
    assert citations.feed("1") == ""
    assert citations.feed("] says") == " [1] says"
    assert citations.feed(" [see") == " [see"
    assert citations.feed(" [" + "1" * LONGEST) != ""


@pytest.mark.slow
@given(anything)
def test_the_withheld_text_is_bounded(text: str) -> None:
    citations = Citations(3)
    given_out = citations.feed(text)
    assert len(given_out + citations.end()) - len(given_out) <= 2 * MAX_GLUE + LONGEST + 4


@given(anything, st.data())
def test_the_result_does_not_depend_on_token_boundaries(text: str, data: st.DataObject) -> None:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]
    citations = Citations(2)
    assert "".join(map(citations.feed, pieces)) + citations.end() == clean(text, 2)


@given(anything)
def test_only_citations_separators_and_white_space_are_removed(text: str) -> None:
    def words(of: str) -> str:
        return re.sub(r"[^a.`\n]", "", of)

    assert words(clean(text, 2)) == words(text)


@given(answers)
@example("[1]([7])")
def test_remaining_citations_name_existing_passages(answer: str) -> None:
    citations = Citations(2)
    left = citations.feed(answer) + citations.end()
    if "`" not in answer:
        numbers = {int(number) for number in re.findall(r"\[(\d+)\](?!\()", left)}
        assert numbers <= {1, 2}
        assert numbers <= citations.cited


@pytest.mark.slow
@given(answers.filter(lambda answer: not re.search(r"\[(?:0|7|1, 7|5-9|2–8)\]", answer)))
def test_an_answer_with_valid_citations_is_unchanged(answer: str) -> None:
    assert clean(answer, 2) == answer
