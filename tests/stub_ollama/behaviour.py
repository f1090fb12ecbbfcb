"""The configurable behavior of the stub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MODES = {
    "ok": "answer: `delay` seconds before the first token, `pace` between tokens",
    "hang": "read the request and never answer",
    "hang_between": "one token, then nothing more",
    "close": "close the connection without a byte",
    "cut": "one token, then break the connection in the middle of the body",
    "cut_after_done": "a whole answer, then break the connection before the end of the body",
    "error_line": "one token, then a line with `error`",
    "no_done": "tokens, then an end without the line that has `done`",
    "bad_json": "one token, then a line that is not JSON",
    "status": "answer with `status` and `message`, and with `retry_after` as Retry-After if set",
    "bad_text": "/api/embed: as `status` if a text contains the word `bad_text`, else an answer",
    "close_after": "answer, then close the connection without announcing it",
    "refuse": "stop listening and break every open connection, until another mode is set",
}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Applies to /api/chat, /api/generate and /api/embed, or only to `path` if it is set.

    With `times`, it applies to that many requests; then "ok" follows.
    """

    mode: str = "ok"
    delay: float = 0.0
    pace: float = 0.0
    read_pace: float = 0.0
    """Seconds that reading takes per word of a prompt, one prompt at a time. Like Ollama, the stub reads on after its
    caller has left, and starts no other prompt before.
    """
    slots: int = 4
    """Prompts whose state the stub keeps."""
    embed_pace: float = 0.0
    """Seconds that /api/embed takes per text."""
    status: int = 500
    message: str = "the stub was told to fail"
    bad_text: str = "unembeddable"
    retry_after: str | None = None
    times: int | None = None
    path: str | None = None
    answer: str | None = None
    """Replaces the echo."""
    numbered: bool = False
    """Ends each echo with its number, so that no two answers are equal."""
    done_reason: str = "stop"
    load_duration: float = 0.0
    """Seconds that the final line reports as `load_duration`."""
    resident: str = "yes"
    """State of every model in /api/ps: "yes", "no", or "loading" as Ollama shows it."""
    dimension: int = 16
    scale: float = 1.0
    """Length of the vectors."""
    vocabulary: str = "all"
    """Characters that /api/embed can read: "all", or "latin". With "latin", each run of other characters is an unknown
    token.
    """
    models: tuple[str, ...] | list[str] | None = None
    """Full names of the available models. Replaces the defaults; other models are not found."""
    digest: str = "sha256:5eed"
    thinks: bool = False
    """Whether the models can think. One that can does so unless told otherwise."""
    lacks: tuple[str, ...] | list[str] = ()
    """Paths that an older Ollama does not have."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"unknown mode: {self.mode!r}. Modes: {', '.join(MODES)}")

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Behaviour:
        """Parses the fields. Unknown names raise `TypeError`."""
        return cls(**fields)
