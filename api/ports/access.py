"""API keys that are kept in Redis, and the callers that they identify.

A key is `rgh_<id>_<secret>`. The ID finds the record. The secret has 256 random bits, so a plain SHA-256 digest of the
key cannot be reversed, and Redis stores nothing else of it.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from api.ports.limits import UNLIMITED, Limits

KeyRole = Literal["user", "operator", "admin"]
RANKS: Final[Mapping[str, int]] = {"user": 0, "operator": 1, "admin": 2}
"""A role may do what lower ones may."""
MARK: Final = "rgh_"
_KEY: Final = re.compile(r"rgh_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
KEY_ID: Final = r"^[0-9a-f]{16}$"


def new_id() -> str:
    """Makes the ID of a key."""
    return secrets.token_hex(8)


def new_secret(key_id: str) -> str:
    """Makes a key with this ID."""
    return f"{MARK}{key_id}_{secrets.token_urlsafe(32)}"


def prefix_of(key_id: str) -> str:
    """Returns the part of a key that may be shown."""
    return f"{MARK}{key_id}"


def id_of(key: str) -> str | None:
    """Returns the ID in a key, or None if it does not have the form of one."""
    found = _KEY.fullmatch(key)
    return found[1] if found else None


def digest_of(key: str) -> str:
    """Returns the digest that Redis stores."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class KeySpec:
    """What an admin decides about a key. `expires_ms`: 0 for never. `models`: empty for all."""

    tenant: str
    role: KeyRole
    name: str = ""
    expires_ms: int = 0
    models: tuple[str, ...] = ()
    limits: Limits = UNLIMITED


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A stored key. Times are by Redis's clock (ms), 0 for never. `old_digest` is valid until `old_until_ms`."""

    id: str
    spec: KeySpec
    digest: str
    created_ms: int
    rotated_ms: int = 0
    last_used_ms: int = 0
    old_digest: str = ""
    old_until_ms: int = 0

    def ends_ms(self, digest: str) -> int | None:
        """Returns until when this digest is valid, 0 for ever; None if it is not this key's."""
        ends = self.spec.expires_ms
        if secrets.compare_digest(digest, self.digest):
            return ends
        if self.old_digest and secrets.compare_digest(digest, self.old_digest):
            return min(ends, self.old_until_ms) if ends else self.old_until_ms
        return None


@dataclass(frozen=True, slots=True)
class FoundKey:
    """What was stored under an ID. `epoch` grows when a key is rotated or revoked. `now_ms`: Redis's clock."""

    epoch: int
    now_ms: int
    record: KeyRecord | None


@dataclass(slots=True)
class Lease:
    """Until when a worker's copies of keys count, by its monotonic clock. A change of a key ends it."""

    until: float = math.inf


@dataclass(slots=True)
class Caller:
    """Who calls. `models`: empty for all. `id`: of a key in Redis, else empty.

    `expires_at` and the lease are by the worker's monotonic clock.
    """

    tenant: str
    role: KeyRole
    id: str = ""
    models: frozenset[str] = frozenset()
    limits: Limits = UNLIMITED
    expires_at: float = math.inf
    lease: Lease = field(default_factory=Lease)
    is_used: bool = False
    """Whether the key was used since that was last written."""

    @property
    def is_valid(self) -> bool:
        """Whether the worker may still trust what it knows."""
        now = time.monotonic()
        return now < self.expires_at and now < self.lease.until

    def use(self) -> bool:
        """Notes a use. Returns whether the worker may still trust what it knows."""
        self.is_used = True
        return self.is_valid

    def may_use(self, model: str) -> bool:
        """Whether the key allows a model."""
        return not self.models or untagged(model) in self.models


def untagged(model: str) -> str:
    """Returns the name of a model without the tag `latest`, which Ollama takes for granted."""
    return model.removesuffix(":latest")


LONGEST_TOKEN: Final = 8 * 1024
"""Characters of a JWT."""


def is_token(key: str) -> bool:
    """Returns whether a key has the form of a JWT."""
    return key.startswith("eyJ") and key.count(".") == 2 and len(key) <= LONGEST_TOKEN


class TokenVerifier(Protocol):
    """Verifies the tokens of an OpenID Connect provider."""

    async def find(self, token: str) -> Caller | None:
        """Returns who calls, or None for a token that is not valid.

        Raises `StoreUnavailable` if the provider's keys are not known, and `NotAuthorized` for one without a tenant.
        """


class KeyStore(Protocol):
    """The fleet's keys in Redis. Every method raises `StoreUnavailable`."""

    async def read(self, key_id: str) -> FoundKey:
        """Returns the record of a key and the epoch."""

    async def epoch(self) -> int:
        """Returns the number that grows when a key is rotated or revoked; 0 if there never was one."""

    async def create(self, key_id: str, digest: str, spec: KeySpec) -> KeyRecord | None:
        """Stores a key. Returns None if there are too many."""

    async def rotate(self, key_id: str, digest: str, overlap_ms: int) -> KeyRecord | None:
        """Gives a key another digest. The former one stays valid for `overlap_ms`. Returns None if it is unknown."""

    async def revoke(self, key_id: str) -> KeyRecord | None:
        """Deletes a key, and returns what it was; None if it is unknown."""

    async def all(self) -> Sequence[KeyRecord]:
        """Returns every key, oldest first."""

    async def used(self, key_ids: Sequence[str]) -> None:
        """Writes that keys were used now."""
