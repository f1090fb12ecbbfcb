"""Where an answer in Markdown is code: between backticks, read character by character."""

from __future__ import annotations


class CodeMarks:
    """Spans end with as many backticks as began them, blocks with three or more; a span also at the paragraph's end.

    So one backtick alone makes code of no more than its paragraph.
    """

    def __init__(self) -> None:
        self.inside = False
        """Whether what was read last is code, the marks included."""
        self._opened = 0
        self._marks = 0
        self._last = ""

    def read(self, character: str) -> None:
        """The next character."""
        if character == "`":
            self._marks += 1
            self.inside = True
        else:
            if self._marks:
                self._turn()
            if self._opened in (1, 2) and character == self._last == "\n":
                self._opened = 0
            self.inside = self._opened > 0
        self._last = character

    def _turn(self) -> None:
        """What a run of marks means, now that it is over."""
        if not self._opened:
            self._opened = self._marks
        elif self._marks == self._opened or self._marks > self._opened > 2:
            self._opened = 0
        self._marks = 0
