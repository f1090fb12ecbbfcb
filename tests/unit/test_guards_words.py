"""Parsing a question into words, names and numbers before guards compare."""

from __future__ import annotations

from itertools import islice, product
from string import ascii_lowercase

import pytest

from api.guards import vocabulary
from api.guards.names import is_typo
from api.guards.symbols import compare_numbers, read_numbers
from api.guards.vocabulary import REMEMBERED, Stems, inflections, stem
from api.guards.words import read_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What's up?", "what is up"),
        ("I can't, I won’t", "i can not i will not"),
        ("dont login", "do not log in"),
        ("Obama's wife", "obama wife"),
        ("5kg at $3.50", "5 kg at dollar 3.50"),
        ("1,000,000 items", "1000000 items"),
        ("v2.1", "version 2.1"),
        ("Wi-Fi, e-mail, two-factor", "wi fi email 2fa"),
        ("5-10 and -5", "5 10 and -5"),
        ("in the U.S. at 5 p.m.", "in the us at 5 pm"),
        ("gone.What now", "gone what now"),
    ],
)
def test_words(text: str, words: str) -> None:
    assert " ".join(read_words(text).words) == words


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("How do I install Python?", {"python"}),
        ("How Do I Install Python?", set()),
        ("HOW DO I INSTALL PYTHON?", set()),
        ("Reset my password", set()),
        ("NASA launches", {"nasa"}),
        ("Wie ändere ich mein Passwort?", set()),
        ("¿Dónde está la casa de Frida?", {"frida"}),
        ("error ABC-123 or e404", {"abc", "abc123", "e404"}),
        ("open config.yaml", {"configyaml"}),
        ("is it on/off or 5/10", set()),
    ],
)
def test_names(text: str, names: set[str]) -> None:
    assert set(read_words(text).names) == names


@pytest.mark.parametrize(
    ("text", "every"),
    [
        ("two hundred and five", "205"),
        ("three thousand four hundred", "3400"),
        ("twenty-one and two", "21 2"),
        ("5 and ten", "5 10"),
        ("1.5 million", "1500000"),
        ("10k", "10000"),
        ("the 1st, the second", "1 2"),
        ("05/06/2020", "5 6 2020"),
        ("3.10 or 3.1", "3.10 3.1"),
        ("minus five or -5", "- 5 - 5"),
        ("5% of ½", "5 % ½"),
        ("٥ degrees", "5"),
        ("the keys", ""),
    ],
)
def test_numbers(text: str, every: str) -> None:
    assert " ".join(read_numbers(read_words(text)).every) == every


@pytest.mark.parametrize(
    ("text", "english"),
    [("How do I pay?", True), ("python decorators", True), ("Wie zahle ich?", False), ("día", True)],
)
def test_language(text: str, english: bool) -> None:
    assert read_words(text).english is english


@pytest.mark.parametrize("verb", ["transfer", "stop", "enable", "carry", "push", "pay"])
def test_the_forms_of_a_verb_share_a_stem(verb: str) -> None:
    assert {stem(form) for form in inflections(verb)} == {stem(verb)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Is 2FA on?", "is 2fa on"),
        ("two-step verification now", "2fa now"),
        ("are you open Mon-Fri", "are you open weekdays"),
        ("seven in the morning", "7 am"),
        ("at 7 o'clock", "at 7"),
        ("within two weeks or 36 hours", "within 14 days or 2160 minutes"),
        ("twenty four hours", "1 days"),
        ("in the morning", "in the morning"),
        ("13 in the morning", "13 in the morning"),
    ],
)
def test_equivalent_phrases_are_normalized(text: str, words: str) -> None:
    assert " ".join(read_words(text).words) == words


def test_every_phrase_contains_a_trigger_word() -> None:
    for phrases in vocabulary.PHRASES.values():
        for phrase, _ in phrases:
            assert not vocabulary.TRIGGERS.isdisjoint(phrase), phrase
    assert not any(vocabulary.TRIGGERS.isdisjoint(half) for half in vocabulary.DAY_PARTS)


def test_time_spans_are_shown_as_written() -> None:
    one, other = (read_numbers(read_words(text)) for text in ("within two weeks", "within three weeks"))
    assert compare_numbers(one, other) == "two weeks / three weeks"


def test_clause_starts_follow_normalized_phrases() -> None:
    question = read_words("I pay at the cash machine, why not?")
    assert [question.words[place] for place in sorted(question.clause_starts) if place < len(question.words)] == [
        "i",
        "why",
    ]


@pytest.mark.parametrize(
    ("one", "other", "slip"),
    [
        ("zuckerberg", "zuckerburg", True),
        ("shakespeare", "shakespear", True),
        ("einstein", "einstien", True),
        ("austria", "australia", False),
        ("stanford", "stamford", False),
        ("london", "londom", False),
        ("berlin", "merlin", False),
        ("abc1234", "abc1235", False),
    ],
)
def test_a_typo_in_a_long_name_is_tolerated(one: str, other: str, slip: bool) -> None:
    assert is_typo([one], [other]) is is_typo([other], [one]) is slip


def test_words_with_digits_are_not_remembered_and_others_not_without_end() -> None:
    stems = Stems()
    for number in range(REMEMBERED * 2):
        assert stems[f"answers{number}"] == f"answers{number}"
    assert not stems
    words = ["".join(letters) + "ing" for letters in islice(product(ascii_lowercase, repeat=3), REMEMBERED * 2)]
    assert [stems[word] for word in words] == [stem(word) for word in words]
    assert 0 < len(stems) <= REMEMBERED
