"""The template file is validated at startup and is part of the cache key."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.errors import SettingsError
from api.query.prompt import load_template, parse_template

GOOD = """
version = "mine-2"
nothing_relevant = "Nothing about this."
[plain]
system = "Be brief."
[grounded]
system = "Cite $5 as it is."
passage = "<doc id='${number}' title='$title'>$text</doc>"
user = "$passages  costs $$1. $question"
"""


def test_the_packaged_file_is_valid() -> None:
    template = load_template(None)
    assert template.version == "grounded-1"
    assert template.plain_system.startswith("Answer the question directly")
    assert "[1]" in template.grounded_system
    assert "$text" in template.passage
    assert not template.user.startswith("\n")


def test_a_custom_file_is_used(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(GOOD, "utf-8")
    template = load_template(str(file))
    assert template == parse_template(GOOD)
    assert (template.version, template.nothing_relevant) == ("mine-2", "Nothing about this.")
    assert (template.plain_system, template.grounded_system) == ("Be brief.", "Cite $5 as it is.")


def test_a_file_with_windows_line_endings_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_template(str(file)) == parse_template(GOOD)


def test_an_edited_file_has_another_scope_even_under_the_same_version() -> None:
    one, other = parse_template(GOOD), parse_template(GOOD.replace("brief", "polite"))
    assert one.scope.startswith("mine-2-")
    assert len(one.scope) == len("mine-2-") + 8
    assert one.version == other.version
    assert one.scope != other.scope
    assert one.scope == parse_template(GOOD).scope


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"mine-2"', '"mine 2"', "version: "),
        ('"mine-2"', '""', "version: "),
        ('"mine-2"', f'"{"x" * 65}"', "version: "),
        ('"mine-2"', "2", "version: "),
        ('version = "mine-2"', "", "version: is missing"),
        ('"mine-2"', '"mine-2', "at line 2"),
        ("[plain]", "[plane]", "plain: is missing"),
        ('"Be brief."', '"  "', "plain.system: "),
        ('"Nothing about this."', '"$question? Nothing."', "nothing_relevant: $question is not filled in here"),
        ("Cite", "Cite $passages", "grounded.system: $passages is not filled in here"),
        ("user =", 'pasage = "x"\nuser =', "grounded.pasage: there is no such key"),
        ("$text", "", "grounded.passage: $text is missing"),
        ("${number}", "", "grounded.passage: $number is missing"),
        ("$text", "$text $heading", "grounded.passage: there is no placeholder $heading"),
        ("$question", "", "grounded.user: $question is missing"),
        ("$passages", "", "grounded.user: $passages is missing"),
        ("$$1", "$1", "grounded.user: a $ that begins no placeholder"),
    ],
)
def test_an_invalid_file_gives_a_one_line_error(old: str, new: str, fault: str) -> None:
    assert old in GOOD
    with pytest.raises(SettingsError) as raised:
        parse_template(GOOD.replace(old, new))
    line = str(raised.value)
    assert line.startswith("PROMPT_TEMPLATE_PATH: ")
    assert fault in line
    assert "\n" not in line


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_an_unreadable_file_gives_a_one_line_error(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=r"^PROMPT_TEMPLATE_PATH: the file "):
        load_template(str(file))
    with pytest.raises(SettingsError, match=r"^PROMPT_TEMPLATE_PATH: the file "):
        load_template(str(tmp_path))
