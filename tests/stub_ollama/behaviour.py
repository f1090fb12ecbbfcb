"""What the stub can be told to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MODES = {
    "ok": "answer: `delay` seconds before the first token, `pace` between tokens",
    "hang": "read the request and never answer",
    "hang_between": "one token, then nothing more",
    "close": "close the connection without a byte",
    "cut": "one token, then break the connection in the middle of the body",
    "error_line": "one token, then a line with `error`",
    "no_done": "tokens, then an end without the line that has `done`",
    "bad_json": "one token, then a line that is not JSON",
    "status": "answer with `status` and `message`, `retry_after` as Retry-After if given",
    "bad_text": "/api/embed: as `status` where one of the texts holds the word `bad_text`, else an answer",
    "close_after": "answer, then close the connection without having said so",
    "refuse": "no listener, and every open connection broken, until another mode is set",
}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Applies to /api/chat, /api/generate and /api/embed; with `path`, to that path alone, whichever it is.

    With `times`, it ends after so many requests and "ok" follows.
    """

    mode: str = "ok"
    delay: float = 0.0
    pace: float = 0.0
    embed_pace: float = 0.0
    """Seconds that /api/embed takes for each text."""
    status: int = 500
    message: str = "the stub was told to fail"
    bad_text: str = "unembeddable"
    retry_after: str | None = None
    times: int | None = None
    path: str | None = None
    answer: str | None = None
    """The answer in place of the echo."""
    done_reason: str = "stop"
    load_duration: float = 0.0
    """Seconds that the final line gives as `load_duration`."""
    resident: str = "yes"
    """What /api/ps says of every model: "yes", "no", or "loading" as Ollama shows it."""
    dimension: int = 16
    scale: float = 1.0
    """Length of the vectors."""
    vocabulary: str = "all"
    """What /api/embed can read: "all", or "latin", where each run of other letters and symbols is an unknown token."""
    models: tuple[str, ...] | list[str] | None = None
    """Full names of the models it has, in place of the usual ones; any other is not found."""
    digest: str = "sha256:5eed"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"no such mode: {self.mode!r}, there are {', '.join(MODES)}")

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Behaviour:
        """Unknown names raise TypeError."""
        return cls(**fields)
