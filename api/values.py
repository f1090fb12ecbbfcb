"""The values that all packages share. Imports nothing local."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

import orjson

T = TypeVar("T")
Vector = bytes
"""An embedding as Redis stores it: `dimension` little-endian float32 values, unit length."""


def known(kind: type[T], said: Mapping[str, Any]) -> T:
    """A dataclass's value from what another worker wrote. Ignores fields that only a later release has.

    Raises `TypeError` if a field is missing.
    """
    names = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: said[name] for name in names if name in said})


class CacheStatus(StrEnum):
    """The cache's part in an answer."""

    HIT = "hit"
    MISS = "miss"
    STALE = "stale"
    BYPASS = "bypass"
    COALESCED = "coalesced"


CacheKind = Literal["exact", "semantic"]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation as Ollama's `/api/chat` takes it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one generation, as Ollama counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Priority(StrEnum):
    """The priority of a call to Ollama: users first, then batch work that a client waits for, then background work."""

    USER = "user"
    BATCH = "batch"
    BACKGROUND = "background"


class EarlyPermit(Protocol):
    """A permit that was asked for before it was certain that the call is made."""

    def withdraw(self) -> None:
        """Returns it: the call is not made."""


@dataclass(slots=True)
class QueuePlace:
    """A call's place in the queue, shared by the code that waits for a permit and the callers who wait for the answer.

    `position` is 1 for the next call to start; None while the call does not wait, or has waited for under a second.
    `seconds`: the estimated time until it starts; None if unknown. `on_move` is called when the position changes,
    `on_promotion` when the call gets a user's priority. `early`: a permit that the call may take over.
    """

    priority: Priority = Priority.USER
    position: int | None = None
    seconds: float | None = None
    on_move: Callable[[], None] | None = None
    on_promotion: Callable[[], None] | None = None
    early: EarlyPermit | None = None

    def move(self, position: int, seconds: float | None) -> None:
        """Records a new position. 0: the call waits no longer."""
        if (position or None) != self.position:
            self.position, self.seconds = position or None, seconds
            if self.on_move is not None:
                self.on_move()

    def promote(self) -> None:
        """Gives the call a user's priority, because a user waits for its answer too."""
        if self.priority is not Priority.USER:
            self.priority = Priority.USER
            if self.on_promotion is not None:
                self.on_promotion()

    def withdraw(self) -> None:
        """Returns a permit that was asked for early, unless the call has taken it over."""
        if self.early is not None:
            self.early.withdraw()
            self.early = None


@dataclass(frozen=True, slots=True)
class Queued:
    """A position in the queue for permits, and the estimated seconds until the call starts; None if unknown.

    Between workers, position 0 says that the call waits no longer.
    """

    position: int
    seconds: float | None


Retry = Literal["here", "elsewhere", "spent"]
"""The place of a retry: the adapter on the same backend, its caller on another backend, or nowhere."""


@dataclass(frozen=True, slots=True)
class ForwardedRequest:
    """A request that goes to Ollama as the client sent it: its path and its body, a JSON object or a form.

    `digest`: 64 hex digits over all that the answer depends on. `streams`: the answer arrives piece by piece.
    `only_loads`: it asks nothing, and Ollama only loads or unloads the model. `is_silent`: Ollama may work for long
    without a word, as it sends a call of a tool when the call is complete. `content_type`: that of a form, which is
    never cached; empty for JSON. `prompt_tokens`: about how many tokens the prompt has.
    """

    path: str
    body: bytes = field(repr=False)
    digest: str
    streams: bool
    only_loads: bool = False
    is_silent: bool = False
    content_type: str = ""
    prompt_tokens: int = 0

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the body. They are read each time: a waiting request takes no more memory than its bytes.

        A form has none: it holds no prompt.
        """
        found: dict[str, Any] = {} if self.content_type else orjson.loads(self.body)
        return found


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request to the language model: its name, the turns, and Ollama's options.

    `tenant` takes turns with others if too many call at once; `place` has the priority and the place in the queue.
    `timeout` is in seconds for the whole answer and can only shorten the adapter's own. `buffered`: nobody reads along,
    so a broken answer may start again. `format`: the JSON schema that the answer must have. `forwarded` replaces the
    turns, the options and the format.
    """

    model: str
    messages: tuple[ChatMessage, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    tenant: str = "default"
    place: QueuePlace = field(default_factory=QueuePlace, compare=False, repr=False)
    timeout: float | None = None
    retry: Retry = "here"
    buffered: bool = False
    format: Mapping[str, Any] | None = None
    forwarded: ForwardedRequest | None = None

    @property
    def prompt_tokens(self) -> int:
        """About how many tokens the prompt has, rather too many: three bytes each."""
        if self.forwarded is not None:
            return self.forwarded.prompt_tokens
        return sum(utf8_size(message.content) for message in self.messages) // 3


def utf8_size(text: str) -> int:
    """Bytes, also of text with lone surrogates."""
    return len(text.encode(errors="replace"))


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of an answer as it arrives; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of the model's thinking, which is not part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class GenerationEnd:
    """The last line of a complete generation (`done: true`). Durations in seconds; Ollama omits zeros."""

    model: str
    done_reason: str
    usage: Usage
    total_duration: float = 0.0
    load_duration: float = 0.0
    prompt_eval_duration: float = 0.0
    eval_duration: float = 0.0


@dataclass(frozen=True, slots=True)
class PassedOn:
    """Ollama's response to an administrator's request: status, media type, and the parts of its body."""

    status: int
    media_type: str
    parts: AsyncIterator[bytes]


def full_model_name(name: str) -> str:
    """The name as Ollama lists it: `llama3.2` is `llama3.2:latest`. Ollama compares names case-insensitively."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


@lru_cache(1024)
def model_key(name: str) -> str:
    """A key that is the same for all names of a model."""
    return full_model_name(name).casefold()


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """The last probe of one Ollama: whether it answers, its models, and which of them are in memory.

    `digests`: the digests of its models' weights; the last known ones while it does not answer.
    """

    reachable: bool
    models: frozenset[str] = frozenset()
    resident: frozenset[str] = frozenset()
    digests: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Generation:
    """A complete answer of the language model. `first_token`: seconds from sending to the first token.

    `thinking`: the thinking before it, shown if the API has a field for it and never stored. `backend`: the name of the
    Ollama that generated it; empty if none did.
    """

    text: str
    end: GenerationEnd
    first_token: float
    thinking: str = ""
    backend: str = ""


@lru_cache(1024)
def owner_of(tenant: str) -> str:
    """A tenant as 16 hex digits, for keys, tags and logs: its name may contain any character."""
    return hashlib.sha256(tenant.encode("utf-8", "surrogatepass")).hexdigest()[:16]


ERASED: Final = "erased:"


def erased_tag(tenant: str) -> str:
    """The tag of the answers of an erased tenant. Unlike other tags it does not name the tenant."""
    return f"{ERASED}{owner_of(tenant)}"


NO_TENANT: Final = "-"
"""The tenant of texts that belong to none: operators' questions, and the embedded model server's."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """A text's vector, and the words or runs that the embedder could not read, in order.

    Texts that differ only in unread words have the same vector.
    """

    vector: Vector
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A client's request for embeddings from a model of its choice. `extra`: more fields for Ollama.

    `timeout` is in seconds and can only shorten the caller's own.
    """

    model: str
    texts: tuple[str, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    tenant: str = "default"
    timeout: float | None = None
    retry: Retry = "here"
    priority: Priority = Priority.USER


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors from Ollama, one per text: float32, of any length. Durations in seconds."""

    vectors: list[Vector]
    prompt_tokens: int = 0
    total_duration: float = 0.0
    load_duration: float = 0.0


@dataclass(frozen=True, slots=True)
class Source:
    """A passage that grounds an answer.

    `score`: its cosine to the question, 0 if it has none; re-ranked, the re-ranker's score from 0 to 1.

    `source` and `version` come from the uploader. `revision` is Ragherd's own count, unique per text of a document.

    `page` counts from 1. `heading`: the headings above, joined by ` > `. `span`: its characters in the document's text.
    `quote`: the sentence of `text` that a citation rests on, or the closest to the question; it does not make two
    sources differ. Each is None if unknown.
    """

    document_id: str
    title: str
    chunk: int
    text: str
    score: float
    source: str | None = None
    version: str | None = None
    revision: int = 0
    page: int | None = None
    heading: str | None = None
    span: tuple[int, int] | None = None
    quote: str | None = field(default=None, compare=False)


def source_of(said: Mapping[str, Any]) -> Source:
    """A source from the JSON of another worker. Raises `TypeError` if it is not one, or a field is missing."""
    if not isinstance(said, Mapping):
        raise TypeError("A source is not an object.")
    span = said.get("span")
    if span is None:
        return known(Source, said)
    if not isinstance(span, list) or len(span) != 2:
        raise TypeError("A span is not a start and an end.")
    return known(Source, {**said, "span": (span[0], span[1])})


@dataclass(frozen=True, slots=True)
class GroundedSources:
    """The passages of the following answer, in the order in which it cites them: `[1]` is the first.

    Comes once before the first token of each attempt.
    """

    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class CompletedAnswer:
    """A complete answer, generated here or by another worker. `entry`: where it is stored; None if it is not.

    `generation` is set in the process that generated it.
    """

    text: str
    model: str
    usage: Usage
    done_reason: str = "stop"
    sources: tuple[Source, ...] = ()
    entry: str | None = None
    generation: Generation | None = None


@dataclass(frozen=True, slots=True)
class StoredElsewhere:
    """The cache must be asked again: another worker has stored the answer since, or documents may have changed."""


class FlightKey(NamedTuple):
    """The key that equal questions share: their answer's key in the cache."""

    scope: str
    digest: str


@dataclass(frozen=True, slots=True)
class EmbedderIdentity:
    """The properties that make two embeddings comparable: the model's name, weights and dimension.

    `fingerprint` names Redis indexes and scopes, so that vectors of different models never meet.
    """

    name: str
    dimension: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """A cached answer. Times are milliseconds since the epoch by Redis's clock.

    `unread`: words of the question that the embedder could not read; None for answers without a vector or of an older
    release. `group`: entries of one group have the same answer.
    """

    entry: str
    question: str
    answer: str
    model: str
    sources: tuple[Source, ...]
    usage: Usage
    created_ms: int
    expires_ms: int
    unread: tuple[str, ...] | None = None
    group: str = ""


@dataclass(frozen=True, slots=True)
class CacheMatch:
    """A cached answer found for a question, and how. `similarity` is the cosine, 1.0 for an exact match.

    `near`: it is this worker's copy of the entry.
    """

    answer: CachedAnswer
    kind: CacheKind
    similarity: float
    now_ms: int
    near: bool = False

    age_seconds: float = field(init=False)
    """Seconds since the answer was generated, by Redis's clock."""
    ttl_seconds: int = field(init=False)
    """Whole seconds the answer stays fresh; negative once it is stale (RFC 9211 `ttl`)."""
    stale_seconds: float = field(init=False)
    """Seconds since its lifetime passed; negative while it is fresh."""
    is_fresh: bool = field(init=False)
    """True if it has not expired."""

    def __post_init__(self) -> None:
        left_ms, put = self.answer.expires_ms - self.now_ms, object.__setattr__
        put(self, "age_seconds", max(0.0, (self.now_ms - self.answer.created_ms) / 1000))
        put(self, "ttl_seconds", left_ms // 1000)
        put(self, "stale_seconds", -left_ms / 1000)
        put(self, "is_fresh", left_ms > 0)


FIRST_TEXTS: Final = 4
TARGET_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class BatchSize:
    """The number of texts in the next embedding call, from 1 to `most`. `target`: most seconds for one call.

    A call holds a permit and one of Ollama's slots until it ends, so a question waits as long as another's batch takes.
    """

    texts: int = FIRST_TEXTS
    most: int = 32
    target: float = TARGET_SECONDS

    def after(self, texts: int, seconds: float) -> BatchSize:
        """The size after a call of `texts` took `seconds`.

        It doubles while calls take less than half the target. Above the target it shrinks to what the target allows, by
        at least half.
        """
        if seconds > self.target:
            fits = int(texts * self.target / seconds)
            return self._of(min(fits, self.texts // 2))
        if texts >= self.texts and seconds < self.target / 2:
            return self._of(self.texts * 2)
        return self

    def halved(self) -> BatchSize:
        """The size after a call timed out."""
        return self._of(self.texts // 2)

    def _of(self, texts: int) -> BatchSize:
        return BatchSize(max(1, min(texts, self.most)), self.most, self.target)
