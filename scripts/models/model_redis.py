"""A real Redis under a clock that stands still: the explorer moves it, and puts any earlier contents back.

Scripts run unchanged below a few lines that answer TIME and keep the lifetimes of keys by that clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis

from scripts.models.hand import Command

BEGIN_MS: Final = 10_000_000
"""Where the clock begins."""
_CLOCK: Final = """
local real, CLOCK, STEP, EXPIRY = redis, 'model:clock', 'model:step', 'model:expiry'
local function model_ms() return tonumber(real.call('GET', CLOCK)) end
local redis = {}
function redis.call(name, ...)
  local given = {...}
  if name == 'TIME' then
    local ms = model_ms()
    return {string.format('%d', ms / 1000), string.format('%d', ms % 1000 * 1000 + real.call('GET', STEP))}
  elseif name == 'PEXPIRE' then
    if real.call('EXISTS', given[1]) == 0 then return 0 end
    real.call('HSET', EXPIRY, given[1], string.format('%d', model_ms() + given[2]))
    return 1
  elseif name == 'PTTL' then
    if real.call('EXISTS', given[1]) == 0 then return -2 end
    local ends = real.call('HGET', EXPIRY, given[1])
    return ends and ends - model_ms() or -1
  elseif name == 'PERSIST' then
    return real.call('HDEL', EXPIRY, given[1])
  elseif name == 'RENAME' then
    local ends = real.call('HGET', EXPIRY, given[1])
    if ends then real.call('HSET', EXPIRY, given[2], ends) else real.call('HDEL', EXPIRY, given[2]) end
    real.call('HDEL', EXPIRY, given[1])
  elseif name == 'XADD' then
    for i, part in ipairs(given) do
      if part == '*' then
        given[i] = string.format('%d-*', model_ms())
        break
      end
    end
  elseif name == 'DEL' or name == 'UNLINK' then
    real.call('HDEL', EXPIRY, unpack(given))
  elseif name == 'PUBLISH' then
    return 0
  elseif string.find(name, 'EXPIRE', 1, true) then
    error('The clock of the model has no ' .. name)
  end
  return real.call(name, unpack(given))
end
"""
_PLAIN: Final = _CLOCK + "return redis.call(unpack(ARGV))\n"
_MOVE: Final = """
local now = redis.call('INCRBY', 'model:clock', ARGV[1])
local kept = redis.call('HGETALL', 'model:expiry')
for i = 1, #kept, 2 do
  if tonumber(kept[i + 1]) <= now then redis.call('DEL', kept[i]) end
end
"""
_READ: Final = """
for _, key in ipairs(redis.call('HKEYS', 'model:expiry')) do
  if redis.call('EXISTS', key) == 0 then redis.call('HDEL', 'model:expiry', key) end
end
local READ = {hash = {'HGETALL'}, string = {'GET'}, zset = {'ZRANGE', 0, -1, 'WITHSCORES'}}
READ.stream = {'XRANGE', '-', '+'}
local found, keys = {}, redis.call('KEYS', '*')
table.sort(keys)
for _, key in ipairs(keys) do
  if key ~= 'model:step' then
    local read = READ[redis.call('TYPE', key).ok]
    found[#found + 1] = {key, redis.call(read[1], key, unpack(read, 2)), redis.call('DUMP', key)}
  end
end
return found
"""
_LIFETIMES: Final = frozenset({"PEXPIRE", "DEL", "UNLINK", "PERSIST", "RENAME"})
"""Plain commands that change lifetimes."""


@dataclass(frozen=True)
class Contents:
    """All keys at one moment. `dumps` restores them."""

    digest: bytes
    values: Mapping[str, Any]
    dumps: tuple[tuple[bytes, bytes], ...]

    @property
    def now_ms(self) -> int:
        """The clock."""
        return int(self.values["model:clock"])

    def hash(self, key: str) -> dict[str, str]:
        """The fields of a hash; empty if there is none."""
        flat: Sequence[bytes] = self.values.get(key, ())
        return dict(zip(map(_text, flat[::2]), map(_text, flat[1::2]), strict=True))

    def scores(self, key: str) -> dict[str, float]:
        """The members of a sorted set; empty if there is none."""
        flat: Sequence[bytes] = self.values.get(key, ())
        return {_text(name): float(score) for name, score in zip(flat[::2], flat[1::2], strict=True)}


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


class ModelRedis:
    """Runs commands on given contents. `client` is for this model alone: all its keys are deleted."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._shas: dict[str, str] = {}
        self._now: Contents | None = None
        self._known: dict[bytes, Contents] = {}
        self._done: dict[tuple[bytes, Command, int], tuple[Any, Contents]] = {}
        client.flushdb()
        client.set("model:clock", BEGIN_MS)

    def read(self) -> Contents:
        """The contents now."""
        self._now = _contents(self._client.evalsha(self._sha(_READ), 0))
        return self._now

    def run(self, before: Contents, command: Command, step: int) -> tuple[Any, Contents]:
        """Runs a command, `step` microseconds after the clock. Returns its reply, or its error, and what is left.

        The same command on the same contents is run once: workers that differ elsewhere meet in many interleavings.
        """
        key = (before.digest, command, step)
        if key not in self._done:
            self._done[key] = self._changed(before, self._parts(command), step)
        return self._done[key]

    def move(self, before: Contents, milliseconds: int) -> Contents:
        """Moves the clock. Keys whose lifetime ends are deleted."""
        key = (before.digest, Command((milliseconds,)), 0)
        if key not in self._done:
            self._done[key] = self._changed(before, ("EVALSHA", self._sha(_MOVE), 0, milliseconds), 0)
        return self._done[key][1]

    def _parts(self, command: Command) -> tuple[Any, ...]:
        if command.lua:
            return ("EVALSHA", self._sha(_CLOCK + command.lua), *command.parts)
        if command.parts[0] in _LIFETIMES:
            return ("EVALSHA", self._sha(_PLAIN), 0, *command.parts)
        return command.parts

    def _changed(self, before: Contents, parts: tuple[Any, ...], step: int) -> tuple[Any, Contents]:
        read = self._sha(_READ)
        with self._client.pipeline(transaction=False) as pipe:
            restored = 0
            if self._now is not before:
                pipe.flushdb()
                for key, dump in before.dumps:
                    pipe.restore(key, 0, dump)
                restored = 1 + len(before.dumps)
            pipe.set("model:step", step)
            pipe.execute_command(*parts)  # type: ignore[no-untyped-call]
            pipe.evalsha(read, 0)
            replies = pipe.execute(raise_on_error=False)
        for fault in (*replies[: restored + 1], replies[-1]):
            if isinstance(fault, Exception):
                raise fault
        found = _contents(replies[-1])
        self._now = self._known.setdefault(found.digest, found)
        return replies[restored + 1], self._now

    def _sha(self, lua: str) -> str:
        if lua not in self._shas:
            self._shas[lua] = str(self._client.script_load(lua))
        return self._shas[lua]


def _contents(found: Sequence[Sequence[Any]]) -> Contents:
    values = {_text(key): _ordered(value) for key, value, _ in found}
    digest = hashlib.blake2b(repr(values).encode(), digest_size=16).digest()
    return Contents(digest, values, tuple((key, dump) for key, _, dump in found))


def _ordered(value: Any) -> Any:
    """Sorts the fields of a hash, which Redis keeps in the order of their writes."""
    if not isinstance(value, list) or not value or isinstance(value[0], list):
        return value
    pairs = sorted(zip(value[::2], value[1::2], strict=True))
    return [part for pair in pairs for part in pair]
