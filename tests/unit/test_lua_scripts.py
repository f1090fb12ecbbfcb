"""luacheck finds nothing in the Lua scripts, and would find a mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.check_lua import ROOT, warnings
from tests.support.needed_tools import need_tool


@pytest.fixture
def luacheck() -> str:
    return need_tool("luacheck")


@pytest.mark.usefixtures("luacheck")
def test_luacheck_finds_nothing_in_the_scripts() -> None:
    assert list((ROOT / "api").rglob("*.lua"))
    assert warnings(ROOT / "api") == []


def test_the_scripts_are_indented_by_two_spaces() -> None:
    for path in (ROOT / "api").rglob("*.lua"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert re.fullmatch(r"(  )*(\S.*)?", line), f"{path.name}:{number}"
            assert "\t" not in line, f"{path.name}:{number}"
            assert line == line.rstrip(), f"{path.name}:{number}"


@pytest.mark.usefixtures("luacheck")
@pytest.mark.parametrize(
    ("script", "warning"),
    [
        ("return nwo()", "feature_do.lua:1:8: (W113) accessing undefined variable 'nwo'"),
        ("local n = 1\nreturn now()", "feature_do.lua:1:7: (W211) unused variable 'n'"),
        ("counter = now()", "feature_do.lua:1:1: (W111) setting non-standard global variable 'counter'"),
        ("return (", "feature_do.lua:1:8: (E011) expected expression near <eof>"),
    ],
)
def test_a_mistake_is_named_by_the_file_and_line_where_it_stands(tmp_path: Path, script: str, warning: str) -> None:
    (tmp_path / "std.lua").write_text("local function now() return redis.call('TIME') end\n")
    (tmp_path / "feature_common.lua").write_text("local function spare() return KEYS[1] end\n")
    (tmp_path / "feature_do.lua").write_text(script)
    assert f"{tmp_path}/{warning}" in warnings(tmp_path)


@pytest.mark.usefixtures("luacheck")
def test_a_script_may_use_shared_code_or_names_of_it(tmp_path: Path) -> None:
    (tmp_path / "std.lua").write_text("local function now() return 1 end\nlocal function int(n) return n end\n")
    (tmp_path / "one.lua").write_text("return now()")
    (tmp_path / "two.lua").write_text("local function int(n) return n + 1 end\nreturn int(ARGV[1])")
    assert warnings(tmp_path) == []
