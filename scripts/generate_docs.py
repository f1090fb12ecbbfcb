"""Writes the generated parts of the docs: tables of settings, metrics, commands and quality, and .env.example.

    .venv/bin/python -m scripts.generate_docs

The texts are the docstrings in api/settings and the help texts of metrics and commands. Two comments mark a generated
part: `<!-- generated: NAME -->` and `<!-- end of generated part -->`. A test fails if a page is out of date.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from enum import Enum
from inspect import Parameter, signature
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, OptionInfo

from api.observability.metric_names import ALL_METRICS
from api.settings import Settings
from api.settings.answers import SettingsGroup
from ragherd.commands import find
from scripts import measure_quality
from scripts.compare_with_ollama import cases
from tests.support.client_features import CLIENTS, FEATURES

ROOT: Final = Path(__file__).parents[1]
WIDTH: Final = 120
SECTIONS: Final = {
    "server": ("Server", ("server",)),
    "access": ("Access", ("access",)),
    "redis": ("Redis", ("redis", "breaker_redis")),
    "ollama": ("Ollama", ("ollama",)),
    "embedder": ("Embedder", ("embedder",)),
    "pool": ("Connection pool, in each worker", ("pool",)),
    "bulkhead": ("Bulkhead, for the whole fleet", ("bulkhead",)),
    "breaker": ("Circuit breaker, for the whole fleet", ("breaker",)),
    "cache": ("Semantic cache, for the whole fleet", ("cache", "partitions")),
    "knowledge": ("Knowledge base", ("documents", "retrieval")),
    "tracing": ("Traces", ("tracing",)),
}
"""The heading of each section in .env.example, and the `Settings` fields it shows."""
ENV_HEAD: Final = """\
# Settings of Ragherd. Copy this file to .env and uncomment the lines that you change.
# The environment overrides this file. An empty value counts as unset. Times are seconds, sizes are bytes.
# docs/configuration.md has the details.
"""
_PART: Final = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end of generated part -->)", re.DOTALL)


def main() -> int:
    """Writes every outdated file and prints its path."""
    for path, text in generated().items():
        if path.read_text() != text:
            path.write_text(text)
            print(path.relative_to(ROOT))
    return 0


def generated() -> dict[Path, str]:
    """Returns the files with their generated parts up to date."""
    pages = {
        ROOT / "docs" / "configuration.md": lambda name: settings_table(name.removeprefix("settings ")),
        ROOT / "docs" / "metrics.md": lambda _: metric_table(),
        ROOT / "docs" / "quality.md": measure_quality.part,
        ROOT / "docs" / "clients.md": lambda name: client_table() if name == "clients" else request_table(),
        ROOT / "docs" / "command-line.md": lambda name: command_table(name.removeprefix("command ")),
    }
    texts = {path: _filled(path.read_text(), part) for path, part in pages.items()}
    return {**texts, ROOT / ".env.example": env_example()}


def client_table() -> str:
    """Returns the table of packages and what the tests do with them."""
    head = f"| package | {' | '.join(FEATURES)} |\n|---|{'---|' * len(FEATURES)}"
    rows = [
        f"| `{name}` | {' | '.join('✓' if feature in features else '' for feature in FEATURES)} |"
        for name, features in CLIENTS.items()
    ]
    return "\n".join((head, *rows))


def request_table() -> str:
    """Returns the table of requests that the tests compare with Ollama's answers."""
    cached = {"meaning": "by meaning", "letter": "to the letter", "": "no"}
    rows = [
        (case.name, f"`{case.method} {case.path}`", cached[case.cached], case.differs or "as from Ollama")
        for case in cases("", "")
    ]
    return _table(("request", "path", "cached", "answer"), rows)


def _filled(page: str, part: Callable[[str], str]) -> str:
    return _PART.sub(lambda found: f"{found[1]}\n{part(found[2])}\n{found[3]}", page)


# -- Settings ----------------------------------------------------------------------------------------------------------


def settings_table(name: str) -> str:
    """Returns the table of a section, and a list of the details that do not fit into it."""
    settings = list(_settings_of(name))
    rows = [(f"`{variable}`", kind_of(field), default_of(field), _summary(field)) for variable, field in settings]
    notes = [_note(variable, field) for variable, field in settings if _details(field)]
    return _table(("variable", "type", "default", "meaning"), rows) + ("\n" + "".join(notes) if notes else "")


def env_example() -> str:
    """Returns every setting with its summary and default, commented out."""
    parts = [ENV_HEAD]
    for name, (heading, _) in SECTIONS.items():
        parts.append(f"\n# -- {heading} ".ljust(WIDTH + 1, "-") + "\n\n")
        for variable, field in _settings_of(name):
            default = "" if default_of(field) == "none" else default_of(field).strip("`")
            parts.append(f"# {_env_summary(field)}\n# {variable}={default}\n")
    return "".join(parts)


def _settings_of(section: str) -> Iterable[tuple[str, FieldInfo]]:
    """Yields each variable of a section with its field. The description is the field's docstring."""
    for name in SECTIONS[section][1]:
        group = Settings.model_fields[name].annotation
        assert isinstance(group, type)
        assert issubclass(group, SettingsGroup)
        prefix = group.model_config.get("env_prefix", "")
        texts = docstrings_of(group)
        for field, info in group.model_fields.items():
            described = copy(info)
            described.description = texts.get(field)
            yield f"{prefix}{field}".upper(), described


def docstrings_of(group: type) -> dict[str, str]:
    """Returns the docstring below each field. Reads the source here, so that no worker does it at startup."""
    [body] = (node.body for node in ast.parse(inspect.getsource(group)).body if isinstance(node, ast.ClassDef))
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _summary(field: FieldInfo) -> str:
    return (field.description or "").partition("\n\n")[0].replace("\n", " ")


def _env_summary(field: FieldInfo) -> str:
    """Returns the summary as plain text, with the possible values."""
    choices = f" One of: {kind_of(field)}." if get_origin(_unpacked(field.annotation)[0]) is Literal else ""
    return (_summary(field) + choices).replace("`", "")


def _details(field: FieldInfo) -> str:
    return (field.description or "").partition("\n\n")[2].replace("\n", " ")


def _note(variable: str, field: FieldInfo) -> str:
    lines = textwrap.wrap(
        f"- `{variable}`: {_details(field)}",
        WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines) + "\n"


def kind_of(field: FieldInfo) -> str:
    """Returns the kind of value of a setting, in a few words."""
    base, constraints = _unpacked(field.annotation)
    metadata = [*constraints, *field.metadata]
    if get_origin(base) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(base))
    if base is bool:
        return "`true`, `false`"
    bounds = _range(metadata)
    title = field.title or next((one.title for one in constraints if getattr(one, "title", None)), None)
    if title and bounds and not bounds.endswith("or more"):
        return title if title == "percent" else f"{title}, {bounds}"
    return title or bounds or "text"


def _unpacked(annotation: Any) -> tuple[Any, list[Any]]:
    """Returns a type without `None`, and its annotations."""
    if get_origin(annotation) in {Union, UnionType}:
        return _unpacked(next(one for one in get_args(annotation) if one is not type(None)))
    if get_origin(annotation) is Annotated:
        base, *constraints = get_args(annotation)
        inner, more = _unpacked(base)
        return inner, [*more, *constraints]
    return annotation, []


def _range(metadata: Sequence[Any]) -> str:
    limits: dict[str, float] = {}
    for one in metadata:
        for part in (one, *getattr(one, "metadata", ())):
            limits.update({name: getattr(part, name) for name in ("ge", "gt", "le", "lt") if hasattr(part, name)})
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if low is None:
        return ""
    return f"{low:g} or more" if high is None else f"{low:g} to {high:g}"


def default_of(field: FieldInfo) -> str:
    """Returns a default as a person writes it, or `none`."""
    default = field.default
    if default is None or default == "":
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default:.15g}`" if isinstance(default, int | float) else f"`{default}`"


# -- Metrics -----------------------------------------------------------------------------------------------------------


def metric_table() -> str:
    """Returns the table of metrics in the order of declaration."""
    rows = [
        (f"`{spec.name}`", spec.type, ", ".join(f"`{label}`" for label in spec.labels), spec.help)
        for spec in ALL_METRICS
    ]
    return _table(("name", "type", "labels", "meaning"), rows)


# -- Commands ----------------------------------------------------------------------------------------------------------


def command_table(name: str) -> str:
    """Returns the help of a command, then its arguments and options."""
    function = find(name)
    hints = get_type_hints(function, include_extras=True)
    rows = [_parameter_row(one, hints[one.name]) for one in signature(function).parameters.values()]
    help_text = re.sub(r"(?<=\S)\n +(?=\S)", " ", inspect.getdoc(function) or "")
    return f"{help_text}\n\n{_table(('argument or option', 'value', 'default', 'meaning'), rows)}"


def _parameter_row(parameter: Parameter, annotation: Any) -> tuple[str, str, str, str]:
    kind, constraints = _unpacked(annotation)
    info = next(one for one in constraints if isinstance(one, ArgumentInfo | OptionInfo))
    flag = kind is bool
    option = f"--{parameter.name.replace('_', '-')}"
    # Before this call, typer mistakes the name passed to `Option(...)` for a default.
    given = [one for one in (info.default, *(info.param_decls or ())) if isinstance(one, str) and one.startswith("-")]
    named = "`, `".join(given or ([option, f"--no-{option[2:]}"] if parameter.default is True else [option]))
    if isinstance(info, ArgumentInfo):
        named = parameter.name.upper() + (" ..." if get_origin(kind) is list else "")
    value = "" if flag else f"`{info.metavar}`" if info.metavar else _value(kind, info)
    return f"`{named}`", value, _command_default(parameter, info), info.help or ""


def _value(kind: Any, info: ArgumentInfo | OptionInfo) -> str:
    if get_origin(kind) is list:
        return _value(_unpacked(get_args(kind)[0])[0], info)
    if issubclass(kind, Enum):
        return ", ".join(f"`{choice.value}`" for choice in kind)
    name = {str: "text", Path: "path", int: "integer", float: "number"}[kind]
    bounds = [f"{limit:g}" for limit in (info.min, info.max) if limit is not None]
    return f"{name}, {' to '.join(bounds)}{' or more' if info.max is None else ''}" if bounds else name


def _command_default(parameter: Parameter, info: ArgumentInfo | OptionInfo) -> str:
    if parameter.default is Parameter.empty:
        return "required"
    if info.envvar:
        return f"`{info.envvar if isinstance(info.envvar, str) else info.envvar[0]}`"
    if parameter.default is None or parameter.default is False:
        return ""
    return "on" if parameter.default is True else f"`{parameter.default}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
