"""Cuts source code at its definitions with tree-sitter, the extra `code`.

Each part becomes a code block under headings that name its place: the file, then classes, functions and methods. Parts
consist of whole lines and cover the file. A definition that fits into a chunk stays whole, with the comments above it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import accumulate
from typing import Final, NamedTuple

from tree_sitter import Language, Node, Parser

from api.knowledge.chunking import estimated_tokens
from api.knowledge.kinds import LANGUAGES
from api.knowledge.plain_text import Parsed, decoded, in_a_fence, lines_of, tidied
from api.unicode_text import one_line

LARGEST: Final = 1024 * 1024
"""Bytes of a file that is parsed, so that its tree fits in memory. Larger ones are generated as a rule."""
DEEPEST: Final = 60
"""Levels of nesting that are looked into."""
MOST_NAMES: Final = 5
"""Levels of headings below the file's."""
LONGEST_NAME: Final = 80
LONGEST_FILE: Final = 200
FRAME: Final = 24
"""Tokens of a part's heading and fence."""
LEAST: Final = 8
"""Fewer tokens, such as an opening or closing line, are no part."""
SHARED: Final = 4
"""Definitions under this fraction of a part, such as getters, share one with their neighbours."""
_TOKEN: Final = re.compile(r"[^\W_]{1,4}|[^\w\s]|_")
"""About what a WordPiece tokenizer makes of code."""
_NAMED_SPACES: Final = "internal_module mod_item module namespace_declaration namespace_definition"
_NAMESPACES: Final = frozenset(_NAMED_SPACES.split())
"""Definitions that are cut even if they fit into a part."""
_NAMELESS: Final = "linkage_specification preproc_if preproc_ifdef preproc_else"
_OPEN: Final = frozenset(_NAMELESS.split())
"""Nodes that are cut even if they fit, and have no name."""
_NAMED: Final = """
abstract_class_declaration annotation_type_declaration class class_declaration class_definition class_specifier
constructor_declaration delegate_declaration enum_declaration enum_item enum_specifier function_declaration
function_definition function_item generator_function_declaration impl_item interface_declaration macro_definition
method method_declaration method_definition operator_declaration property_declaration record_declaration
singleton_method struct_declaration struct_item struct_specifier trait_declaration trait_item type_alias_declaration
type_item type_spec union_item union_specifier
"""
_DEFINITIONS: Final = _NAMESPACES.union(_NAMED.split())
_AROUND: Final = """
ambient_declaration assignment_expression declaration decorated_definition export_statement expression_statement
field_definition lexical_declaration pair public_field_definition template_declaration type_declaration type_definition
variable_declaration variable_declarator
"""
_WRAPPERS: Final = frozenset(_AROUND.split())
"""Nodes that may consist of one definition."""
MOST_WRAPPERS: Final = 8
_ASSIGNED: Final = "arrow_function class function function_expression generator_function"
_VALUES: Final = frozenset(_ASSIGNED.split())
"""Definitions that have the name of what they are assigned to."""
_ABOVE: Final = "attribute_item attribute_list block_comment comment decorator line_comment"
_LEADING: Final = frozenset(_ABOVE.split())
"""Nodes that belong to the definition below them."""
_PARAMETERS: Final = re.compile(r"<\w[^=]*>")

Path = tuple[str, ...]


class Part(NamedTuple):
    """The lines from `start` to before `end`. `path`: the names of the definitions around them, outermost first."""

    start: int
    end: int
    path: Path


def read(data: bytes, media_type: str, name: str, tokens: int) -> Parsed:
    """The file `name` in parts of about `tokens` at most. One part without a heading if no definition is found.

    Raises `UnreadableDocument`.
    """
    text = lines_of(decoded(data))
    found = parts(text, media_type, tokens - FRAME) if len(text) <= LARGEST else []
    if not any(part.path for part in found):
        return Parsed(in_a_fence(tidied(text)))
    lines, label = text.split("\n"), media_type.removeprefix("text/x-")
    said: list[str] = []
    above: Path = ()
    for part in found:
        path = (one_line(name, LONGEST_FILE) or label, *part.path)
        said += _headings(above, path)
        said.append(in_a_fence("\n".join(lines[part.start : part.end]), f'{label} linenums="{part.start + 1}"'))
        above = path
    return Parsed("\n\n".join(said))


def _headings(above: Path, path: Path) -> list[str]:
    """The headings that lead from one place to another."""
    pairs = zip(above, path, strict=False)
    shared = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(above), len(path)))
    if shared == len(path) < len(above):
        shared -= 1  # back to a definition around this one
    return [f"{'#' * (level + 1)} {path[level]}" for level in range(shared, len(path))]


def parts(text: str, media_type: str, tokens: int) -> list[Part]:
    """All lines of a text but blank ones, in order. Errors of syntax do not matter much: the parser goes on behind."""
    package, function = LANGUAGES[media_type]
    language = Language(getattr(import_module(package), function)())
    walk = _Walk(text.split("\n"), tokens)
    walk.through(Parser(language).parse(text.encode()).root_node, (), 0)
    walk.cut(len(walk.lines), ())
    return walk.parts


@dataclass(slots=True)
class _Walk:
    """A way through a tree. Lines from `at` on are in no part yet."""

    lines: Sequence[str]
    tokens: int
    at: int = 0
    leading: tuple[int, int] = (0, 0)
    """The lines of the last comments that stand for themselves."""
    names: list[tuple[int, int, Path]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    before: list[int] = field(init=False)
    """Tokens before each line."""

    def __post_init__(self) -> None:
        self.before = [*accumulate(map(_tokens, self.lines), initial=0)]

    def through(self, node: Node, path: Path, depth: int) -> None:
        """Takes the nodes below one that is cut. The body of a namespace is cut like the namespace."""
        body = node.child_by_field_name("body") if node.type in _NAMESPACES | _OPEN else None
        for child in node.children:
            start, end = _rows(child)
            if child.type in _LEADING and self.begins_line(child):
                self.leading = (self.leading[0] if start == self.leading[1] else start, end)
                self.take(start, end, path)
            else:
                begin = max(self.leading[0] if start == self.leading[1] else start, self.at)
                self._node(child, begin, end, path, depth, is_open=child == body)

    def begins_line(self, node: Node) -> bool:
        """Returns whether only white space is before the node on its line."""
        line = self.lines[node.start_point.row]
        return len(line) - len(line.lstrip()) >= node.start_point.column

    def _node(self, node: Node, begin: int, end: int, path: Path, depth: int, *, is_open: bool) -> None:
        inner, names = _definition(node) if node.is_named and len(path) < MOST_NAMES else (node, ())
        is_open = is_open or inner.type in _OPEN or (bool(names) and inner.type in _NAMESPACES)
        is_cut = depth < DEEPEST and (is_open or self.size(begin, end) > self.tokens)
        if names and (is_open or self.size(begin, end) >= self.tokens // SHARED):
            names = (*path, *names)[:MOST_NAMES]
            if self.size(self.at, begin) >= LEAST:
                self.cut(begin, path)
            if is_cut:
                self.through(inner, names, depth + 1)
            self.cut(end, names)
        elif is_cut:
            self.through(inner, path, depth + 1)
        else:
            self.take(begin, end, path, names)

    def take(self, begin: int, end: int, path: Path, names: Path = ()) -> None:
        """Adds lines to the part in hand if they fit, else to the next one."""
        if self.size(self.at, end) > self.tokens:
            self.cut(begin, path)
        if names:
            self.names.append((begin, end, names))

    def cut(self, end: int, path: Path) -> None:
        """Ends the part in hand. It is named for its only definition if it holds nothing else."""
        start, stop = self.at, end
        while start < stop and not self.lines[start].strip():
            start += 1
        while start < stop and not self.lines[stop - 1].strip():
            stop -= 1
        if start < stop and self.size(start, stop) < LEAST and self.parts:
            self.parts[-1] = self.parts[-1]._replace(end=stop)
        elif start < stop:
            if len(self.names) == 1 and (only := self.names[0])[0] <= start and stop <= only[1]:
                path = (*path, *only[2])[:MOST_NAMES]
            self.parts.append(Part(start, stop, path))
        self.at, self.names = max(end, self.at), []

    def size(self, start: int, end: int) -> int:
        """The tokens of some lines, estimated."""
        return self.before[end] - self.before[start] if start < end else 0


def _tokens(line: str) -> int:
    """The tokens of a line, rather too many than too few."""
    return max(len(_TOKEN.findall(line)), estimated_tokens(line))


def _rows(node: Node) -> tuple[int, int]:
    """The first line of a node, and the line behind its last."""
    start, end = node.start_point.row, node.end_point
    return start, max(end.row + (end.column > 0), start)


def _definition(node: Node, wrappers: int = MOST_WRAPPERS) -> tuple[Node, Path]:
    """The definition that a node consists of, and its name. No name if it is none."""
    if node.type in _DEFINITIONS:
        return node, _name(node)
    if node.type not in _WRAPPERS or not wrappers:
        return node, ()
    value = node.child_by_field_name("value") or node.child_by_field_name("right")
    if value is not None and value.type in _VALUES:
        fields = map(node.child_by_field_name, ("name", "property", "key", "left"))
        return value, _text(next(filter(None, fields), None))
    inner = [one for one in node.named_children if one.type in _DEFINITIONS or one.type in _WRAPPERS]
    if len(inner) != 1:
        return node, ()
    found, names = _definition(inner[0], wrappers - 1)
    return found, names or (_declared(node) if found.type in _DEFINITIONS else ())


def _name(node: Node) -> Path:
    """The name of a definition, with its type if that is written in it. None of a type that is only referred to."""
    has_body = node.type.endswith("_specifier") or node.type in _NAMESPACES
    if has_body and node.child_by_field_name("body") is None:
        return ()
    receiver = node.child_by_field_name("receiver")
    if receiver is not None:
        words = re.findall(r"\w+", _line(receiver).partition("[")[0])
        return (*words[-1:], *_text(node.child_by_field_name("name")))
    if node.type == "impl_item":
        trait = node.child_by_field_name("trait")
        names = "::".join(_text(node.child_by_field_name("type")))
        return (f"{_line(trait)} for {names}" if trait is not None else names,)
    return _text(node.child_by_field_name("name")) or _declared(node)


def _declared(node: Node) -> Path:
    """The name in a declaration of C."""
    inner = node.child_by_field_name("declarator")
    while inner is not None and (below := inner.child_by_field_name("declarator")) is not None:
        inner = below
    return _text(inner)


def _text(node: Node | None) -> Path:
    """A name by its parts, without parameters of types: `Stock<int>::add` has two."""
    return tuple(filter(None, _PARAMETERS.sub("", _line(node)).split("::"))) if node is not None else ()


def _line(node: Node) -> str:
    return one_line((node.text or b"")[: 4 * LONGEST_NAME].decode("utf-8", "ignore"), LONGEST_NAME)
