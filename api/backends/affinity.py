"""Prefix affinity: sends a call to the backend that has already read the beginning of its prompt.

llama.cpp keeps the state of the last prompts that it read, and reads of the next one only what differs. The fleet
remembers in Redis which prompts each backend has read last: a chain of digests, one for each block of a prompt, where
each digest covers everything before it. Two prompts have the same beginning as far as their digests are equal. The
digests are keyed and the same for all tenants; Redis never contains the text.

The load wins: a backend may be busier than the others by a bounded number of calls, and one without a free permit comes
after all that have one. A prompt that continues an earlier one counts in full. One that only shares its beginning, such
as a popular system prompt, would push another conversation out of a crowded backend, so there it counts for less.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import orjson

from api.backends.choice import Preference
from api.cancellation import cancel_and_wait, log_failure
from api.errors import StoreUnavailable
from api.ports.coordination import Known, PrefixStore
from api.ports.telemetry import PrefixChoice, Telemetry
from api.values import ForwardedRequest, Generation, GenerationRequest, model_key

DIGEST: Final = 8
"""Bytes of a block's digest."""
SMALL_BLOCK: Final = 256
"""Bytes of each of the first `SMALL_BLOCKS` blocks: about 64 tokens."""
LARGE_BLOCK: Final = 2048
SMALL_BLOCKS: Final = 128
MAX_BLOCKS: Final = 256
"""Blocks of a prompt that count: its first 288 KiB."""
LEAST: Final = 512
"""Bytes of a prompt for which it is worth asking Redis. A shorter one is read in no time."""
LARGE_BODY: Final = 1024 * 1024
"""Bytes of a body from which it is not parsed for this, but compared as it came."""
LOADED: Final = 0.5
"""Seconds of `load_duration` from which Ollama has loaded the model for this call. A loaded one takes about 0.05."""
MAX_RECORDING: Final = 100
"""Prompts that a worker may be recording at once. More are not recorded."""


class PromptPrefix:
    """The chain of digests of a prompt's blocks. A part that is added, such as a turn, begins with a new block."""

    def __init__(self, key: bytes, model: str) -> None:
        self._hash = blake2b(f"{model}\0".encode(errors="replace"), key=key, digest_size=DIGEST)
        self._digests: list[str] = []
        self._ends: list[int] = []
        self.prompt_blocks = 0
        """Number of blocks of the prompt; the blocks after them are the answer's."""

    @property
    def chain(self) -> str:
        """The digests in hex, one after the other."""
        return "".join(self._digests)

    @property
    def size(self) -> int:
        """Bytes in the blocks."""
        return self._ends[-1] if self._ends else 0

    @property
    def is_full(self) -> bool:
        """True if there can be no more blocks."""
        return len(self._ends) >= MAX_BLOCKS

    def add(self, part: bytes) -> None:
        """Adds a part of the prompt, as far as there is room."""
        start = 0
        while start < len(part) and not self.is_full:
            length = SMALL_BLOCK if len(self._ends) < SMALL_BLOCKS else LARGE_BLOCK
            block = part[start : start + length]
            self._hash.update(block)
            self._digests.append(self._hash.copy().hexdigest())
            self._ends.append(self.size + len(block))
            start += length

    def end_prompt(self) -> None:
        """Marks the end of the prompt. The answer may follow."""
        self.prompt_blocks = len(self._ends)

    def matched(self, blocks: int) -> int:
        """Returns the bytes in so many blocks of the prompt."""
        return self._ends[min(blocks, self.prompt_blocks) - 1] if blocks else 0


def parts_of(request: GenerationRequest) -> Iterator[bytes]:
    """Yields the parts of a prompt in the order in which a model reads them; linear in the size of the request."""
    if request.forwarded is None:
        for message in request.messages:
            yield _turn(message.role, message.content)
    elif not request.forwarded.only_loads:
        yield from _forwarded_parts(request.forwarded)


def _turn(role: str, content: str) -> bytes:
    return f"{role}\0{content}\0".encode(errors="replace")


def _forwarded_parts(forwarded: ForwardedRequest) -> Iterator[bytes]:
    """Yields tools and instructions first: templates put them before the conversation."""
    if len(forwarded.body) > LARGE_BODY:
        yield forwarded.body
        return
    fields = forwarded.fields
    turns = next((fields[name] for name in ("messages", "input", "prompt") if fields.get(name)), "")
    before = [fields[name] for name in ("tools", "system", "instructions") if fields.get(name)]
    try:
        for part in (*before, *(turns if isinstance(turns, list) else [turns])):
            yield part.encode(errors="replace") if isinstance(part, str) else orjson.dumps(part)
    except orjson.JSONEncodeError:  # nested more deeply than it can write: Ollama may refuse it, or read it
        yield forwarded.body


def prefix_of(key: bytes, model: str, parts: Iterable[bytes]) -> PromptPrefix:
    """Returns the chain of a prompt. Reads no parts for which there is no room."""
    prefix = PromptPrefix(key, model_key(model))
    for part in parts:
        prefix.add(part)
        if prefix.is_full:
            break
    prefix.end_prompt()
    return prefix


def worths(prefix: PromptPrefix, known: Mapping[str, Known]) -> dict[str, float]:
    """Returns what each backend's knowledge of a prompt is worth: 0 for nothing, 1 for the whole prompt. Pure."""
    least = min((one.crowded for one in known.values()), default=0.0)
    found: dict[str, float] = {}
    for name, one in known.items():
        share = prefix.matched(one.blocks) / prefix.size if prefix.size else 0.0
        found[name] = share if one.continues else max(0.0, share - (one.crowded - least))
    return found


def reason_for(backend: str, worth: Mapping[str, float]) -> PrefixChoice:
    """Returns why a backend took a call: for the prefix it knows, or for its load, though another knows more. Pure."""
    best = max(worth.values(), default=0.0)
    if best <= 0.0:
        return "unknown"
    return "prefix" if worth.get(backend, 0.0) >= best else "load"


@dataclass(slots=True)
class PlacedPrompt:
    """A prompt, and what is known about it. `preferences` are by backend."""

    model: str
    prefix: PromptPrefix
    known: Mapping[str, Known]
    worth: Mapping[str, float]
    preferences: Mapping[str, Preference]


class PrefixAffinity:
    """One worker's choice of backends by what they have read. Without Redis, only the load counts.

    `calls`: how many calls busier a backend may be that has read the whole prompt. `limit`: permits of a backend.
    """

    def __init__(self, store: PrefixStore, calls: float, limit: int, events: Telemetry) -> None:
        self._store = store
        self._calls = calls
        self._limit = limit
        self._events = events
        self._key = secrets.token_hex(16)
        self._has_agreed = False
        self._recording: set[asyncio.Task[None]] = set()

    async def look_up(self, request: GenerationRequest) -> PlacedPrompt | None:
        """Asks Redis which backends know the prompt. None if it is too short to matter, or while Redis is down."""
        prefix = prefix_of(bytes.fromhex(self._key), request.model, parts_of(request))
        if prefix.size < LEAST:
            return None
        try:
            if not self._has_agreed:  # once: later, recording a prompt shows whether the key is still the fleet's
                self._key, self._has_agreed = await self._store.agree(self._key), True
                prefix = prefix_of(bytes.fromhex(self._key), request.model, parts_of(request))
            known = await self._store.look_up(prefix.chain)
        except StoreUnavailable:
            self._events.prefix_chosen("unavailable", 0, prefix.size)
            return None
        worth = worths(prefix, known)
        preferences = {
            name: Preference(self._calls * worth[name], one.crowded, one.calls, self._limit)
            for name, one in known.items()
        }
        return PlacedPrompt(model_key(request.model), prefix, known, worth, preferences)

    def answered(self, prompt: PlacedPrompt, request: GenerationRequest, generation: Generation) -> None:
        """Counts the choice, and records in the background what the backend has read. No I/O here."""
        known = prompt.known.get(generation.backend, Known())
        reason = reason_for(generation.backend, prompt.worth)
        self._events.prefix_chosen(reason, prompt.prefix.matched(known.blocks), prompt.prefix.size)
        if request.forwarded is None:  # the answer is the next turn of the conversation
            prompt.prefix.add(_turn("assistant", generation.text))
        if len(self._recording) < MAX_RECORDING:
            has_loaded = generation.end.load_duration >= LOADED
            task = asyncio.create_task(self._record(prompt, generation.backend, alone=has_loaded), name="prefix")
            self._recording.add(task)
            task.add_done_callback(self._recording.discard)
            log_failure(task)

    async def _record(self, prompt: PlacedPrompt, backend: str, *, alone: bool) -> None:
        key = self._key
        try:
            agreed = await self._store.record(
                backend, prompt.model, prompt.prefix.chain, prompt.prefix.prompt_blocks, key=key, alone=alone
            )
        except StoreUnavailable:
            return
        if self._key == key:
            self._key = agreed

    async def aclose(self) -> None:
        """Cancels what is being recorded."""
        await cancel_and_wait(self._recording)
