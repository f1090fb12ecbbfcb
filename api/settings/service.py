"""How the service listens, and who may call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import NoDecode

from api.settings.concern import Concern, NotNegative, Positive, Seconds, split_list

MEMORY = r"^([1-9]\d*(\.\d+)?([KMG]i?)?|(100|[1-9]\d?)(\.\d+)?%)$"
"""Bytes, also as `800Mi` or `1.5G`, or a part of the memory given as `40%`."""


class ServerSettings(Concern):
    """How the service listens and logs."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8001
    workers: Annotated[int, Field(ge=1, le=1000)] | None = None
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9090
    max_body_bytes: Positive = 1024 * 1024
    body_timeout: Seconds = 30.0
    stream_heartbeat: Seconds = 15.0
    stream_stall_timeout: Seconds = 60.0
    graceful_timeout: Seconds = 30.0
    drain_delay: Annotated[float, Field(ge=0, le=300)] = 0.0
    max_requests: NotNegative = 0
    max_requests_jitter: NotNegative = 0
    worker_memory_limit: Annotated[str, Field(pattern=MEMORY)] | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_questions: bool = False


def _check_api_keys(value: tuple[str, ...]) -> tuple[str, ...]:
    for number, pair in enumerate(value, start=1):
        tenant, separator, key = pair.partition("=")
        if not (separator and tenant.strip() and key.strip()):
            raise ValueError(f"entry {number} is not of the form tenant=key")
    check_sendable([pair.partition("=")[2] for pair in value])
    return value


def check_sendable(keys: Sequence[str]) -> None:
    for number, key in enumerate(keys, start=1):
        if not key.isascii():
            raise ValueError(f"the key of entry {number} has a character that is not ASCII, which no header can hold")


class AccessSettings(Concern):
    """Who may call. `api_keys` is `tenant=key,...`; `admin_keys` a list."""

    api_keys: Annotated[str, NoDecode] = ""
    admin_keys: Annotated[str, NoDecode] = ""

    def tenants_by_key(self) -> dict[str, str]:
        """The tenant that each API key stands for."""
        pairs = (pair.partition("=") for pair in _check_api_keys(split_list(self.api_keys)))
        return {key.strip(): tenant.strip() for tenant, _, key in pairs}

    def admins(self) -> tuple[str, ...]:
        """The keys with the admin's right."""
        keys: tuple[str, ...] = split_list(self.admin_keys)
        return keys
