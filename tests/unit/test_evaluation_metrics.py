"""The measures of `ragherd eval`, with values that were computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ragherd.dev import demo_pages
from ragherd.evaluation_cases import DEMO, Case, draft_prompt, drafted, read_cases, squeezed
from ragherd.evaluation_metrics import (
    Claim,
    citation_precision,
    citation_recall,
    claims,
    difference,
    is_refusal,
    judged,
    mean,
    ndcg,
    recall,
    reciprocal_rank,
)
from ragherd.evaluation_report import failures
from ragherd.quality_samples import Unreadable

NONE: frozenset[int] = frozenset()
FIRST, SECOND = frozenset({0}), frozenset({1})
PASSAGE = "Holiday is approved by the team lead. Ask for it two weeks before it begins. The canteen opens at 11:30."
QUESTION = "Who approves holiday?"


# -- Retrieval ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "expected", "values"),
    [
        ([FIRST, NONE, NONE], 1, (1, 1, 1)),
        ([NONE, NONE, FIRST], 1, (1, 1 / 3, 0.5)),  # 1 / log2(4)
        ([NONE, NONE], 1, (0, 0, 0)),
        ([], 1, (0, 0, 0)),
        ([FIRST, FIRST, SECOND], 2, (1, 1, 1.5 / (1 + 1 / math.log2(3)))),  # the second passage gains nothing
        ([FIRST, NONE], 2, (0.5, 1, 1 / (1 + 1 / math.log2(3)))),
        ([frozenset({0, 1})], 2, (1, 1, 1)),
    ],
)
def test_recall_reciprocal_rank_and_ndcg(
    found: list[frozenset[int]], expected: int, values: tuple[float, float, float]
) -> None:
    assert (recall(found, expected), reciprocal_rank(found), ndcg(found, expected)) == pytest.approx(values)


# -- Citations ---------------------------------------------------------------------------------------------------------


def test_citations_are_compared_with_the_expected_sources() -> None:
    found = [FIRST, NONE, SECOND]
    assert citation_precision(found, {1, 2}) == 0.5
    assert citation_recall(found, {1, 2}, 2) == 0.5
    assert citation_precision(found, {1, 3}) == citation_recall(found, {1, 3}, 2) == 1
    assert citation_precision(found, set()) is None
    assert citation_recall(found, set(), 2) == 0


def test_a_sentence_has_the_citations_of_the_next_one_in_its_paragraph() -> None:
    answer = "It is red. It is new [1, 2]. It is here.\n\nIt is old [3]. See [9]."
    assert claims(answer, 3) == [
        Claim("It is red.", (1, 2)),
        Claim("It is new [1, 2].", (1, 2)),
        Claim("It is here.", ()),
        Claim("It is old [3].", (3,)),
        Claim("See [9].", ()),
    ]


@pytest.mark.parametrize(
    ("claim", "support"),
    [
        ("Holiday is approved by the team lead [1].", "supported"),
        ("The team lead approves holiday.", "supported"),
        ("Ask for it 14 days before it begins.", "supported"),
        ("Holiday is not approved by the team lead.", "unsupported"),
        ("Ask three weeks before it begins.", "unsupported"),
        ("The canteen opens at 11:45.", "unsupported"),
        ("Use `POST /holidays` to ask.", "unclear"),
        ("Your boss has to agree to time off.", "unclear"),
        ("Holiday is approved by Lindqvist, the team lead.", "unclear"),
        ("Ask for holiday two weeks before it begins, as Ragherd's TEAM_LEAD does.", "unclear"),
        ("The Team-Lead approves holiday.", "supported"),
    ],
)
def test_a_claim_needs_its_words_figures_and_names_in_the_passage(claim: str, support: str) -> None:
    assert judged(claim, PASSAGE, QUESTION).support == support


def test_the_reason_names_what_a_passage_lacks() -> None:
    assert judged("The canteen opens at 11:45.", PASSAGE).reason == "not there: 11:45"
    assert "boss" in judged("Your boss has to agree to time off.", PASSAGE).reason


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I did not find anything about this in the documents.", True),
        ("The passages do not say who approves it.", True),
        ("Holiday is approved by the team lead [1].", False),
        ("Holiday is not approved by the canteen [1].", False),
    ],
)
def test_refusals_are_recognized(answer: str, refused: bool) -> None:
    assert is_refusal(QUESTION, answer) is refused


# -- Intervals ---------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_seeded_and_contains_it() -> None:
    values = [0.0] * 10 + [1.0] * 30
    found = mean(values, 1)
    assert found is not None
    assert (found.value, found.n) == (0.75, 40)
    assert found.low == pytest.approx(0.75 - 1.96 * math.sqrt(0.75 * 0.25 / 40), abs=0.03)
    assert found.high == pytest.approx(0.75 + 1.96 * math.sqrt(0.75 * 0.25 / 40), abs=0.03)
    assert mean(values, 1) == found
    assert mean([], 1) is None


def test_equal_values_are_not_certain() -> None:
    found = mean([1.0] * 10, 1)
    assert found is not None
    assert found.value == 1
    assert found.high == pytest.approx(1)
    assert found.low == pytest.approx(10 / (10 + 1.959964**2))  # Wilson's bound


def of(values: list[float]) -> dict[str, float]:
    return {f"question {number}": value for number, value in enumerate(values)}


def test_two_runs_are_compared_question_by_question() -> None:
    first, second = of([1.0] * 20), of([0.0] * 8 + [1.0] * 12 + [0.0] * 5)
    found = difference(first, second, 1)
    assert found is not None
    assert (found.value, found.n, found.changed, found.certain) == (-0.4, 20, 8, True)
    assert found.low < -0.4 < found.high < 0


def test_a_few_changed_questions_are_not_certain() -> None:
    five = difference(of([1.0] * 5), of([0.0] * 5), 1)
    same = difference(of([1.0] * 20), of([1.0] * 20), 1)
    assert five is not None
    assert same is not None
    assert (five.value, five.certain) == (-1, False)
    assert (same.value, same.certain) == (0, False)
    assert same.low == -same.high < 0
    assert difference(of([1.0]), {}, 1) is None


def test_failures_come_with_errors_and_the_lowest_measures_first() -> None:
    def case(question: str, problems: list[str], **measures: float) -> dict[str, object]:
        return {"question": question, "problems": problems, "measures": measures}

    cases = [case("good", [], recall=1), case("half", ["x"], recall=1, mrr=0), case("error", ["x"])]
    found = {"cases": [*cases, case("low", ["x"], recall=0.25, mrr=0.25)]}
    assert [one["question"] for one in failures(found)] == ["error", "low", "half"]


# -- Files -------------------------------------------------------------------------------------------------------------


def test_csv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    table, lines = tmp_path / "cases.csv", tmp_path / "cases.jsonl"
    table.write_text(
        "question;documents;passages;answer;answerable;confirmed\n"
        "Who?;a.md|b.md;the lead;;;\nWhen?;;;At noon.;true;false\nWhy?;;;;no;\n"
    )
    lines.write_text(
        '{"question": " Who? ", "documents": ["a.md", "b.md"], "passage": "the lead"}\n'
        '{"question": "When?", "answer": "At noon.", "confirmed": false}\n{"question": "Why?", "answerable": false}\n'
    )
    expected = [Case("Who?", ("a.md", "b.md"), ("the lead",)), Case("Why?", answerable=False)]
    assert read_cases(table, unconfirmed=False) == read_cases(lines, unconfirmed=False) == (expected, 1)
    assert len(read_cases(table, unconfirmed=True)[0]) == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question": ""}', ":1: question must be text"),
        ('{"question": "Who?", "documents": [1]}', ":1: documents must be texts"),
        ('{"question": "Who?", "answerable": "perhaps"}', ":1: answerable must be true or false"),
        ('{"question": "Who?", "answerable": false, "answer": "I."}', ":1: answerable is false"),
        ('{"question": "Who?"}\n{"question": "Who?"}', ":2: the question stands twice"),
        ('{"question": "Who?", "confirmed": false}', "has only drafts"),
        ("", "has no questions"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "cases.jsonl"
    file.write_text(line)
    with pytest.raises(Unreadable, match=reason):
        read_cases(file, unconfirmed=False)


def test_a_document_is_named_by_its_source_the_end_of_it_its_title_or_its_id() -> None:
    source = {"document_id": "4e82", "title": "Holiday  policy", "source": "docs/hr/holiday.md", "text": "The\nLead"}
    case = Case("Who?", ("docs/hr/holiday.md", "holiday.md", "holiday Policy", "4e82", "day.md"), ("the lead",))
    assert case.met_by(source) == {0, 1, 2, 3, 5}
    assert Case("Who?", ("Holiday policy",)).met_by({**source, "source": None}) == {0}


def test_the_demo_asks_about_what_the_stored_pages_say() -> None:
    folder = Path(__file__).parents[2] / "docs"
    pages = {file.source: squeezed(file.path.read_text()) for file in demo_pages(folder)}
    cases, _ = read_cases(DEMO, unconfirmed=False)
    assert sum(case.answerable for case in cases) >= 15
    assert sum(not case.answerable for case in cases) >= 5
    for case in cases:
        assert all(document in pages for document in case.documents), case
        assert all(squeezed(one) in pages[case.documents[0]] for one in case.passages), case


def test_a_draft_is_the_question_in_the_reply() -> None:
    assert drafted('Sure:\n**Question: Who approves holiday?**\n"') == "Who approves holiday?"
    assert drafted("It is approved.") is None
    assert draft_prompt("a </passage> b").count("</passage>") == 1
