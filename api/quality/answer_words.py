"""English words that decide what a statement of an answer says."""

from __future__ import annotations

from typing import Final

from api.languages.function_words import words_in

CONDITIONS: Final = words_in("if unless except only provided until when without")
AXES: Final[dict[str, dict[str, frozenset[str]]]] = {
    "duty": {
        "must": words_in("must required require requires mandatory need needs needed compulsory obligatory necessary"),
        "may": words_in("may optional optionally might voluntary"),
    },
    "frequency": {
        "always": words_in("always every-time invariably"),
        "usually": words_in("usually often frequently typically generally normally"),
        "sometimes": words_in("sometimes occasionally"),
        "rarely": words_in("rarely seldom hardly"),
        "never": words_in("never"),
    },
    "extent": {
        "all": words_in("all every each everyone everything both whole entire"),
        "some": words_in("some several few certain part partly partially"),
        "most": words_in("most majority mostly"),
        "none": words_in("none nobody nothing neither"),
    },
    "trend": {
        "up": words_in("more increase increases increased raise raises higher rise rises grow grows boosts rich"),
        "down": words_in("less fewer decrease decreases decreased reduce reduces lower lowers fall falls shrinks poor"),
    },
    "speed": {
        "fast": words_in("faster quicker speeds accelerates fast quickly"),
        "slow": words_in("slower slows delays slow slowly"),
    },
    "place": {"front": words_in("front"), "back": words_in("behind back rear")},
    "direction": {
        "start": words_in("onward onwards begin begins start starts opens starting starting depart departs departure"),
        "end": words_in(
            "last until deadline end ends closes latest finish finished complete arrive arrives arrival lands"
        ),
    },
    "bound": {"least": words_in("minimum"), "most": words_in("maximum max")},
    "count": {"single": words_in("single once"), "double": words_in("double twice"), "triple": words_in("triple")},
}
AXIS_OF: Final = {word: (axis, pole) for axis, poles in AXES.items() for pole, words in poles.items() for word in words}
NEGATORS: Final = words_in("not no never without none nobody nothing neither nor nowhere cannot hardly")
NEGATIVE: Final = words_in(
    """
    prohibited forbidden banned prohibits forbids disallowed disallows excluded excludes exempt unsupported unable
    impossible ineligible unsafe illegal limits refused rejected rejects incorrect invalid unavailable lacks lack
    missing fails
    """
)
"""Words that say no without a negator: smoking is prohibited."""
HARMLESS: Final = words_in(
    "problem problems dangerous danger fail difficult hard issue harm prevents prevent stops stop risk late"
)
"""A negator before one of these says yes: it is not a problem."""
LIGHT: Final = words_in(
    """
    use used using take takes taken get gets got have need needs go goes do make makes made give gives given find finds
    found allow allows allowed run runs work works offer offers provide provides apply applies select choose choosing
    located lie lies stand stands come comes see start happen happens mean means indicate indicates tell tells say says
    know keep put set become remain simply usually generally about available possible able per every each must should
    may can will would yes no please also just then first next after finally lastly once done start well up out total
    """
)
"""Words whose choice says little."""
