"""Runs luacheck on every Lua script as the service sends it, shared code first: python -m scripts.check_lua

A file named `common`, `prelude` or `std` comes before all scripts, `<feature>_common` before those named `<feature>_*`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SHARED_BY_ALL = {"common", "prelude", "std"}
UNUSED = {"211", "221", "231"}
"""Shared code may hold functions that one script does not use."""
DEFINED_TWICE = {"411", "421", "431"}
"""A script may use a name of shared code for itself: not every script of a feature begins with all of it."""
WARNING = re.compile(r"(?P<path>.+?):(?P<line>\d+):(?P<column>\d+): \((?P<kind>[WE])(?P<code>\d+)\) (?P<text>.+)")


class Part(NamedTuple):
    """A file that is a part of a script."""

    path: Path
    lines: int
    shared: bool


def is_shared(path: Path) -> bool:
    """True if other scripts begin with this file."""
    return path.stem in SHARED_BY_ALL or path.stem.endswith("_common")


def parts(script: Path, shared: list[Path]) -> list[Path]:
    """The files that make up a script, in order."""
    feature = script.stem.partition("_")[0]
    names = SHARED_BY_ALL | {f"{feature}_common"}
    before = [path for path in shared if path.stem in names and path != script]
    return [*sorted(before, key=lambda path: path.stem not in SHARED_BY_ALL), script]


def warnings(folder: Path) -> list[str]:
    """Everything that luacheck finds in the scripts below a folder, by the file and line where it stands."""
    files = sorted(folder.rglob("*.lua"))
    shared = [path for path in files if is_shared(path)]
    scripts = [path for path in files if not is_shared(path)] or shared
    with tempfile.TemporaryDirectory() as place:
        joined: dict[str, list[Part]] = {}
        for number, script in enumerate(scripts):
            texts = [(path, path.read_text("utf-8")) for path in parts(script, shared)]
            name = f"{number}.lua"
            (Path(place) / name).write_text("\n".join(text for _, text in texts), "utf-8")
            joined[name] = [Part(path, text.count("\n") + 1, is_shared(path)) for path, text in texts]
        found = [_at_home(match, joined) for match in map(WARNING.fullmatch, _luacheck(Path(place))) if match]
    return sorted({warning for warning in found if warning})


def _luacheck(folder: Path) -> list[str]:
    config = str(ROOT / ".luacheckrc")
    command = ["luacheck", "--config", config, "--formatter", "plain", "--codes", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode > 2:
        raise SystemExit(f"luacheck: {done.stderr or done.stdout}")
    return done.stdout.splitlines()


def _at_home(match: re.Match[str], joined: dict[str, list[Part]]) -> str:
    """The warning with the file and line that a person knows, or "" if it is none."""
    sources = joined[Path(match["path"]).name]
    part, line = _located(int(match["line"]), sources)
    text, code = match["text"], match["code"]
    if part.shared and code in UNUSED:
        return ""
    if code in DEFINED_TWICE and (before := re.search(r"on line (\d+)", text)):
        other, first = _located(int(before[1]), sources)
        if other.shared and not part.shared:
            return ""
        text = text.replace(before[0], f"on line {first}")
    return f"{part.path}:{line}:{match['column']}: ({match['kind']}{code}) {text}"


def _located(line: int, sources: list[Part]) -> tuple[Part, int]:
    """The part that holds a line of the whole script, and the line's number in it."""
    for part in sources:
        if line <= part.lines:
            return part, line
        line -= part.lines
    raise AssertionError("luacheck named a line past the end")


if __name__ == "__main__":
    found = warnings(ROOT / "api")
    print("\n".join(found) or "No warnings.")
    sys.exit(bool(found))
