"""Where the shared memory is."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from api.settings.concern import Concern, Positive, Seconds

CLUSTER = ("redis+cluster", "rediss+cluster")
PREFIX = "[A-Za-z0-9_.:-]+"
"""No pattern: `ragherd redis-acl` binds a user to keys by it."""
QUOTED = "in a password / ? # @ are written as %2F %3F %23 %40"


def is_cluster(url: str) -> bool:
    """Whether a URL names a Redis Cluster."""
    return urlsplit(url).scheme in CLUSTER


def _check_redis_url(value: str) -> str:
    parts = urlsplit(value)
    if "ssl_" in parts.query:
        raise ValueError("TLS has settings of its own: REDIS_CA_FILE, REDIS_CERT_FILE, REDIS_KEY_FILE")
    if parts.query or parts.fragment:
        raise ValueError(f"options after ? are not taken; {QUOTED}")
    if parts.scheme in {"redis+sentinel", "rediss+sentinel"}:
        return _check_sentinel_url(parts)
    if parts.scheme in CLUSTER:
        return _check_cluster_url(parts)
    if parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError(
            "expected redis:// or rediss:// (also with +sentinel or +cluster before the colon), or unix://"
        )
    if parts.scheme != "unix" and not _has_port(parts):
        raise ValueError(f"expected a port from 1 to 65535; {QUOTED}")
    database = parts.path.strip("/") if parts.scheme != "unix" else ""
    if database not in {"", "0"}:
        raise ValueError("Redis keeps search indexes in database 0 only: leave the database out of the URL")
    return value


def _has_port(parts: SplitResult) -> bool:
    """Whether it is one; none is as good: it has a default."""
    try:
        return parts.port != 0
    except ValueError:  # it would repeat a part of the password
        return False


def _are_hosts(parts: SplitResult) -> bool:
    hosts = [host.rpartition(":") for host in parts.netloc.rpartition("@")[2].split(",")]
    return all(host and port.isdigit() and 0 < int(port) < 65536 for host, _, port in hosts)


def _check_sentinel_url(parts: SplitResult) -> str:
    if not parts.path.strip("/") or not _are_hosts(parts):
        raise ValueError("expected redis+sentinel://host:port,host:port/name-of-the-primary")
    return parts.geturl()


def _check_cluster_url(parts: SplitResult) -> str:
    if parts.path.strip("/") or not _are_hosts(parts):
        raise ValueError("expected redis+cluster://host:port,host:port")
    return parts.geturl()


class RedisSettings(Concern):
    """The shared memory."""

    model_config = SettingsConfigDict(env_prefix="REDIS_")
    url: Annotated[str, AfterValidator(_check_redis_url)] = "redis://127.0.0.1:6379"
    prefix: Annotated[str, Field(min_length=1, pattern=f"^{PREFIX}$")] = "rag:"
    timeout: Seconds = 0.2
    connect_timeout: Seconds = 0.2
    request_budget: Seconds = 0.25
    max_connections: Positive = 64
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    @property
    def is_cluster(self) -> bool:
        """Whether the URL names a Redis Cluster."""
        return is_cluster(self.url)


class BreakerRedisSettings(Concern):
    """Where breakers and bulkheads are kept, if not with all the rest."""

    model_config = SettingsConfigDict(env_prefix="BREAKER_REDIS_")
    url: Annotated[str, AfterValidator(_check_redis_url)] | None = None
