"""What a worker knows about API keys in Redis, and how it slows callers with wrong keys.

A worker keeps a copy of each key that it has seen, so a request with a known key costs no round trip. It hears of a
rotation or a revocation by a message. In case one is lost, it also asks for the epoch, often enough that every worker
knows within a second. Each time it hears that nothing has changed, its copies count for `trusted_seconds` more. Without
Redis, known keys work until that time is over, and unknown ones get 503, not 401: they may be valid.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ipaddress import IPv6Address, ip_network
from typing import Final

import structlog

from api.errors import StoreUnavailable
from api.ports.access import Caller, FoundKey, KeyStore, Lease, digest_of, id_of, untagged

POLL_SECONDS: Final = 0.5
"""Half of the second within which every worker knows; the rest is for Redis and a busy worker."""
MOST: Final = 10_000
"""Keys, and wrong keys, that a worker knows."""
USED_SECONDS: Final = 60.0
"""How often a worker writes when keys were last used."""


class KnownKeys:
    """The copies of one worker. `changed` is set by messages."""

    def __init__(self, store: KeyStore, changed: asyncio.Event, trusted_seconds: float) -> None:
        self._store = store
        self._changed = changed
        self._trusted_seconds = trusted_seconds
        self._epoch = 0
        self._adopted_at = 0.0
        self._lease = Lease(0.0)
        self._known: OrderedDict[str, Caller] = OrderedDict()
        self._wrong: OrderedDict[str, None] = OrderedDict()
        self._written_at = 0.0

    async def find(self, key: str) -> Caller | None:
        """Returns who calls with a key, or None if it is not valid. Raises `StoreUnavailable`."""
        digest = digest_of(key)
        known = self._known.get(digest)
        if known is not None and known.use():
            return known
        key_id = id_of(key)
        if key_id is None or (digest in self._wrong and time.monotonic() < self._lease.until):
            return None
        asked_at = time.monotonic()
        found = await self._store.read(key_id)
        if found.epoch > self._epoch or asked_at > self._adopted_at:  # else it may be a late reply
            self._adopt(found.epoch)
        caller = self._caller(found, digest, asked_at)
        if found.epoch != self._epoch:
            return caller  # for this request only: its lease has ended
        self._lease.until = max(self._lease.until, asked_at + self._trusted_seconds)
        return self._remembered(digest, caller)

    def _caller(self, found: FoundKey, digest: str, asked_at: float) -> Caller | None:
        record = found.record
        ends_ms = record.ends_ms(digest) if record is not None else None
        if record is None or ends_ms is None or 0 < ends_ms <= found.now_ms:
            return None
        caller = Caller(
            record.spec.tenant,
            record.spec.role,
            record.id,
            frozenset(map(untagged, record.spec.models)),
            record.spec.limits,
            lease=self._lease if found.epoch == self._epoch else Lease(0.0),
            is_used=True,
        )
        if ends_ms:
            caller.expires_at = asked_at + (ends_ms - found.now_ms) / 1000
        return caller

    def _remembered(self, digest: str, caller: Caller | None) -> Caller | None:
        """Returns the one copy of this key, whose uses are written: another request may have read it meanwhile."""
        if caller is None:
            self._wrong[digest] = None
            if len(self._wrong) > MOST:
                self._wrong.popitem(last=False)
            return None
        kept = self._known.get(digest)
        if kept is not None and kept.use():
            return kept
        self._known[digest] = caller
        if len(self._known) > MOST:
            self._known.popitem(last=False)[1].expires_at = 0.0  # its holders ask again
        return caller

    def _adopt(self, epoch: int) -> None:
        """Forgets all copies if the epoch has changed. Requests that hold one ask again."""
        if epoch == self._epoch:
            return
        self._epoch, self._adopted_at = epoch, time.monotonic()
        self._lease.until = 0.0
        self._lease = Lease(0.0)
        self._known.clear()
        self._wrong.clear()

    # -- following -----------------------------------------------------------------------------------------------------

    async def keep_following(self) -> None:
        """Follows the epoch while the worker knows any key. Runs as a task of the worker."""
        while True:
            self._changed.clear()
            if self._known or self._wrong:
                with suppress(StoreUnavailable):  # the client reports it
                    await self.follow()
                    await self._write_used()
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._changed.wait()

    async def follow(self) -> None:
        """Forgets the copies if a key has changed, else trusts them for longer. Raises `StoreUnavailable`."""
        asked_at = time.monotonic()
        self._adopt(await self._store.epoch())
        self._lease.until = asked_at + self._trusted_seconds

    async def _write_used(self) -> None:
        now = time.monotonic()
        if now < self._written_at + USED_SECONDS:
            return
        used = [caller for caller in self._known.values() if caller.is_used]
        if used:
            await self._store.used(sorted({caller.id for caller in used}))
            self._written_at = now
        for caller in used:
            caller.is_used = False


# -- keys in files -----------------------------------------------------------------------------------------------------

FILE_SECONDS: Final = 1.0
"""How often files are looked at."""
Stamp = tuple[int, int, int, int] | None


class KeyFiles:
    """Follows the files with keys of the settings. A broken file changes nothing.

    `read` returns the keys, and raises `ValueError` with a message that has none. `noted`: whether a change was read.
    """

    def __init__(
        self,
        paths: Sequence[str],
        read: Callable[[], tuple[Mapping[str, str], Sequence[str]]],
        adopt: Callable[[Mapping[str, str], Sequence[str]], None],
        noted: Callable[[bool], None] = lambda was_read: None,
    ) -> None:
        self._paths = paths
        self._read = read
        self._adopt = adopt
        self._noted = noted
        self._stamps: list[Stamp] = []
        self._log = structlog.get_logger("ragherd.access")

    async def keep_following(self) -> None:
        """Looks at the files for ever. Runs as a task of the worker."""
        while True:
            await asyncio.sleep(FILE_SECONDS)
            await self.follow()

    async def follow(self) -> None:
        """Adopts the keys if a file has changed."""
        try:
            found = await asyncio.to_thread(self._changed)
        except ValueError as error:
            self._noted(False)
            self._log.error("key_file_broken", message=f"{error}. The keys from before still work.")
            return
        if found is not None:
            self._adopt(*found)
            self._noted(True)
            self._log.info("key_file_read", users=len(found[0]), admins=len(found[1]))

    def _changed(self) -> tuple[Mapping[str, str], Sequence[str]] | None:
        """Reads the files if one has changed. Blocks."""
        stamps = [_stamp(path) for path in self._paths]
        if stamps == self._stamps:
            return None
        self._stamps = stamps  # of before the file is read: a later change is seen again
        return self._read()


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)  # noqa: PTH116 - follows the links of a mounted Secret
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


# -- wrong keys --------------------------------------------------------------------------------------------------------

FREE: Final = 5
"""Wrong keys from an address that are refused at once."""
FORGIVEN_SECONDS: Final = 10.0
"""Time in which an address is forgiven one wrong key."""
FIRST_DELAY: Final = 0.1
ADDRESSES: Final = 4096
LOG_SECONDS: Final = 60.0
SHOWN: Final = 3
"""Addresses that a line of the log names."""


class WrongKeys:
    """Slows callers by their address, and logs once a minute. A valid key is never slowed.

    `longest`: the longest delay in seconds; 0 for none. `rejected` is called for each wrong key.
    """

    def __init__(self, longest: float, rejected: Callable[[], None] = lambda: None) -> None:
        self._longest = longest
        self._rejected = rejected
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._unlogged: Counter[str] = Counter()
        self._logged_at = -LOG_SECONDS
        self._log = structlog.get_logger("ragherd.access")

    async def refuse(self, address: str) -> None:
        """Waits before a wrong key is refused."""
        self._rejected()
        now, network = time.monotonic(), _network(address)
        self._note(network, now)
        if delay := self.delay(network, now):
            await asyncio.sleep(delay)

    def delay(self, network: str, now: float) -> float:
        """Counts a wrong key, and returns how long its caller has to wait."""
        level, at = self._levels.pop(network, (0.0, now))
        level = max(0.0, level - (now - at) / FORGIVEN_SECONDS) + 1
        self._levels[network] = level, now
        if len(self._levels) > ADDRESSES:
            self._levels.popitem(last=False)
        return 0.0 if level <= FREE else min(self._longest, FIRST_DELAY * 2 ** min(level - FREE, 10))

    def _note(self, network: str, now: float) -> None:
        if len(self._unlogged) < ADDRESSES or network in self._unlogged:
            self._unlogged[network] += 1
        if now >= self._logged_at + LOG_SECONDS:
            most = dict(self._unlogged.most_common(SHOWN))
            self._log.warning("wrong_keys", count=self._unlogged.total(), addresses=most)
            self._unlogged.clear()
            self._logged_at = now


def _network(address: str) -> str:
    """Returns the /64 network of an IPv6 address, whose hosts choose the rest; other addresses as they are."""
    try:
        found = IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ip_network((found, 64), strict=False))
