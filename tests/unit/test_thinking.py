"""Thoughts at the start of an answer are removed for any split into tokens; other text stays."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.backends.thinking import Thinking
from api.ollama.generation import events
from api.values import Thought, Token

PIECES = [
    "<think>",
    "</think>",
    "<thinking>",
    "</Thinking>",
    "[THINK]",
    "[/THINK]",
    "<",
    "</",
    "think>",
    " ",
    "\n",
    "a",
]


def read(*parts: str) -> tuple[str, str]:
    """Returns the answer and the thoughts."""
    thinking = Thinking()
    answer = "".join(map(thinking.feed, parts))
    return answer + thinking.end(), thinking.thoughts


@pytest.mark.parametrize(
    ("said", "answer", "thoughts"),
    [
        ("<think>\nHm.\n</think>\n\nYes.", "Yes.", "Hm."),
        ("\n <think>Hm.</think>Yes.", "Yes.", "Hm."),
        ("<think>\n\n</think>\n\nYes.", "Yes.", ""),
        ("<Thinking>Hm.</thinking> Yes.", "Yes.", "Hm."),
        ("[THINK]Hm.[/THINK]Yes.", "Yes.", "Hm."),
        ("<think>One</think>\n<think>, two</think>Yes.", "Yes.", "One, two"),
        ("<think>a < b </thin", "", "a < b </thin"),
        ("<think>Hm.", "", "Hm."),
        (" Yes.", " Yes.", ""),
        ("Yes: <think>Hm.</think>", "Yes: <think>Hm.</think>", ""),
        ("`<think>` opens thoughts.", "`<think>` opens thoughts.", ""),
        ("```\n<think>\n```", "```\n<think>\n```", ""),
        ("<thinker>", "<thinker>", ""),
        ("<thin", "<thin", ""),
        ("[THINGS]", "[THINGS]", ""),
        ("  ", "  ", ""),
        ("", "", ""),
    ],
)
def test_thoughts_are_separated_from_the_answer(said: str, answer: str, thoughts: str) -> None:
    assert read(said) == (answer, thoughts)
    assert read(*said) == (answer, thoughts)


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.integers(0, 80))
@example(["<think>", "</", "think>"], 9)
def test_the_result_does_not_depend_on_token_boundaries(pieces: list[str], at: int) -> None:
    said = "".join(pieces)
    assert read(*pieces) == read(said) == read(said[:at], said[at:])


def test_thoughts_in_their_own_field_are_not_part_of_the_answer() -> None:
    line = orjson.dumps({"message": {"role": "assistant", "content": "Yes", "thinking": "Hm."}, "done": False})
    assert events(line, "m") == [Thought("Hm."), Token("Yes")]
