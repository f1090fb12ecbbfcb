"""The pairs that the base model is trained on: right labels, the same for each run, and only from free sources."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from training import questions, sources
from training.edits import Editor
from training.grammar import Circumstance, Meaning, grammar_pairs, vocabulary
from training.numbers import duration, minutes
from training.pairs import Pair
from training.sources import LICENSES, SHARE_ALIKE, NearRange, Question, advising, near_pairs, split_intents
from training.surface import misspell, reorder, shorten, vary
from training.wordnet import WordNet

ROOT = Path(__file__).parents[2]
PAIRS = grammar_pairs(4000, seed=3)


def test_the_same_seed_makes_the_same_pairs() -> None:
    assert grammar_pairs(200, seed=3) == PAIRS[:200]
    assert grammar_pairs(200, seed=4) != PAIRS[:200]


def test_both_labels_and_all_parts_of_the_grammar_are_there() -> None:
    counts = Counter((pair.source, pair.same) for pair in PAIRS)
    assert len(counts) == 6
    assert min(counts.values()) > 200
    assert 0.42 < sum(pair.same for pair in PAIRS) / len(PAIRS) < 0.52


@pytest.mark.slow
def test_two_forms_of_one_meaning_never_have_different_answers() -> None:
    """A pair of texts has one label: the same two texts as a positive and as a negative pair would teach nothing."""
    by_texts: dict[frozenset[str], set[bool]] = {}
    for pair in grammar_pairs(20_000, seed=5):
        key = frozenset(re.sub(r"\W+", " ", text.lower()).strip() for text in (pair.first, pair.second))
        by_texts.setdefault(key, set()).add(pair.same)
    assert sum(len(labels) == 2 for labels in by_texts.values()) <= 2


def test_forms_of_a_concept_belong_to_one_concept_of_its_list() -> None:
    """Else a pair could be labelled different although it means the same."""
    words = vocabulary()
    lists = [*words["extras"].values()]
    for part in ("domains", "scopes"):
        for domain in words[part].values():
            lists += [domain["verbs"], domain["objects"]]
            assert set(domain["frames"]) <= set(words["frames"])
    for concepts in lists:
        forms = Counter(form for concept in concepts for form in concept)
        assert max(forms.values()) == 1, forms.most_common(1)


def test_scopes_differ_in_the_qualifier_only() -> None:
    gifts = {form for concept in vocabulary()["scopes"]["gifts"]["objects"] for form in concept}
    assert {"a gift", "a gift card"} <= gifts
    assert "vocabulary of" in (ROOT / "training/vocabulary.toml").read_text("utf-8")


def test_a_circumstance_may_come_first() -> None:
    domain = vocabulary()["domains"]["kitchen"]
    meaning = Meaning(domain, "how", 0, 0, (Circumstance("kitchen", 0, lambda _: "in the oven"),))
    said = {meaning.say(Random(seed)) for seed in range(200)}
    assert any(text.startswith("In the oven, ") for text in said)
    assert all("in the oven" in text.lower() for text in said)


def test_durations_have_the_length_they_say() -> None:
    forms = {duration(1, "day", Random(seed)) for seed in range(60)}
    assert forms == {"1 day", "one day", "24 hours", "twenty-four hours"}
    assert minutes(24, "hour") == minutes(1, "day")


@pytest.mark.parametrize("change", [vary, misspell])
def test_surface_changes_leave_numbers_as_they_are(change: Any) -> None:
    text = "Can I return 2 shirts within 30 days for 45.50 euros in 2024?"
    for seed in range(300):
        assert re.findall(r"\d+", change(text, Random(seed))) == ["2", "30", "45", "50", "2024"]


def test_reordered_questions_have_the_same_words() -> None:
    assert reorder("Can I return it if it is broken?", Random(1)) == "If it is broken, can I return it?"
    assert reorder("compare cats and dogs", Random(1)) == "compare dogs and cats"
    assert reorder("How do I close my account?", Random(1)) == "Close my account, how do I do that?"
    assert reorder("hello", Random(1)) is None


def test_shortened_questions_lose_courtesy_and_articles() -> None:
    assert shorten("Please tell me the opening hours of the museum", Random(1)) == "opening hours of museum"
    assert shorten("opening hours", Random(1)) is None


WORDNET = {
    "data.noun": [
        "  1 the licence",
        "00000001 03 n 01 vegetable 0 002 ~ 00000002 n 0000 ~ 00000003 n 0000 | a plant",
        "00000002 03 n 02 carrot 0 root_carrot 0 001 @ 00000001 n 0000 | a root",
        "00000003 03 n 01 potato 0 001 @ 00000001 n 0000 | a tuber",
        "00000004 03 n 01 card 0 000 | a card",
        "00000005 03 n 01 credit_card 0 000 | a card that pays",
        "00000006 03 n 02 car 0 auto 0 000 | a vehicle",
    ],
    "index.noun": [
        "vegetable n 1 0 1 0 00000001", "carrot n 1 0 1 0 00000002", "potato n 1 0 1 0 00000003",
        "card n 1 0 1 0 00000004", "credit_card n 1 0 1 0 00000005", "car n 1 0 1 0 00000006",
        "auto n 1 0 1 0 00000006",
    ],
    "data.verb": [
        "00000011 29 v 01 open 0 001 ! 00000012 v 0101 | undo",
        "00000012 29 v 01 close 0 001 ! 00000011 v 0101 | do up",
    ],
    "index.verb": ["open v 1 0 1 0 00000011", "close v 1 0 1 0 00000012"],
    "data.adj": [],
    "index.adj": [],
    "cntlist.rev": [
        *(f"{word}%1:03:00:: 1 9" for word in ("vegetable", "carrot", "potato", "card", "car", "auto")),
        "open%2:29:00:: 1 9", "close%2:29:00:: 1 9",
    ],
}  # fmt: skip


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    for name, lines in WORDNET.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return WordNet.read(tmp_path)


def test_wordnet_gives_synonyms_sisters_antonyms_and_compounds(wordnet: WordNet) -> None:
    assert wordnet.synonyms("car") == ["auto"]
    assert wordnet.sisters("carrot") == ["potato"]
    assert wordnet.antonyms("open") == ["close"]
    assert wordnet.compounds == {"card": ["credit card"]}
    assert wordnet.synonyms("unknown") == []


def test_edits_say_whether_the_answer_stays(wordnet: WordNet) -> None:
    editor = Editor(wordnet)
    question = "How do I open the card box for 2 cars and one potato?"
    found = [pair for seed in range(600) if (pair := editor.pair(question, Random(seed))) is not None]
    by_kind: dict[str, set[bool]] = {}
    for pair in found:
        by_kind.setdefault(pair.source, set()).add(pair.same)
        assert question in (pair.first, pair.second)
    assert all(len(labels) == 1 for labels in by_kind.values())
    changed = {kind.removeprefix("edit-") for kind, labels in by_kind.items() if labels == {False}}
    kept = {kind.removeprefix("edit-") for kind, labels in by_kind.items() if labels == {True}}
    assert {"word", "compound", "number", "added", "order", "asks"} <= changed
    assert {"rephrased", "spelling", "reordered", "short", "spoken"} <= kept


def test_exchanged_words_are_another_question_and_swapped_sides_are_not(wordnet: WordNet) -> None:
    editor = Editor(wordnet)
    orders = {
        text
        for seed in range(3000)
        if (pair := editor.pair("convert euros to dollars", Random(seed))) is not None and pair.source == "edit-order"
        for text in (pair.first.lower().rstrip("?."), pair.second.lower().rstrip("?."))
    }
    assert "convert dollars to euros" in orders


def embed(texts: Sequence[str]) -> Any:
    """Maps texts of one first letter to vectors with a cosine above 0.4, and others below."""
    rows = np.array(
        [[text[0] == "a", text[0] == "b", 0.6 * np.sin(len(text)), 0.6 * np.cos(len(text))] for text in texts]
    )
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_near_questions_are_paired_by_intent_unless_the_guards_object() -> None:
    questions = [
        Question("a card is lost", "lost"), Question("a card got lost now", "lost"),
        Question("a card was stolen", "theft"),
        Question("a card is lost since 3 days", "lost"), Question("b money is gone", "lost"),
    ]  # fmt: skip
    found = near_pairs(questions, NearRange(0.4, 0.4, 100, 100), embed, "own", Random(1))
    texts = {(frozenset((pair.first, pair.second)), pair.same) for pair in found}
    assert (frozenset(("a card is lost", "a card got lost now")), True) in texts
    assert (frozenset(("a card is lost", "a card was stolen")), False) in texts
    assert not any("3 days" in text for both, same in texts if same for text in both)  # the numbers differ
    assert not any("b money is gone" in both for both, _ in texts)  # too far away


def test_no_intent_has_two_uses() -> None:
    questions = [Question("?", f"intent {number}") for number in range(77)]
    found = split_intents(questions)
    assert found == split_intents(questions)
    assert len(found.train) == 38
    assert sum(map(len, found)) == len(frozenset.union(*found)) == 77


def test_advising_pairs_differ_in_their_values(tmp_path: Path) -> None:
    sentences = [
        {"text": "Is course0 easy ?", "variables": {"course0": "MATH"}},
        {"text": "How easy is course0 ?", "variables": {"course0": "CHEM"}},
    ]
    (tmp_path / "advising.json").write_text(json.dumps([{"sentences": sentences}] * 30))
    found = advising(tmp_path / "advising.json", 100, Random(1))
    assert Pair("Is MATH easy?", "How easy is MATH?", True, "advising") in found
    assert Pair("Is MATH easy?", "How easy is CHEM?", False, "advising") in found


def test_no_source_is_share_alike_and_none_is_measured_on() -> None:
    assert not [one.name for one in LICENSES if SHARE_ALIKE.search(one.license)]
    assert {one.license for one in LICENSES} == {
        "Apache-2.0", "WordNet-3.0", "CC-BY-4.0", "CC-BY-3.0", "free for any purpose",
    }  # fmt: skip
    readers = "".join(
        (ROOT / "training" / name).read_text("utf-8") for name in ("dataset.py", "sources.py", "base.py", "edits.py")
    ).lower()
    for excluded in ("spider", "fow_cache", "fow.", "qqp", "quora.", "import fow", "_test", "load_questions"):
        assert excluded not in readers.replace("banking77_test.csv", ""), excluded
    assert sources.banking77.__defaults__ == sources.clinc150.__defaults__ == ("train",)


def test_a_written_question_is_in_one_cluster_only() -> None:
    """Else it could be trained on and calibrate, or have two answers."""
    counts = Counter(text.lower() for one in questions.clusters() for text in (*one.same, *one.others))
    assert [text for text, count in counts.items() if count > 1] == []
    assert len(counts) > 1_500


def test_clusters_that_calibrate_are_not_trained_on() -> None:
    trained = [one for one in questions.clusters() if one.is_trained_on]
    assert 0.5 < len(trained) / len(questions.clusters()) < 0.7
    texts = {text for one in trained for text in (*one.same, *one.others)}
    assert not texts & {text for pair in questions.calibration_pairs(Random(0)) for text in (pair.first, pair.second)}


def test_written_pairs_have_their_clusters_labels() -> None:
    cluster = questions.Cluster(("a one?", "a two?"), ("b one?", "c one?"))
    found = [(pair.first, pair.second, pair.same) for pair in cluster.pairs()]
    assert found == [
        ("a one?", "a two?", True),
        ("a one?", "b one?", False),
        ("a one?", "c one?", False),
        ("a two?", "b one?", False),
        ("a two?", "c one?", False),
        ("b one?", "c one?", False),
    ]


@pytest.mark.slow
def test_written_questions_are_typed_in_other_ways_and_keep_their_numbers() -> None:
    pairs = questions.training_pairs(2, Random(1))
    assert pairs == questions.training_pairs(2, Random(1))
    known = {text for one in questions.clusters() for text in (*one.same, *one.others)}
    as_written = sum(pair.first in known for pair in pairs) / len(pairs)
    assert 0.4 < as_written < 0.8
    assert all(pair.first != pair.second for pair in pairs)
    assert 0.25 < sum(pair.same for pair in pairs) / len(pairs) < 0.45
