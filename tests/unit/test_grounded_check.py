"""The grounded check compares the passages of a cached answer with those found for another question."""

from __future__ import annotations

import pytest

from api.query.citations import cited
from api.query.grounding import FALL, MARGIN, objection
from api.values import CachedAnswer, Source, Usage


def passage(document: str, score: float, revision: int = 1) -> Source:
    return Source(document, document.title(), 0, "text", score, revision=revision)


def stored(answer: str, *sources: Source) -> CachedAnswer:
    return CachedAnswer("entry", "question", answer, "model", sources, Usage(), 0, 0)


RENT, FEES = passage("rent", 0.7), passage("fees", 0.6)
CITES_RENT = stored("Monthly [1].", RENT, FEES)


def test_the_same_passages_agree() -> None:
    assert objection([RENT, FEES], CITES_RENT) == ""


def test_the_order_does_not_count() -> None:
    assert objection([FEES, RENT], CITES_RENT) == ""


def test_a_cited_passage_must_be_found() -> None:
    assert objection([FEES], CITES_RENT) == "not found: rent #0"
    assert objection([], CITES_RENT) == "not found: rent #0"


def test_another_revision_is_another_passage() -> None:
    assert objection([passage("rent", 0.7, revision=2)], CITES_RENT) == "not found: rent #0"


def test_a_passage_that_is_not_cited_need_not_be_found() -> None:
    assert objection([RENT], CITES_RENT) == ""


@pytest.mark.parametrize(("fall", "agrees"), [(FALL - 0.01, True), (FALL + 0.01, False)])
def test_a_cited_passage_may_score_a_little_lower(fall: float, agrees: bool) -> None:
    assert (objection([passage("rent", 0.7 - fall)], CITES_RENT) == "") is agrees


@pytest.mark.parametrize(("ahead", "agrees"), [(MARGIN - 0.01, True), (MARGIN + 0.01, False)])
def test_a_better_passage_objects(ahead: float, agrees: bool) -> None:
    found = [passage("pets", 0.7 + ahead), RENT]
    assert objection(found, CITES_RENT) == ("" if agrees else "better: pets #0, 0.74 / 0.70")


def test_a_passage_that_was_better_already_and_was_not_cited_does_not_object() -> None:
    cites_the_second = stored("It is 5 euros [2].", RENT, FEES)
    assert objection([RENT, FEES], cites_the_second) == ""


def test_all_cited_passages_count() -> None:
    both = stored("See [1-2].", RENT, FEES)
    assert objection([RENT], both) == "not found: fees #0"


def test_without_citations_the_best_passage_must_have_been_read() -> None:
    cites_nothing = stored("Monthly.", RENT, FEES)
    assert objection([FEES, RENT], cites_nothing) == ""
    assert objection([passage("pets", 0.9), RENT], cites_nothing) == "better: pets #0"
    assert objection([], cites_nothing) == "nothing found"


def test_the_passages_that_an_answer_cites() -> None:
    assert cited("One [1], two [2, 4-5], and `[3]` is code; [9] does not exist.", 5) == {1, 2, 4, 5}
    assert cited("None.", 5) == cited("[2024]", 5) == frozenset()
