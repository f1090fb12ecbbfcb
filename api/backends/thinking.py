"""Thoughts that a model writes in tags before its answer."""

from __future__ import annotations

import re
from typing import Final

_OPENINGS: Final = ("<think>", "<thinking>", "[think]")
_CLOSING: Final = re.compile(r"</think>|</thinking>|\[/think\]", re.IGNORECASE)
_LONGEST_CLOSING: Final = len("</thinking>")


class Thinking:
    """Separates <think> text from one answer, piece by piece. Tags count only at its beginning.

    Ollama does so for models that it knows; other models write the tags. The result does not depend on how it is cut.
    """

    def __init__(self) -> None:
        self._thoughts: list[str] = []
        self._held: list[str] = []  # white space before a tag
        self._tag = ""  # the beginning of a tag, or of its end
        self._inside = False
        self.is_over = False
        """True if the rest is all answer, so nothing more needs to be fed."""

    @property
    def thoughts(self) -> str:
        """The thoughts so far."""
        return "".join(self._thoughts).strip()

    def thought(self, text: str) -> None:
        """Adds a thought that Ollama sent separately."""
        self._thoughts.append(text)

    def feed(self, text: str) -> str:
        """Returns the new part of the answer that is certain by now."""
        while text and not self.is_over:
            text = self._think(text) if self._inside else self._begin(text)
        return text

    def end(self) -> str:
        """The rest."""
        if self._inside:
            self._thoughts.append(self._tag)
            return ""
        return "" if self.is_over else self._release("")

    def _begin(self, text: str) -> str:
        """Reads until no opening tag is possible. Returns the text that is still to be read."""
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
                self.is_over = True
                return self._release(text[place:])
        return ""

    def _release(self, rest: str) -> str:
        """Ends the search for a tag. White space after thoughts is dropped with them."""
        before = "" if self._thoughts else "".join(self._held)
        return f"{before}{self._tag}{rest}"

    def _think(self, text: str) -> str:
        """Reads until the closing tag, of which a part may be yet to come."""
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
