"""Runs luacheck on every Lua script as the service sends it.

    .venv/bin/python -m scripts.check_lua

A script is one operation of a file, preceded by the prelude and the file's shared code (`redis_store/scripts.py`).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from api.redis_store.scripts import sections

ROOT = Path(__file__).parents[1]
STORE = ROOT / "api" / "redis_store"
PRELUDE = "prelude.lua"
UNUSED = {"211", "221", "231"}
"""Codes of unused names. A script may leave shared code unused, but at least one script must use it."""
WARNING = re.compile(r"(?P<path>.+?):(?P<line>\d+):(?P<column>\d+): \((?P<kind>[WE])(?P<code>\d+)\) (?P<text>.+)")


class Script(NamedTuple):
    """An operation as luacheck sees it. Its lines keep their numbers; lines of other operations are blank.

    `shared`: numbers of the lines that other operations share.
    """

    path: Path
    text: str
    shared: frozenset[int]


class Found(NamedTuple):
    """A warning with its position in a file."""

    path: Path
    line: int
    column: int
    code: str
    text: str
    may_be_unused: bool


def scripts_of(path: Path) -> Iterator[Script]:
    """Yields one script per operation of a file, or the whole file if it names none."""
    parts = sections(path.read_text("utf-8"))
    for operation in [part.name for part in parts if part.name] or [""]:
        kept, shared = "", set[int]()
        for part in parts:
            lines = part.text.count("\n")
            kept += part.text if part.name in ("", operation) else "\n" * lines
            if not part.name:
                shared |= set(range(part.line, part.line + lines))
            elif part.name == operation:
                break
        yield Script(path, kept, frozenset(shared))


def warnings(folder: Path) -> list[str]:
    """Returns luacheck's warnings for the scripts below a folder, with file and line."""
    prelude = (folder / PRELUDE).read_text("utf-8")
    scripts = [script for path in sorted(folder.rglob("*.lua")) if path.name != PRELUDE for script in scripts_of(path)]
    with tempfile.TemporaryDirectory() as place:
        for number, script in enumerate(scripts):
            (Path(place) / f"{number}.lua").write_text(prelude + script.text, "utf-8")
        matches = [match for match in map(WARNING.fullmatch, _luacheck(Path(place))) if match]
    ahead = prelude.count("\n")
    found = Counter(
        _located(match, scripts[int(Path(match["path"]).stem)], folder / PRELUDE, ahead) for match in matches
    )
    return sorted(
        f"{one.path}:{one.line}:{one.column}: ({one.code}) {one.text}"
        for one, times in found.items()
        if not one.may_be_unused or times == _sharing(one, scripts, folder / PRELUDE)
    )


def _luacheck(folder: Path) -> list[str]:
    config = str(ROOT / ".luacheckrc")
    command = ["luacheck", "--config", config, "--formatter", "plain", "--codes", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode > 2:
        raise SystemExit(f"luacheck: {done.stderr or done.stdout}")
    return done.stdout.splitlines()


def _located(match: re.Match[str], script: Script, prelude: Path, ahead: int) -> Found:
    """Converts a position to the file and line in the source. `ahead` is the number of lines of the prelude."""
    line = int(match["line"]) - ahead
    path, line = (script.path, line) if line > 0 else (prelude, line + ahead)
    shared = path == prelude or line in script.shared
    text = re.sub(r"on line (\d+)", lambda other: f"on line {_line_of(int(other[1]), ahead)}", match["text"])
    may_be_unused = shared and match["code"] in UNUSED
    return Found(path, line, int(match["column"]), f"{match['kind']}{match['code']}", text, may_be_unused)


def _line_of(line: int, ahead: int) -> str:
    return str(line - ahead) if line > ahead else f"{line} of {PRELUDE}"


def _sharing(one: Found, scripts: list[Script], prelude: Path) -> int:
    """Returns how many scripts contain the line."""
    if one.path == prelude:
        return len(scripts)
    return sum(script.path == one.path and one.line in script.shared for script in scripts)


if __name__ == "__main__":
    found = warnings(STORE)
    print("\n".join(found) or "No warnings.")
    sys.exit(bool(found))
