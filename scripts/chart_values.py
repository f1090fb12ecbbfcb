"""Writes the table of values in k8s/chart/README.md.

.venv/bin/python -m scripts.chart_values
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

CHART = Path(__file__).parents[1] / "k8s" / "chart"
MARK = "<!-- python -m scripts.chart_values writes this table from values.yaml. -->\n"
LONGEST_DEFAULT = 32


def table(values: str) -> str:
    """Returns the values of a values.yaml as a Markdown table."""
    lines = values.splitlines()
    rows = [f"| `{path}` | {default} | {meaning} |" for path, default, meaning in described(lines)]
    return "\n".join(["| value | default | meaning |", "|---|---|---|", *rows]) + "\n"


def described(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yields the path, default and comment of every value. A value whose parts have comments is listed by its parts."""
    root = yaml.compose("\n".join(lines))
    assert isinstance(root, yaml.MappingNode)
    yield from _described(root, lines, "")


def _described(node: yaml.MappingNode, lines: list[str], parent: str) -> Iterator[tuple[str, str, str]]:
    for key, value in node.value:
        path = f"{parent}{key.value}"
        if isinstance(value, yaml.MappingNode) and any(_comment(lines, part) for part, _ in value.value):
            yield from _described(value, lines, f"{path}.")
        else:
            comment = _comment(lines, key)
            if not comment:
                raise SystemExit(f"values.yaml: {path} has no comment")
            yield path, _default(value), comment


def _comment(lines: list[str], key: yaml.Node) -> str:
    """Returns the comment lines directly above a key as one line."""
    found: list[str] = []
    for line in reversed(lines[: key.start_mark.line]):
        text = re.fullmatch(r" *# (.+)", line)
        if text is None:
            break
        found.insert(0, text[1])
    return " ".join(found)


def _default(node: yaml.Node) -> str:
    value = yaml.safe_load(yaml.serialize(node))
    written = json.dumps(value)
    return f"`{written}`" if len(written) <= LONGEST_DEFAULT else "see values.yaml"


def with_table(readme: str, values: str) -> str:
    """Returns the README with the table of these values."""
    before, mark, _ = readme.partition(MARK)
    if not mark:
        raise SystemExit("README.md: the marker before the table is missing")
    return f"{before}{mark}\n{table(values)}"


if __name__ == "__main__":
    readme = CHART / "README.md"
    readme.write_text(with_table(readme.read_text(), (CHART / "values.yaml").read_text()))
