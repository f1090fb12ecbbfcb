"""The Redis that the fleet shares, and a check of the TLS files at the start."""

from __future__ import annotations

import ssl
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from api.errors import SettingsError
from api.settings.answers import FilePath, Positive, Seconds, SettingsGroup

CLUSTER = ("redis+cluster", "rediss+cluster")
PREFIX = "[A-Za-z0-9_.:-]+"
"""Without wildcards, because `ragherd redis-acl` limits a user to keys with this prefix."""
QUOTED = "in a password / ? # @ are written as %2F %3F %23 %40"


def is_cluster(url: str) -> bool:
    """Returns whether a URL names a Redis Cluster."""
    return urlsplit(url).scheme in CLUSTER


def _check_redis_url(value: str) -> str:
    parts = urlsplit(value)
    if "ssl_" in parts.query:
        raise ValueError("set TLS options with REDIS_CA_FILE, REDIS_CERT_FILE and REDIS_KEY_FILE")
    if parts.query or parts.fragment:
        raise ValueError(f"options after ? are not supported; {QUOTED}")
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
    """Returns whether the port is valid. A missing port is, because it has a default."""
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


class RedisSettings(SettingsGroup):
    """The Redis of the cache, the knowledge base and the fleet."""

    model_config = SettingsConfigDict(env_prefix="REDIS_")
    url: Annotated[str, AfterValidator(_check_redis_url), Field(title="URL")] = "redis://127.0.0.1:6379"
    """Redis 8 or Redis Stack 7.4. `scripts/run` starts one if unset.

    `redis://`, `rediss://` (TLS), `unix://`, `redis+sentinel://host:port,host:port/name`,
    `redis+cluster://host:port,host:port`, `rediss+sentinel://...`, `rediss+cluster://...`. No database number: search
    indexes need database 0. No options after `?`. In a password write `/ ? # @` as `%2F %3F %23 %40`.
    """
    prefix: Annotated[str, Field(min_length=1, pattern=f"^{PREFIX}$")] = "rag:"
    """Prefix of every key.

    Letters, digits and `_ . : -`. Fleets with different prefixes can share a Redis.
    """
    timeout: Seconds = 0.2
    """Time for one command. Then Redis is considered down.

    A worker that was too busy to read a reply waits up to four times as long, or 5 s more if that is longer. The same
    holds for `REDIS_REQUEST_BUDGET` and `EMBED_TIMEOUT`.
    """
    connect_timeout: Seconds = 0.2
    """Time to connect."""
    request_budget: Seconds = 0.25
    """Time for all cache commands of one question.

    Then the look-up ends as `bypass`. Storing continues after the answer, which then does not say `stored`.
    """
    max_connections: Positive = 64
    """Commands in flight per worker; on a cluster per shard.

    More commands wait. Each breaker and each bulkhead listens on one more connection.
    """
    ca_file: FilePath | None = None
    """The only CA to trust under TLS (PEM). Default: the system's."""
    cert_file: FilePath | None = None
    """Client certificate with its chain (PEM), if the server asks for one."""
    key_file: FilePath | None = None
    """Unencrypted key of that certificate (PEM).

    Default: the key is in `REDIS_CERT_FILE`.
    """
    sentinel_username: str | None = None
    """User for the Sentinels. Default: their default user."""
    sentinel_password: str | None = None
    """Password for the Sentinels. Default: no password."""

    @property
    def is_cluster(self) -> bool:
        """True if the URL names a Redis Cluster."""
        return is_cluster(self.url)


class BreakerRedisSettings(SettingsGroup):
    """An optional second Redis for breakers and bulkheads."""

    model_config = SettingsConfigDict(env_prefix="BREAKER_REDIS_")
    url: Annotated[str, AfterValidator(_check_redis_url), Field(title="URL")] | None = None
    """Separate Redis for breakers and bulkheads. Default: `REDIS_URL`.

    Prefix, timeouts, TLS files and Sentinel credentials are those of `REDIS_...`.
    """


def check_tls_files(ca_file: str | None, cert_file: str | None, key_file: str | None) -> None:
    """Check the files of TLS. Raises `SettingsError`: one line that names the variable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file:
        try:
            context.load_verify_locations(cafile=ca_file)
        except ssl.SSLError:
            raise SettingsError(f"REDIS_CA_FILE: no certificate in PEM form in '{ca_file}'") from None
        except OSError as error:
            raise SettingsError(f"REDIS_CA_FILE: '{ca_file}': {error.strerror}") from None
    if key_file and not cert_file:
        raise SettingsError("REDIS_KEY_FILE: a key needs its certificate, REDIS_CERT_FILE")
    if cert_file:
        _check_readable("REDIS_CERT_FILE", cert_file)
        _check_readable("REDIS_KEY_FILE", key_file or cert_file)
        _check_pair(context, cert_file, key_file)


def _check_readable(variable: str, path: str) -> None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - for what it says, not for what it reads
            file.read(1)
    except OSError as error:
        raise SettingsError(f"{variable}: '{path}': {error.strerror}") from None


def _check_pair(context: ssl.SSLContext, cert_file: str, key_file: str | None) -> None:
    try:
        context.load_cert_chain(cert_file, key_file, password="")
    except ssl.SSLError as error:
        reason = (
            "the key does not match the certificate" if "MISMATCH" in str(error) else "not in PEM form, or encrypted"
        )
        given = f"'{cert_file}' with the key in '{key_file or cert_file}'"
        raise SettingsError(f"REDIS_CERT_FILE: {given} cannot be used: {reason}") from None
