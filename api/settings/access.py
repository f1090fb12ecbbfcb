"""Access settings: API keys, admin keys, allowed host names, and anonymous callers."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Sequence
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, Field
from pydantic_settings import NoDecode

from api.loopback import is_loopback_host
from api.settings.answers import SettingsGroup, split_list

SHORTEST_KEY: Final = 2
WEAK_KEY: Final = 16
"""A shorter key is accepted, with a warning in the log."""
_HOST: Final = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\*")
"""A name, an IPv4 address, `*.name`, or `*` for any host."""


def _check_hosts(value: str) -> str:
    hosts = split_list(value)
    if value and not hosts:
        raise ValueError("the list has no host")
    for number, host in enumerate(hosts, start=1):
        if not (_HOST.fullmatch(host) or _is_ipv6(host)):
            raise ValueError(f"entry {number} is not a host name, an address, *.name or *; leave out scheme and port")
    return value


def _is_ipv6(host: str) -> bool:
    """With brackets or without."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        IPv6Address(bare)
    except ValueError:
        return False
    return "%" not in bare  # no browser sends a zone


RequestLimit = Annotated[int, Field(ge=1, le=1_000_000)] | None
StreamLimit = Annotated[int, Field(ge=1, le=10_000)] | None
TokenLimit = Annotated[int, Field(ge=1, le=1_000_000_000, title="tokens")] | None


class AccessSettings(SettingsGroup):
    """Access settings. `api_keys` is `tenant=key,...`; the others are lists."""

    api_keys: Annotated[str, NoDecode, Field(title="list")] = ""
    """Keys that may ask: `tenant=key,...`. Default: anyone may ask.

    With keys, a question needs one, and the key fixes the tenant. Without keys, a request may name its tenant.
    """
    admin_keys: Annotated[str, NoDecode, Field(title="list")] = ""
    """Admin keys. Default: admin endpoints answer loopback callers only.

    They may also ask, as any tenant.
    """
    api_keys_file: Annotated[str, Field(title="path", min_length=1)] | None = None
    """File with more `API_KEYS`, also one in each line. Changes take effect at once.

    For example a mounted Secret of Kubernetes. Lines that begin with `#` are comments.
    """
    admin_keys_file: Annotated[str, Field(title="path", min_length=1)] | None = None
    """The same for `ADMIN_KEYS`."""
    batch_keys: Annotated[str, NoDecode, Field(title="list")] = ""
    """Keys of `API_KEYS` that are limited to batch priority."""
    require_keys: bool = False
    """Questions and reports need a key, also without `API_KEYS`.

    For keys that are [in Redis](access.md). Reports need the role operator or admin.
    """
    rate_limit_requests_per_minute: RequestLimit = None
    """A tenant's requests in a minute that ask or write."""
    rate_limit_tokens_per_minute: TokenLimit = None
    """Tokens of a tenant in a minute. Default: no limit."""
    token_budget_per_day: TokenLimit = None
    """Generated tokens of a tenant in a day. Default: no limit."""
    token_budget_per_month: TokenLimit = None
    """Generated tokens of a tenant in a month. Default: no limit."""
    concurrent_streams: StreamLimit = None
    """Streams of a tenant at the same time. Default: no limit."""
    rate_limit_free_hits: bool = False
    """Answers from the cache are free of charge."""
    oidc_issuer: Annotated[str, Field(title="URL", pattern=r"^https?://\S+$")] | None = None
    """OpenID Connect provider whose access tokens are accepted. Default: none.

    It needs the extra `oidc`, and `OIDC_AUDIENCE`. [Access](access.md#openid-connect) has the details.
    """
    oidc_audience: Annotated[str, Field(title="name", min_length=1)] | None = None
    """What the tokens' claim `aud` must contain."""
    oidc_tenant_claim: Annotated[str, Field(title="name", min_length=1)] = "tenant"
    """Claim with the tenant. Dots lead to a member of it."""
    oidc_role_claim: Annotated[str, Field(title="name", min_length=1)] = "roles"
    """Claim with `ragherd-operator` or `ragherd-admin`, a text or a list."""
    key_trust_seconds: Annotated[float, Field(ge=1, le=86_400, title="seconds")] = 300.0
    """How long known keys from Redis work while Redis is down."""
    wrong_key_delay: Annotated[float, Field(ge=0, le=10, title="seconds")] = 1.0
    """Longest delay for an address that keeps sending wrong keys. 0: none."""
    encryption_keys: Annotated[str, NoDecode, Field(title="list")] = ""
    """Encrypt texts in Redis: `id=base64 of 32 bytes,...`. Default: no encryption.

    The first encrypts, all decrypt; the entry `plain` stands for no encryption. It needs the extra `encryption`.
    [Privacy](privacy.md#encryption-at-rest) has the steps.
    """
    allow_anonymous: bool = False
    """Allow callers without a key where `HOST` is not loopback."""
    allowed_hosts: Annotated[str, NoDecode, AfterValidator(_check_hosts), Field(title="list")] = ""
    """Accepted `Host` names. Others get 400. Default: any.

    Without scheme and port: `rag.example`, `10.0.0.7`, `::1`, or `*.example` for every name below `example`.
    """

    def tenants_by_key(self) -> dict[str, str]:
        """The tenant of each API key. Raises `ValueError`, whose message has no key."""
        listed = [*entries(self.api_keys), *_of_file("API_KEYS_FILE", self.api_keys_file)]
        pairs = [_pair(number, entry) for number, entry in enumerate(listed, start=1)]
        check_keys([key for _, key in pairs])
        return {key: tenant for tenant, key in pairs}

    def admins(self) -> tuple[str, ...]:
        """The admin keys. Raises `ValueError`, whose message has no key."""
        keys = (*entries(self.admin_keys), *_of_file("ADMIN_KEYS_FILE", self.admin_keys_file))
        check_keys(keys)
        return keys

    def users_and_admins(self) -> tuple[dict[str, str], tuple[str, ...]]:
        """The tenants by key, and the admin keys. Raises `ValueError`, whose message has no key."""
        tenants, admins = self.tenants_by_key(), self.admins()
        if set(tenants) & set(admins):
            raise ValueError("a key is also in API_KEYS")
        return tenants, admins

    @property
    def key_files(self) -> list[str]:
        """The files with keys."""
        return [path for path in (self.api_keys_file, self.admin_keys_file) if path is not None]

    def batch(self) -> tuple[str, ...]:
        """The API keys that are limited to batch priority. Raises `ValueError`, whose message has no key."""
        keys = entries(self.batch_keys)
        check_keys(keys)
        known = self.tenants_by_key()
        for number, key in enumerate(keys, start=1):
            if key not in known:
                raise ValueError(f"the key of entry {number} is not in API_KEYS")
        return keys

    def encryption_ring(self) -> tuple[tuple[str, bytes], ...]:
        """The encryption keys by ID, in order; `plain` has none. Raises `ValueError`, whose message has no key."""
        ring = [_encryption_key(number, entry) for number, entry in enumerate(entries(self.encryption_keys), start=1)]
        if len({name for name, _ in ring}) < len(ring):
            raise ValueError("an ID is there twice")
        if len({key for _, key in ring}) < len(ring):
            raise ValueError("two IDs have the same key")
        return tuple(ring)

    @property
    def is_keyed(self) -> bool:
        """Whether a question needs a key."""
        return bool(self.api_keys or self.api_keys_file) or self.require_keys or self.oidc_issuer is not None

    def hosts(self) -> tuple[str, ...]:
        """The accepted host names, in lower case. Empty if any is accepted."""
        hosts: tuple[str, ...] = split_list(self.allowed_hosts)
        return tuple(host.strip("[]").lower() for host in hosts)


def entries(value: str) -> tuple[str, ...]:
    """Split a list of keys. Empty entries stay, because they are errors; a comma at the end adds none."""
    found = [part.strip() for part in value.split(",")] if value else []
    return tuple(found[:-1] if len(found) > 1 and not found[-1] else found)


def _of_file(variable: str, path: str | None) -> list[str]:
    """Read the entries of a file. An empty one is an error: it may be half written."""
    if path is None:
        return []
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{variable} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{variable} is not UTF-8") from None
    found = [entry for line in lines if not line.lstrip().startswith("#") for entry in entries(line.strip())]
    if not found:
        raise ValueError(f"{variable} has no key")
    return found


_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,16}")


def _encryption_key(number: int, entry: str) -> tuple[str, bytes]:
    if entry == "plain":
        return entry, b""
    name, separator, encoded = entry.partition("=")
    if not separator or not _KEY_ID.fullmatch(name) or name == "plain":
        raise ValueError(f"entry {number}: expected id=key, with an ID of up to 16 letters, digits, _ or -")
    try:
        key = b64decode(encoded, validate=True)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ValueError(f"entry {number}: expected the base64 of 32 bytes, as from `openssl rand -base64 32`")
    return name, key


def check_keys(keys: Sequence[str]) -> None:
    """Raise `ValueError` for keys that are empty, too short, listed twice, or impossible in a header."""
    first: dict[str, int] = {}
    for number, key in enumerate(keys, start=1):
        if not key:
            raise ValueError(f"the key of entry {number} is empty")
        if len(key) < SHORTEST_KEY:
            raise ValueError(f"the key of entry {number} has only one character; make one with: openssl rand -hex 24")
        if not key.isascii():
            raise ValueError(
                f"the key of entry {number} has a character that is not ASCII; HTTP headers cannot carry it"
            )
        if not key.isprintable():
            raise ValueError(f"the key of entry {number} has a control character; HTTP headers cannot carry it")
        if first.setdefault(key, number) != number:
            raise ValueError(f"the keys of entries {first[key]} and {number} are the same")


def _pair(number: int, entry: str) -> tuple[str, str]:
    tenant, separator, key = (part.strip() for part in entry.partition("="))
    if not (separator and tenant):
        raise ValueError(f"entry {number} is not of the form tenant=key")
    return tenant, key


def anonymous_refusal(access: AccessSettings, listens_on: str) -> str | None:
    """Return why the service must not listen on an address, or None if it may."""
    if access.is_keyed or access.allow_anonymous or is_loopback_host(listens_on):
        return None
    return (
        f"API_KEYS: without keys, anyone who can reach {listens_on} may use the service; "
        "set API_KEYS=tenant=key,... or REQUIRE_KEYS=true, or allow it with ALLOW_ANONYMOUS=true"
    )


def access_warnings(access: AccessSettings, listens_on: Sequence[str]) -> list[str]:
    """Warnings about accepted settings. Each one names its variable."""
    weak = [
        f"{variable}: a key of fewer than {WEAK_KEY} characters can be guessed; make one with: openssl rand -hex 24"
        for variable, keys in (("API_KEYS", access.tenants_by_key()), ("ADMIN_KEYS", access.admins()))
        if any(len(key) < WEAK_KEY for key in keys)
    ]
    reached = [host for host in listens_on if not is_loopback_host(host)]
    if access.is_keyed or not reached:
        return weak
    return [
        f"ALLOW_ANONYMOUS: anyone who can reach {', '.join(reached)} may use the service, because no key is required",
        *weak,
    ]
