"""Generations on whichever backend can: an answer that fails before its first word goes on elsewhere, unseen.

`Thinking` takes what a model thinks out of the answer. Ollama hands thoughts over apart from the answer, where it knows
the model. Of a model that it does not know they stand at the beginning of the text, between tags. Anywhere else such a
tag is part of the answer.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Final

from api.backends.failover import Backend, Backends, Failover, FailoverPolicy, Terms, admitted
from api.errors import UpstreamError, UpstreamFault
from api.ports.coordination import Retries, TextOutput
from api.ports.models import LanguageModel
from api.ports.telemetry import Telemetry
from api.values import Generation, GenerationEnd, GenerationRequest, Source, Thought

_OPENINGS: Final = ("<think>", "<thinking>", "[think]")
_CLOSING: Final = re.compile(r"</think>|</thinking>|\[/think\]", re.IGNORECASE)
_LONGEST_CLOSING: Final = len("</thinking>")


class Thinking:
    """Takes the thoughts out of one answer, piece by piece; however it is cut, the same comes out."""

    def __init__(self) -> None:
        self._thoughts: list[str] = []
        self._held: list[str] = []  # white space before a tag
        self._tag = ""  # the beginning of a tag, or of its end
        self._inside = False
        self._answers = False

    @property
    def thoughts(self) -> str:
        """What was thought so far."""
        return "".join(self._thoughts).strip()

    def thought(self, text: str) -> None:
        """A thought that came apart from the answer."""
        self._thoughts.append(text)

    def feed(self, text: str) -> str:
        """What is certain of the answer by now, but for what was given before."""
        while text and not self._answers:
            text = self._think(text) if self._inside else self._begin(text)
        return text

    def end(self) -> str:
        """The rest."""
        if self._inside:
            self._thoughts.append(self._tag)
            return ""
        return "" if self._answers else self._release("")

    def _begin(self, text: str) -> str:
        """Until the first character that can begin no tag. What it returns is still to be read."""
        if not self._tag:
            bare = text.lstrip()
            self._held.append(text[: len(text) - len(bare)])
            text = bare
        for place, character in enumerate(text, start=1):
            self._tag += character
            if self._tag.lower() in _OPENINGS:
                self._inside, self._tag, self._held = True, "", []
                return text[place:]
            if not any(opening.startswith(self._tag.lower()) for opening in _OPENINGS):
                self._answers = True
                return self._release(text[place:])
        return ""

    def _release(self, rest: str) -> str:
        """It was no tag. White space behind thoughts goes with them."""
        before = "" if self._thoughts else "".join(self._held)
        return f"{before}{self._tag}{rest}"

    def _think(self, text: str) -> str:
        """Until the tag at the end of the thoughts; a part of it may still be to come."""
        text, self._tag = f"{self._tag}{text}", ""
        found = _CLOSING.search(text)
        if found is not None:
            self._thoughts.append(text[: found.start()])
            self._inside = False
            return text[found.end() :]
        begun = max(text.rfind(mark, max(0, len(text) - _LONGEST_CLOSING + 1)) for mark in "<[")
        end = begun if begun >= 0 else len(text)
        self._thoughts.append(text[:end])
        self._tag = text[end:]
        return ""


class Unread:
    """An `AnswerOutput` that nobody reads."""

    def __init__(self) -> None:
        self.begun = False

    async def ground(self, sources: tuple[Source, ...]) -> None:
        """Nobody wants to know."""

    async def write(self, text: str) -> None:
        """Only that there was a word is of use."""
        self.begun = True

    def restart(self) -> None:
        """Begins again."""
        self.begun = False


class Generations:
    """`total`: seconds for a whole answer: the wait in line and all attempts together."""

    def __init__(self, backends: Backends[LanguageModel], retries: Retries, total: float, events: Telemetry) -> None:
        self._failover = Failover(backends, FailoverPolicy(total), retries, events)

    async def generate(self, request: GenerationRequest, output: TextOutput) -> Generation:
        """Writes the words as they come. With `request.buffered` an answer that broke off may begin again.

        The caller's cancellation ends the generation and counts as ignored. Raises `BulkheadFull`, `BreakerOpen`, and
        `UpstreamError` in mid-answer too.
        """
        return await self._failover.call(
            request.model,
            partial(_attempt, request, output),
            timeout=request.timeout,
            retry=request.retry,
            output=output,
            restarts=request.buffered,
        )


async def _attempt(
    request: GenerationRequest, output: TextOutput, backend: Backend[LanguageModel], terms: Terms
) -> Generation:
    """Thoughts are kept apart, so that no caller, reader or cache takes them for the answer."""
    parts: list[str] = []
    thinking = Thinking()
    end: GenerationEnd | None = None
    async with admitted(backend, terms, request.tenant, background=request.background) as admission:
        asked = replace(request, retry=terms.retry, timeout=terms.remaining)
        async with backend.service.stream(asked) as events:
            async for event in events:
                admission.answers()
                if isinstance(event, GenerationEnd):
                    end = event
                elif isinstance(event, Thought):
                    thinking.thought(event.text)
                elif text := thinking.feed(event.text):
                    parts.append(text)
                    await output.write(text)
        if end is None:
            raise UpstreamError(UpstreamFault.STREAM_TRUNCATED, "Ollama's stream ended without `done`.")
        if rest := thinking.end():
            parts.append(rest)
            await output.write(rest)
        await admission.succeeded(end.load_duration)
    return Generation("".join(parts), end, admission.seconds, thinking.thoughts)
