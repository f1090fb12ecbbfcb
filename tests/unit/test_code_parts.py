"""Source code is cut at its definitions, each under headings that name its place."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.knowledge import code, kinds, parse_process
from api.knowledge.chunking import Chunker, estimated_tokens
from api.knowledge.kinds import CODE, LANGUAGES, ZIP, media_type
from api.knowledge.parsing import ParseLimits, Parser
from api.knowledge.plain_text import Parsed
from api.ports.document_store import Chunk
from tests.unit.test_parsing import archive

PYTHON: Final = "text/x-python"
BODY: Final = "the quick brown fox jumps over the lazy dog and runs away from here"
"""Enough words for a part."""
SOURCES: Final = {
    "stock.py": f"""
import os
from collections import OrderedDict, defaultdict


class Stock(Base):
    \"\"\"Counts.\"\"\"

    # Adds one.
    @log
    def add(self, name):
        return "{BODY}"

    def remove(self, name):
        return "{BODY}"

if __name__ == "__main__":
    print("{BODY}")
""",
    "stock.js": f"""
/** Makes. */
const make = (a) => {{ return "{BODY}"; }};
export class Stock {{
  // Adds one.
  add(name) {{ return "{BODY}"; }}
  remove(name) {{ return "{BODY}"; }}
}}
module.exports.run = function () {{ return "{BODY}"; }};
""",
    "stock.ts": f"""
export interface Shape {{ area(text: "{BODY}"): number; }}
@Injectable()
export class Stock<T> {{
  // Adds one.
  @log add(name: T): string {{ return "{BODY}"; }}
  remove(name: T): string {{ return "{BODY}"; }}
}}
""",
    "view.tsx": f"""
export default function View() {{ return <p>{BODY}</p>; }}
""",
    "stock.go": f"""
package stock

// Add adds one.
func (s *Stock[T]) Add(name string) string {{
	return "{BODY}"
}}

func Make() string {{ return "{BODY}" }}
""",
    "stock.rs": f"""
/// Counts.
#[derive(Debug)]
struct Stock<T> {{ text: &str /* {BODY} */ }}

impl<T> Stock<T> {{
    /// Adds one.
    fn add(&self) -> &str {{ "{BODY}" }}
    fn remove(&self) -> &str {{ "{BODY}" }}
}}
""",
    "Stock.java": f"""
package org.example;

public class Stock {{
    /** Adds one. */
    @Override
    public String add(String name) {{ return "{BODY}"; }}
    public Stock() {{ super("{BODY}"); }}
}}
""",
    "stock.c": f"""
#include <stdio.h>

/* Adds one. */
static const char *add(int kind) {{ return "{BODY}"; }}
""",
    "stock.hpp": f"""
#ifndef STOCK_H
#define STOCK_H
namespace shop {{
template <typename T>
class Stock {{ const char *text() {{ return "{BODY}"; }} }};
}}
int shop::Stock<int>::add(int n) {{ puts("{BODY}"); return n; }}
#endif
""",
    "Stock.cs": f"""
namespace Shop {{
    public class Stock {{
        /// <summary>Adds one.</summary>
        public string Add() {{ return "{BODY}"; }}
        public string Remove() {{ return "{BODY}"; }}
    }}
}}
""",
    "stock.rb": f"""
module Shop
  # Counts.
  class Stock
    # Adds one thing of a name to the stock, and counts it, as long as it is open.
    def add(name)
      "{BODY}"
    end

    def self.make
      "{BODY}"
    end
  end
end
""",
    "stock.php": f"""
<?php
final class Stock {{
    /** Adds one. */
    public function add(): string {{ return "{BODY}"; }}
    public function remove(): string {{ return "{BODY}"; }}
}}
""",
}
PLACES: Final = {
    "stock.py": ["stock.py", "Stock", "Stock > add", "Stock > remove", "stock.py"],
    "stock.js": ["make", "Stock > add", "Stock > remove", "module.exports.run"],
    "stock.ts": ["Shape", "Stock > add", "Stock > remove"],
    "view.tsx": ["View"],
    "stock.go": ["Stock > Add", "Make"],
    "stock.rs": ["Stock", "Stock", "Stock > add", "Stock > remove"],
    "Stock.java": ["Stock > add", "Stock > Stock"],
    "stock.c": ["stock.c", "add"],
    "stock.hpp": ["shop > Stock", "shop > Stock > add"],
    "Stock.cs": ["Shop > Stock > Add", "Shop > Stock > Remove"],
    "stock.rb": ["Shop > Stock > add", "Shop > Stock > make"],
    "stock.php": ["Stock > add", "Stock > remove"],
}


def text_of(source: str, kind: str, name: str = "", tokens: int = 84) -> str:
    return code.read(source.encode(), kind, name, tokens).text


def chunks(text: str, size: int = 120) -> list[Chunk]:
    return Chunker(estimated_tokens, size, 8).chunks(text)


@pytest.mark.parametrize("name", SOURCES)
def test_each_definition_is_whole_and_named_by_its_place(name: str) -> None:
    source = SOURCES[name].strip("\n")
    found = chunks(text_of(source, media_type(name, None, b""), name))
    said = [one.heading.removeprefix(f"{name} > ") for one in found]
    assert [place for place in said if place in PLACES[name]] == PLACES[name], said
    for one in found:
        assert one.text.count(BODY) <= 1


@pytest.mark.parametrize("name", SOURCES)
def test_no_line_is_lost_and_each_part_names_its_line(name: str) -> None:
    source = SOURCES[name].strip("\n")
    text = text_of(source, media_type(name, None, b""), name)
    found, lines = chunks(text), source.split("\n")
    assert all(text[one.start : one.end] == one.text for one in found)
    said = [line for one in found for line in one.text.split("\n")]
    for line in filter(str.strip, lines):
        assert line in said
    for one in found:
        first = int(one.text.partition('linenums="')[2].partition('"')[0])
        assert one.text.partition('"\n')[2].startswith(lines[first - 1])


def test_what_describes_a_definition_stays_with_it() -> None:
    found = {one.heading: one.text for one in chunks(text_of(SOURCES["stock.py"], PYTHON, "stock.py"))}
    assert "# Adds one.\n    @log\n    def add" in found["stock.py > Stock > add"]
    assert "Adds one" not in found["stock.py > Stock"]
    (first, *_) = chunks(text_of(SOURCES["stock.rs"], "text/x-rust", "a.rs"))
    assert "/// Counts.\n#[derive(Debug)]\nstruct" in first.text


def test_a_class_that_fits_is_whole_and_small_functions_share_a_part() -> None:
    small = "\n\n".join(f"def f{n}():\n    return {n}" for n in range(6))
    (one, other) = chunks(
        text_of(f"class A:\n    def a(self):\n        return '{BODY}'\n\n{small}", PYTHON, "a.py", 120)
    )
    assert (one.heading, other.heading) == ("a.py > A", "a.py")
    assert "def f0" in other.text
    assert "def f5" in other.text


def test_a_long_function_is_cut_between_its_statements() -> None:
    source = "def f():\n" + "".join(f'    call("{BODY}",\n         {n})\n' for n in range(8))
    found = chunks(text_of(source, PYTHON, "a.py", 100))
    assert len(found) > 2
    assert {one.heading for one in found} == {"a.py > f"}
    for one in found:
        assert one.text.count("call(") == one.text.count(")\n")


def test_a_comment_alone_in_its_part_is_kept() -> None:
    comments = "".join(f"# {n} {BODY}\n" for n in range(6))
    found = "".join(one.text for one in chunks(text_of(f"{comments}\ndef f():\n    return '{BODY}'\n", PYTHON, "a.py")))
    assert all(f"# {n} " in found for n in range(6))


@pytest.mark.parametrize("source", ["", "just words", "x = 1\n", "\x00\x01", "((((((", "%PDF", "def", "class :::"])
@pytest.mark.parametrize("kind", LANGUAGES)
def test_code_without_definitions_is_text(kind: str, source: str) -> None:
    assert code.read(source.encode(), kind, "a", 84) == parse_process.reader(CODE)(source.encode(), 1, 100)


def test_a_file_over_the_limit_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "LARGEST", 10)
    assert text_of(SOURCES["stock.py"], PYTHON).startswith("```\nimport os")


def test_broken_code_keeps_its_sound_definitions() -> None:
    source = f"{SOURCES['stock.py']}\ndef broken(:\n    ]]]\n"
    found = chunks(text_of(source, PYTHON, "a.py"))
    assert "a.py > Stock > add" in [one.heading for one in found]
    assert "]]]" in "".join(one.text for one in found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LANGUAGES)
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_parts_cover_all_lines_in_order(kind: str, data: st.DataObject) -> None:
    sources = [
        source.strip("\n").split("\n") for name, source in SOURCES.items() if media_type(name, None, b"") == kind
    ]
    lines = data.draw(st.lists(st.sampled_from([*sources[0], "", "}", "{", "(", "# x", "/*", "class A"]), max_size=40))
    at = 0
    for part in code.parts("\n".join(lines), kind, 40):
        assert part.start >= at
        assert not any(map(str.strip, lines[at : part.start]))
        at = part.end
    assert not any(map(str.strip, lines[at:]))


async def read(content: bytes, kind: str, name: str, seconds: float = 30) -> Parsed:
    return await Parser(ParseLimits(20, 200_000, seconds, chunk_tokens=84)).parse(content, kind, name)


@pytest.mark.slow
async def test_the_reading_process_knows_the_name_and_files_in_an_archive_theirs() -> None:
    source = SOURCES["stock.py"].encode()
    lone, packed = await asyncio.gather(
        read(source, PYTHON, "stock.py"), read(archive(src__stock=b"", **{"src__stock.py": source}), ZIP, "")
    )
    assert lone.text.startswith('# stock.py\n\n```python linenums="2"\nimport os')
    assert packed.text == lone.text.replace("# stock.py\n", "# src/stock.py\n")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text/x-unknown", PYTHON])
async def test_a_file_that_the_reader_fails_on_is_read_as_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons of negations take tree-sitter longer than linear time."""
    monkeypatch.setitem(LANGUAGES, "text/x-unknown", ("nothing", "language"))
    source = f"x = 1\n{'<!--' * 25_000}"
    assert (await read(source.encode(), kind, "a", 2)).text == f"```\n{source}\n```"


def test_without_the_extra_code_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {media_type(name, None, b"") for name in SOURCES} == set(LANGUAGES)
    monkeypatch.setattr(kinds, "find_spec", lambda _: None)
    assert media_type("a.py", None, b"") == CODE
    assert media_type(None, PYTHON, b"") == CODE
    assert PYTHON not in kinds.readable()
