"""Guard `foreign_order`: Dollar in Euro / Euro in Dollar."""

from __future__ import annotations

from typing import Final

from api.guards.foreign.content import is_read
from api.guards.words import Words
from api.languages.function_words import BY_WORD, SHARED, words_in

PIVOTS: Final = words_in(
    """
    in nach von zu zum zur auf als für über vor gegen aus durch en à a au de du des vers par que pour avant après contre
    por para antes después hasta da dal di per che prima dopo em ao aos até naar van tot dan voor na op uit till från än
    före efter do od niż przed po w в на из от до чем перед после к til fra før etter
    """
)
"""What stands before one of these is not what stands after it."""
AND_IN_DUTCH: Final = "en"
DUTCH: Final = words_in("ik het een van hoe waar mijn naar niet voor zijn wat kan")
MAX_WORDS: Final = 60


def read(question: Words) -> tuple[str, ...]:
    """The words in their order; none where the question is not read."""
    return question.words[:MAX_WORDS] if is_read(question) else ()


def compare(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    """The two words that changed places around one that gives them their parts, else an empty text."""
    if one == other or len(one) != len(other):
        return ""
    moved = [place for place, (left, right) in enumerate(zip(one, other, strict=True)) if left != right]
    if len(moved) != 2:
        return ""
    first, last = moved
    if (one[first], one[last]) != (other[last], other[first]) or _is_grammar(one[first]) or _is_grammar(one[last]):
        return ""
    between = {word for word in one[first + 1 : last] if word in PIVOTS}
    if AND_IN_DUTCH in between and not DUTCH.isdisjoint(one):
        between.discard(AND_IN_DUTCH)
    return f"{' '.join(one[first : last + 1])} / {' '.join(other[first : last + 1])}" if between else ""


def _is_grammar(word: str) -> bool:
    return word in BY_WORD or word in SHARED
