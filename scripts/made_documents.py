"""Generates reproducible documents: handbook pages with headings, paragraphs, lists and tables."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

SECTIONS: Final = 8
"""About 10 chunks with the default CHUNK_TOKENS."""
_SUBJECTS: Final = (
    "harbour",
    "museum",
    "orchard",
    "turbine",
    "library",
    "clinic",
    "railway",
    "brewery",
    "quarry",
    "ferry",
)
_THINGS: Final = (
    *("valve", "ledger", "permit", "boiler", "archive", "pump", "contract", "signal", "storage room", "fire door"),
    *("delivery", "inspection", "uniform", "key card", "generator", "visitor badge", "logbook", "crane", "canteen"),
    *("sample", "invoice", "ticket", "back-up battery", "meeting", "parcel", "greenhouse", "scale", "bridge", "roster"),
)
_ACTORS: Final = (
    "the warden",
    "the night shift",
    "the office",
    "a technician",
    "the head of stores",
    "the safety officer",
)
_DOES: Final = (
    "checks",
    "repairs",
    "records",
    "orders",
    "releases",
    "counts",
    "cleans",
    "locks",
    "signs for",
    "replaces",
)
_WHEN: Final = (
    *("before every shift", "on the first Monday of the month", "within two days", "after each delivery", "in spring"),
    *("when the temperature falls", "at the end of the quarter", "as soon as the alarm has ended", "twice a year"),
)
_WHY: Final = (
    *(
        "because the insurer asks for it",
        "so that nobody has to wait",
        "as the regulations say",
        "to keep the costs down",
    ),
    *("since it has failed before", "which the works council has agreed to", "unless the manager decides otherwise"),
)


def document(number: int, sections: int = SECTIONS) -> str:
    """Returns a document as Markdown, with about 500 characters per section."""
    chance = random.Random(number)
    subject = _SUBJECTS[number % len(_SUBJECTS)]
    parts = [f"# The {subject} handbook, volume {number}", _paragraph(chance, subject)]
    for section in range(1, sections + 1):
        thing = chance.choice(_THINGS)
        parts += [f"## {section}. The {thing} of the {subject}", _paragraph(chance, subject)]
        parts.append(chance.choice((_paragraph, _list, _table))(chance, subject))
    return "\n\n".join(parts) + "\n"


def question(number: int) -> str:
    """Returns a question about the documents that is unique to `number`."""
    chance = random.Random(-1 - number)
    actor, thing, subject = chance.choice(_ACTORS), chance.choice(_THINGS), chance.choice(_SUBJECTS)
    return f"When does {actor} of the {subject} see to {thing} number {number}, and {chance.choice(_WHY)}?"


def write(folder: Path, numbers: range, sections: int = SECTIONS) -> Path:
    """Writes one file per document. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number:05}.md").write_text(document(number, sections))
    return folder


def _sentence(chance: random.Random, subject: str) -> str:
    actor, does, thing = chance.choice(_ACTORS), chance.choice(_DOES), chance.choice(_THINGS)
    said = f"{actor} of the {subject} {does} {thing} {chance.randint(1, 999)} {chance.choice(_WHEN)}"
    return f"{said[0].upper()}{said[1:]}, {chance.choice(_WHY)}."


def _paragraph(chance: random.Random, subject: str) -> str:
    return " ".join(_sentence(chance, subject) for _ in range(chance.randint(2, 4)))


def _list(chance: random.Random, subject: str) -> str:
    return "\n".join(f"- {_sentence(chance, subject)}" for _ in range(chance.randint(2, 3)))


def _table(chance: random.Random, subject: str) -> str:
    rows = [f"| {chance.choice(_THINGS)} | {chance.choice(_ACTORS)} | {chance.randint(1, 99)} |" for _ in range(4)]
    return "\n".join(("| what | who | how many |", "|---|---|---|", *rows))
