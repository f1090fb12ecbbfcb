"""Codes, figures and names that occur in few passages lead to them."""

from __future__ import annotations

import pytest

from api.knowledge.ranking import (
    MAX_PASSAGES,
    MAX_SEARCHED,
    DistinctiveTerms,
    distinctive_terms,
    leading,
    searched_terms,
)

SHEETS = {
    "one": "Machine sheet 1\nThe lathe has the serial number 7Q-4821 and is kept by Ada Lindqvist.",
    "two": "Machine sheet 2\nThe hoist has the serial number 7Q-4812 and is kept by Berta.",
    "three": "Machine sheet 3\nThe planer, 7Q-9047, costs 99.5 a day. Set node_exporter.",
    "four": "Machine sheet 4\nThe grinder has the serial number 7Q-5512.",
}


@pytest.mark.parametrize(
    ("question", "codes", "names"),
    [
        ("What is 7Q-4821?", ("7q-4821",), ()),
        ("Is it 99.5 or 12 %?", ("99.5", "12"), ()),
        ("Who is Lindqvist?", (), ("lindqvist",)),
        ("lindqvist", ("lindqvist",), ()),
        ("Who keeps the lathe?", (), ()),
        ("lathe the keeps Who", (), ()),
        ("How Do I Reset My Password", (), ()),
        ("HOW DO I RESET IT", (), ()),
        ("What does node_exporter do?", ("node_exporter",), ()),
        ("Is it 1,000 or 99,5 or 12, 13?", ("1,000", "99,5", "12", "13"), ()),
        ("Is a 1 enough?", (), ()),
        ("7Q-1, 7q-1", ("7q-1",), ()),
        ("", (), ()),
    ],
)
def test_which_terms_are_rare(question: str, codes: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert distinctive_terms(question) == DistinctiveTerms(codes, names)


@pytest.mark.parametrize(
    ("question", "places"),
    [
        ("Who keeps the machine with serial number 7Q-4812?", ["two"]),
        ("What is 4821?", ["one"]),
        ("Which costs 99.5?", ["three"]),
        ("What is 7Q?", []),  # in all of them, so it does not distinguish any
        ("What is 7Q-0000?", []),
        ("Which costs 99,5?", []),
        ("Compare 7Q-4821 and 7Q-9047", ["one", "three"]),
    ],
)
def test_passages_with_a_rare_term_come_first(question: str, places: list[str]) -> None:
    assert leading(question, SHEETS).by_code == places


def test_a_passage_with_a_rare_name_comes_second_and_is_relevant() -> None:
    found = leading("Who is Lindqvist?", SHEETS)
    assert found.order(["four", "three", "two", "one"]) == ["four", "one", "three", "two"]
    assert "one" in found
    assert "two" not in found


def test_a_code_comes_before_a_name() -> None:
    found = leading("Has Lindqvist the 7Q-4812?", SHEETS)
    assert found.order(["four", "three", "one"]) == ["two", "one", "four", "three"]


def test_the_rarest_term_comes_first() -> None:
    passages = {"a": "Model X200 in 2020", "b": "Model Y300 in 2020", "c": "Model Z400 in 2020"}
    assert leading("the Y300 of 2020", passages).by_code == ["b", "a", "c"]


def test_a_term_of_many_passages_is_not_rare() -> None:
    passages = {number: f"Page {number} of 2020" for number in range(MAX_PASSAGES + 1)}
    assert leading("What was in 2020?", passages).by_code == []


def test_a_term_of_many_passages_is_not_rare_though_few_were_found() -> None:
    passages = {"one": "The QZ-1108 of May", "two": "Another one"}
    assert leading("What is QZ-1108?", passages).by_code == ["one"]
    assert leading("What is QZ-1108?", passages, frozenset(["qz-1108"])).by_code == ()


def test_an_uncommon_word_makes_a_passage_relevant_but_does_not_lead() -> None:
    passages = {"one": "The trolley is kept in hall 2.", "two": "The zweihander is kept in hall 3."}
    found = leading("who keeps the zweihander", passages)
    assert (found.order(["one", "two"]), "two" in found, "one" in found) == (["one", "two"], True, False)


def test_codes_are_searched_first_and_common_words_not_at_all() -> None:
    question = "Does Lindqvist know the price of the zweihander QZ-1108 and its weight?"
    assert searched_terms(question) == ("qz-1108", "lindqvist", "zweihander")
    assert len(searched_terms(" ".join(f"QZ-{number}" for number in range(99)))) == MAX_SEARCHED
