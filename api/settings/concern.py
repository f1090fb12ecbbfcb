"""The base class of all settings, and the kinds of values that several of them have."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, title="seconds")]
Percent = Annotated[float, Field(gt=0, le=100, title="percent")]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Bytes = Annotated[int, Field(ge=1, title="bytes")]
FilePath = Annotated[str, Field(title="path")]


class Concern(BaseSettings):
    """One class of settings. Each field is an environment variable: `env_prefix` and its name, in capitals.

    A field's docstring is its description: a line for the table in docs/configuration.md and .env.example, then, after
    a blank line, details for the page. `title` names the kind of value where the type does not. After a change run
    `python -m scripts.generate_docs`.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        env_file_encoding="utf-8",
        use_attribute_docstrings=True,
    )


def split_list(value: Any) -> Any:
    """A list that is written with commas."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
