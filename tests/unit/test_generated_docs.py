"""The generated parts of the pages match the settings and metrics in the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from api.settings import variable_names
from api.settings.answers import Seconds
from scripts import generate_docs
from scripts.generate_docs import (
    SECTIONS,
    WIDTH,
    docstrings_of,
    env_example,
    generated,
    kind_of,
    metric_table,
    settings_table,
)


@pytest.mark.parametrize("path", generated(), ids=lambda path: path.name)
def test_a_generated_page_is_up_to_date(path: Path) -> None:
    assert path.read_text() == generated()[path], "run: python -m scripts.generate_docs"


def test_every_section_is_on_the_page() -> None:
    page = (generate_docs.ROOT / "docs" / "configuration.md").read_text()
    assert re.findall(r"<!-- generated: settings (\w+) -->", page) == list(SECTIONS)


def test_every_setting_has_a_summary_that_fits_into_the_table() -> None:
    tables = "".join(settings_table(section) for section in SECTIONS)
    rows = re.findall(r"^\| `([A-Z_]+)` \| .+ \| .+ \| (.+) \|$", tables, re.MULTILINE)
    assert [name for name, _ in rows] == variable_names()
    assert all(summary.endswith(".") for _, summary in rows)


@pytest.mark.parametrize("text", [*map(settings_table, SECTIONS), metric_table(), env_example()])
def test_no_generated_line_is_too_long(text: str) -> None:
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []


class _Kinds(BaseModel):
    """A model with one field of each kind."""

    choice: Literal["a", "b"] = "a"
    switch: bool = True
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    workers: Annotated[int, Field(ge=1)] | None = None
    share: Annotated[float, Field(gt=0, le=1)] = 1
    seconds: Seconds = 1.0
    bounded: Annotated[float, Field(ge=0, le=300, title="seconds")] = 0
    path: Annotated[str, Field(title="path")] | None = None
    text: str = ""


def test_the_kind_of_a_setting_follows_from_its_type() -> None:
    assert {name: kind_of(field) for name, field in _Kinds.model_fields.items()} == {
        "choice": "`a`, `b`",
        "switch": "`true`, `false`",
        "port": "0 to 65535",
        "workers": "1 or more",
        "share": "0 to 1",
        "seconds": "seconds",
        "bounded": "seconds, 0 to 300",
        "path": "path",
        "text": "text",
    }


class _Described(BaseModel):
    """A field with details, one with a summary, and one without a docstring."""

    long: int = 1
    """A summary.

    Details over
    two lines.
    """
    short: int = 2
    """Another summary."""
    bare: int = 3


def test_the_text_of_a_setting_is_the_docstring_below_it() -> None:
    assert docstrings_of(_Described) == {"long": "A summary.\n\nDetails over\ntwo lines.", "short": "Another summary."}
