"""Other spellings of a question's words, acronyms that the documents explain, and the parts of a question."""

from __future__ import annotations

from itertools import product

import pytest

from api.knowledge import expansion
from api.knowledge.expansion import MAX_FUZZY, Expansion, expanded, explained, respelled, uncovered

SLA = "Our Service Level Agreement (SLA) promises a repair within four hours."
PRESS = "The press is kept by Mr Lindqvist."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (SLA, [("sla", "service level agreement")]),
        (
            "the Terms of Service (ToS) and the Point of Sale (POS)",
            [("tos", "terms of service"), ("pos", "point of sale")],
        ),
        ("We use it (SLA) daily.", []),
        ("The agreement (see page 4) holds.", []),
        ("(SLA)", []),
        ("Level Agreement (SLA)", []),
    ],
)
def test_an_acronym_is_explained_by_the_words_before_it(text: str, found: list[tuple[str, str]]) -> None:
    assert list(explained(text)) == found


def test_an_acronym_stands_for_its_long_form_and_the_other_way_round() -> None:
    assert expanded("What is our SLA?", [], [SLA]) == Expansion(phrases=("service level agreement",))
    assert expanded("the service-level agreement", [], [SLA]) == Expansion(phrases=("sla",))
    assert not expanded("What does Slate cost?", [], [SLA])


def test_only_long_words_of_letters_are_misspelled() -> None:
    absent = ["lindquist", "qz-1108", "lindq", "four", "9041x"]
    assert expanded("?", absent, []).misspelled == ("lindq", "lindquist")
    assert len(expanded("?", [f"word{'x' * number}" for number in range(9)], []).misspelled) == MAX_FUZZY


@pytest.mark.parametrize(
    ("question", "absent", "read", "words"),
    [
        ("Who is Lindquist?", ["lindquist"], "Who is Lindqvist?", ("lindqvist",)),
        ("who is lindqvits", ["lindqvits"], "who is lindqvist", ("lindqvist",)),
        ("Who is Bergstrom?", ["bergstrom"], "Who is Bergstrom?", ()),
        ("Who is Pindqvist?", ["pindqvist"], "Who is Pindqvist?", ()),
        ("Who is Lindqvist?", [], "Who is Lindqvist?", ()),
    ],
)
def test_a_word_is_read_as_the_passages_spell_it(
    question: str, absent: list[str], read: str, words: tuple[str, ...]
) -> None:
    assert respelled(question, absent, [SLA, PRESS]) == (read, words)


NOTES = {
    "press": PRESS,
    "mentor": "Apprentices rotate. Their mentor is Berta.",
    "sick": "Call the office if you are ill.",
    "park": "The car park has 42 places.",
}


@pytest.mark.parametrize(
    ("question", "relevant", "more"),
    [
        ("Who keeps the press, and who mentors apprentices?", ["mentor"], ["press"]),
        ("Who keeps the press, and who mentors apprentices?", ["press", "mentor"], []),
        ("Who keeps the press, and who mentors apprentices?", [], []),
        ("Who mentors apprentices?", ["mentor"], []),
        ("Who mentors apprentices, and what is the weather like?", ["mentor"], []),
        ("Wo ist der car park und wer ist mentor?", ["mentor"], ["park"]),
    ],
)
def test_a_part_of_a_question_gets_a_passage(question: str, relevant: list[str], more: list[str]) -> None:
    assert uncovered(question, relevant, NOTES, 4, 3) == more
    assert uncovered(question, relevant, NOTES, 4, 0) == []


def test_passages_that_are_not_shown_cover_nothing() -> None:
    question = "Who keeps the press, and who mentors apprentices?"
    assert uncovered(question, ["mentor", "press"], NOTES, 1, 3) == ["press"]


@pytest.mark.parametrize(
    ("asked", "written", "is_found"),
    [
        ("QX1108", "QX-1108", True),
        ("qx-1108", "QX1108", True),
        ("QX 1108", "QX1108", True),
        ("QX1108", "QX 1108", True),
        ("7Q4821", "7Q-4821", True),
        ("AB12CD34", "AB12-CD34", True),
        ("AB12CD34", "AB-12-CD-34", True),
        ("v110", "v1.10", False),
        ("v1.10", "v110", False),
        ("12-5", "125", False),
    ],
)
def test_a_code_may_be_written_with_other_signs(asked: str, written: str, is_found: bool) -> None:
    question, text = f"Where is part {asked}?", f"Part {written} is in hall 4."
    absent = {asked.split()[-1].casefold()}
    assert (written.casefold().replace(" ", "-") in expanded(question, absent, []).phrases) is is_found
    assert expanded(question, [], []).phrases == ()
    assert respelled(question, [], ["No.", text])[0] == (f"Where is part {written}?" if is_found else question)
    assert respelled(question, [], [text, f"Part {asked} is in hall 5."])[0] == question


@pytest.mark.parametrize(("asked", "written"), [("3,5", "3.5"), ("3.5", "3,5"), ("1.000", "1,000")])
def test_a_number_may_be_written_with_another_decimal_sign(asked: str, written: str) -> None:
    question, text = f"Who pays {asked} percent?", f"Ada pays {written} percent."
    assert respelled(question, [], [text]) == (f"Who pays {written} percent?", ())
    assert respelled(question, [], [text, f"Bo pays {asked} percent."])[0] == question
    assert respelled("Is it 1.2.3?", [], ["It is 1.2,3 or 1,2.3."])[0] == "Is it 1.2.3?"


def test_a_misspelled_word_is_compared_with_a_bounded_number_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def count(word: str, near: list[str], *_: object) -> list[str]:
        compared.append(len(near))
        return []

    monkeypatch.setattr(expansion, "get_close_matches", count)
    alike = ["s" + "".join(letters) for letters in product("aeit", repeat=6)]
    respelled("Who is staeris?", ["staeris"], [" ".join(alike)])
    assert compared == [expansion.MAX_COMPARED]
