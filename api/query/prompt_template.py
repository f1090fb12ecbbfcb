"""Reads and checks the prompt template file; its digest is part of the cache key."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from api.errors import SettingsError

VARIABLE: Final = "PROMPT_TEMPLATE_PATH"
PACKAGED: Final = "grounded-1.toml"
PLACEHOLDERS: Final = frozenset({"number", "title", "text", "passages", "question"})


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """The texts of one template file. `passage` and `user` have placeholders as `string.Template` writes them.

    `digest` is 8 hex digits of SHA-256 over the file's text.
    """

    version: str
    digest: str
    plain_system: str
    grounded_system: str
    passage: str
    user: str
    nothing_relevant: str

    @property
    def scope(self) -> str:
        """The template's part of the cache key. An edited file has another, even under the same version."""
        return f"{self.version}-{self.digest}"


def load(path: str | None) -> PromptTemplate:
    """Returns the template in the file at `path`, or Ragherd's own. Blocks, so call it at the worker's start.

    Raises `SettingsError`.
    """
    file = Path(path) if path else files("api.query") / "templates" / PACKAGED
    try:
        text = file.read_text("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise SettingsError(f"{VARIABLE}: the file is not UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"{VARIABLE}: the file cannot be read: {reason}") from None
    return parse(text)


def parse(text: str) -> PromptTemplate:
    """Parses `text`, a TOML document. Raises `SettingsError` in one line that names the key and the fault."""
    try:
        shape = _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(_line(str(error))) from None
    except ValidationError as error:
        raise SettingsError(_line(_first_fault(error))) from None
    return PromptTemplate(
        version=shape.version,
        digest=hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8],
        plain_system=shape.plain.system,
        grounded_system=shape.grounded.system,
        passage=shape.grounded.passage,
        user=shape.grounded.user,
        nothing_relevant=shape.nothing_relevant,
    )


def _line(fault: str) -> str:
    return f"{VARIABLE}: {' '.join(fault.split())}"


def _first_fault(error: ValidationError) -> str:
    first: Any = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    reasons = {"extra_forbidden": "there is no such key", "missing": "is missing"}
    return f"{key}: {reasons.get(first['type'], first['msg'].removeprefix('Value error, '))}"


def _used(text: str) -> set[str]:
    return set(Template(text).get_identifiers())


def _no_placeholders(text: str) -> str:
    if found := sorted(_used(text) & PLACEHOLDERS):
        raise ValueError(f"${found[0]} is not filled in here")
    return text


def _placeholders(text: str, needed: set[str], optional: set[str]) -> str:
    if not Template(text).is_valid():
        raise ValueError("a $ that begins no placeholder; a dollar sign is written $$")
    if unknown := sorted(_used(text) - needed - optional):
        raise ValueError(f"there is no placeholder ${unknown[0]}")
    if missing := sorted(needed - _used(text)):
        raise ValueError(f"${missing[0]} is missing")
    return text


def _of_passage(text: str) -> str:
    return _placeholders(text, {"number", "text"}, {"title"})


def _of_user(text: str) -> str:
    return _placeholders(text, {"passages", "question"}, set())


Text = Annotated[str, Field(min_length=1)]
Fixed = Annotated[Text, AfterValidator(_no_placeholders)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, str_strip_whitespace=True)


class _Plain(_Table):
    system: Fixed


class _Grounded(_Table):
    system: Fixed
    passage: Annotated[Text, AfterValidator(_of_passage)]
    user: Annotated[Text, AfterValidator(_of_user)]


class _File(_Table):
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    plain: _Plain
    grounded: _Grounded
    nothing_relevant: Fixed
