"""luacheck finds no errors in the Lua scripts, and would find one. The service sends each operation alone."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest

from api.redis_store import scripts
from api.redis_store.scripts import lua, sections
from scripts.check_lua import ROOT, STORE, warnings
from tests.support.needed_tools import need_tool
from worker_config import gunicorn_conf

PRELUDE = "local function now() return redis.call('TIME') end\n"


@pytest.fixture
def luacheck() -> str:
    return need_tool("luacheck")


@pytest.mark.slow
@pytest.mark.usefixtures("luacheck")
def test_luacheck_finds_nothing_in_the_scripts() -> None:
    assert list(STORE.rglob("*.lua")) == list((ROOT / "api").rglob("*.lua")) != []
    assert warnings(STORE) == []


def test_the_scripts_are_indented_by_two_spaces() -> None:
    for path in (ROOT / "api").rglob("*.lua"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert re.fullmatch(r"(  )*(\S.*)?", line), f"{path.name}:{number}"
            assert "\t" not in line, f"{path.name}:{number}"
            assert line == line.rstrip(), f"{path.name}:{number}"
            assert len(line) <= 120, f"{path.name}:{number}"


def test_every_file_begins_with_what_it_is_about() -> None:
    for path in STORE.rglob("*.lua"):
        head, *parts = sections(path.read_text())
        assert head.text.startswith("-- "), path.name
        assert path.name == "prelude.lua" or any(part.name for part in parts), path.name


def test_every_operation_is_used_by_python() -> None:
    texts = "".join(path.read_text() for path in STORE.rglob("*.py"))
    for path in STORE.rglob("*.lua"):
        for part in sections(path.read_text()):
            assert f'"{part.name}"' in texts or not part.name, f"{path.name}: {part.name}"


def test_a_script_is_the_prelude_the_shared_code_above_and_the_operation() -> None:
    find, store = lua("stores/cache/answers", "find"), lua("stores/cache/answers", "store")
    prelude = (STORE / "prelude.lua").read_text()
    assert find.startswith(prelude)
    assert store.startswith(prelude)
    assert "evict_one" not in find
    assert "local function evict_one" in store
    assert re.findall(r"-- name: (\w+)", find + store) == ["find", "store"]


def test_an_operation_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        lua("stores/fleet", "lend")


@pytest.mark.usefixtures("luacheck")
@pytest.mark.parametrize(
    ("script", "warning"),
    [
        ("return nwo()", "feature.lua:5:8: (W113) accessing undefined variable 'nwo'"),
        ("local n = 1\nreturn now()", "feature.lua:5:7: (W211) unused variable 'n'"),
        ("counter = now()", "feature.lua:5:1: (W111) setting non-standard global variable 'counter'"),
        ("return ]", "feature.lua:5:8: (E011) expected expression near ']'"),
        ("return later()", "feature.lua:5:8: (W113) accessing undefined variable 'later'"),
        ("return 1", "prelude.lua:1:16: (W211) unused function 'now'"),
        ("return 1", "feature.lua:1:16: (W211) unused function 'spare'"),
        ("local function spare() return now() end\nreturn spare()", "feature.lua:5:16: (W411) variable 'spare' was"),
    ],
)
def test_a_mistake_is_reported_with_its_file_and_line(tmp_path: Path, script: str, warning: str) -> None:
    (tmp_path / "prelude.lua").write_text(PRELUDE)
    shared = "local function spare() return KEYS[1] end\n"
    last = "-- shared\nlocal function later() return 1 end\n-- name: last\nreturn later()\n"
    (tmp_path / "feature.lua").write_text(f"{shared}-- name: first\nreturn 2\n-- name: do\n{script}\n{last}")
    assert any(found.startswith(f"{tmp_path}/{warning}") for found in warnings(tmp_path))


@pytest.mark.usefixtures("luacheck")
def test_shared_code_needs_only_one_script_that_uses_it(tmp_path: Path) -> None:
    (tmp_path / "prelude.lua").write_text(PRELUDE)
    (tmp_path / "one.lua").write_text("-- name: a\nreturn now()\n-- name: b\nreturn 1\n")
    shared = "local function int(n) return n + 1 end\n"
    (tmp_path / "two.lua").write_text(f"{shared}-- name: a\nreturn int(ARGV[1])\n-- name: b\nreturn 1\n")
    assert warnings(tmp_path) == []


def test_workers_have_the_scripts_of_their_master_even_if_the_files_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "freeze", lambda: None)
    lua.cache_clear()
    gunicorn_conf._preload(gunicorn_conf.APP)
    monkeypatch.delattr(scripts, "files")
    for path in STORE.rglob("*.lua"):
        for part in sections(path.read_text()):
            assert not part.name or part.text in lua(path.relative_to(STORE).with_suffix("").as_posix(), part.name)
