"""Reads training/answers.txt: answers written for this project, each with answers that say the same and near ones.

A block of lines is about one question. The first sign of a line says what it holds:
- `?` the question;
- `=` an answer; all of a block say the same;
- `! 2 old => new` the second answer with an edit after which it says something else;
- `+ 2 old => new` the same with an edit that changes nothing;
- `~` an answer that says something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_suffix(".txt")
_EDIT: Final = re.compile(r"(\d+) (.*?) => ?(.*)")
_POLITE: Final = "please tell me: "


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """Two answers to a question, and whether they say the same. `asked`: the question of the other one."""

    question: str
    one: str
    other: str
    same: bool
    asked: str = ""

    @property
    def family(self) -> str:
        """Pairs of one family speak of the same facts."""
        return self.question.lower().removeprefix(_POLITE)


@dataclass(slots=True)
class AnswerSet:
    """Answers to one question: `equal` ones, and per equal one its harmless and its harmful edits."""

    question: str
    equal: list[str] = field(default_factory=list)
    edited: list[tuple[int, str]] = field(default_factory=list)
    kept: list[tuple[int, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def pairs(self) -> list[AnswerPair]:
        """Returns the pairs whose label is certain. Two edits may say the same, so they are not compared."""
        same = [*combinations(self.equal, 2)]
        same += [(text, changed) for _, changed in self.kept for text in self.equal]
        apart = [(text, changed) for _, changed in self.edited for text in self.equal]
        apart += [(text, other) for other in self.others for text in self.equal]
        return [
            AnswerPair(self.question, one, other, label)
            for label, found in ((True, same), (False, apart))
            for one, other in found
        ]


class InvalidAnswers(ValueError):
    """A line of answers.txt cannot be read. The message names it."""


@cache
def answer_sets(file: Path = FILE) -> Sequence[AnswerSet]:
    """Returns the blocks of the file. Raises `InvalidAnswers`."""
    return [_set(block) for block in file.read_text("utf-8").strip().split("\n\n")]


def _set(block: str) -> AnswerSet:
    question, *lines = block.splitlines()
    if not question.startswith("? "):
        raise InvalidAnswers(f"not a question: {question}")
    found = AnswerSet(question[2:])
    for line in lines:
        sign, text = line[0], line[2:].replace("\\n", "\n")
        if sign == "=":
            found.equal.append(text)
        elif sign == "~":
            found.others.append(text)
        elif sign in "!+":
            edit = _edited(text, found.equal, line)
            if edit is not None:
                (found.edited if sign == "!" else found.kept).append(edit)
        else:
            raise InvalidAnswers(f"unknown sign: {line}")
    return found


def _edited(text: str, equal: Sequence[str], line: str) -> tuple[int, str] | None:
    match = re.fullmatch(_EDIT.pattern, text, re.DOTALL)
    if match is None:
        raise InvalidAnswers(f"not an edit: {line}")
    number, old, new = int(match[1]) - 1, match[2], match[3]
    if number >= len(equal) or old not in equal[number]:
        raise InvalidAnswers(f"not in answer {number + 1}: {line}")
    changed = equal[number].replace(old, new, 1)
    return (number, changed) if changed != equal[number] else None


def read_labelled(file: Path, halves: Sequence[str]) -> list[AnswerPair]:
    """Reads pairs of tests/quality/*.jsonl."""
    rows = map(json.loads, file.read_text("utf-8").splitlines())
    return [
        AnswerPair(row["question"], row["one"], row["other"], row["truth"] == "same", row.get("asked", ""))
        for row in rows
        if row["half"] in halves
    ]
