"""Reads settings: every fault is one line that names the variable."""

from __future__ import annotations

from typing import Final

from pydantic import ValidationError

from api.errors import SettingsError
from api.settings.all_settings import Settings
from api.settings.concern import Concern
from api.settings.together import check_together

SECRET: Final = {"API_KEYS", "ADMIN_KEYS", "REDIS_URL", "REDIS_SENTINEL_PASSWORD", "BREAKER_REDIS_URL"}


def load_settings(env_file: str | None = ".env") -> Settings:
    """Reads the environment over `env_file`. Raises `SettingsError`: one line that names the variable."""
    concerns: dict[str, Concern] = {}
    for name, concern in _concerns().items():
        try:
            concerns[name] = concern(_env_file=env_file)
        except ValidationError as error:
            raise SettingsError(_one_line(concern, error)) from None
    settings = Settings.model_validate(concerns)
    check_together(settings)
    return settings


def variable_names() -> list[str]:
    """Every environment variable that the service reads, in the order of the settings classes."""
    return [_variable(concern, field) for concern in _concerns().values() for field in concern.model_fields]


def _concerns() -> dict[str, type[Concern]]:
    """The settings classes by their name in `Settings`."""
    annotations = {name: info.annotation for name, info in Settings.model_fields.items()}
    return {name: kind for name, kind in annotations.items() if isinstance(kind, type) and issubclass(kind, Concern)}


def _variable(concern: type[Concern], field: str) -> str:
    return f"{concern.model_config.get('env_prefix', '')}{field}".upper()


def _one_line(concern: type[Concern], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    variable = _variable(concern, str(first["loc"][0]))
    given = "" if variable in SECRET else f" (given: {first['input']!r})"
    reason = str(first["msg"]).removeprefix("Value error, ")
    return f"{variable}: {reason}{given}"
