"""What stands in a document stays material: nothing in it opens or ends the tags around it, or a turn of the model's.

This keeps the structure of the prompt. It does not keep a model from doing what a passage says.
"""

from __future__ import annotations

import re
from typing import Final

LONGEST_TITLE: Final = 200
"""Characters of a title that a prompt has."""

_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of what is shown
    "\ud800-\udfff"  # halves of characters, which no JSON can hold
    "\U000e0000-\U000e007f]"  # tags: a text within the text that no reader sees
)
_HIDDEN: Final = "[\u00ad\u034f\u061c\u180e\u200b-\u200f\u2060-\u2064\ufe00-\ufe0f\ufeff]*"
_TAG_NAME: Final = re.compile(r"</?\s*([A-Za-z][\w-]*)")
_TURN: Final = re.compile(
    r"<(?=\|\w{1,40}\|>|｜[^｜<>]{1,40}｜>|/?s>|(?:start|end)_of_turn>|bos>|eos>|</?SYS>>)", re.IGNORECASE
)
"""Marks of turns as language models write them. Ollama takes them for its own also in the middle of a text."""
_BRACKETED: Final = re.compile(
    r"\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|PREFIX|SUFFIX|MIDDLE|IMG)\])"
)


class Fence:
    """Knows the tags of one prompt template: every name that follows a `<` in it."""

    def __init__(self, template: str) -> None:
        names = sorted({name.casefold() for name in _TAG_NAME.findall(template)})
        spelled = "|".join(_HIDDEN.join(map(re.escape, name)) for name in names)
        opening = rf"[<＜﹤](?=(?:[\s/]|{_HIDDEN[:-1]})*(?:{spelled})(?![\w-]))"
        self._tag = re.compile(opening if names else r"(?!)", re.IGNORECASE)

    def text(self, value: str) -> str:
        """`value` with its lines, to stand between tags."""
        plain = _CONTROL.sub("", value.replace("\r\n", "\n").replace("\r", "\n"))
        return _BRACKETED.sub("[ ", _TURN.sub("&lt;", self._tag.sub("&lt;", plain)))

    def title(self, value: str) -> str:
        """`value` in one line, to stand in quotes within a tag; cut after 200 characters."""
        line = " ".join(_CONTROL.sub(" ", value).split())
        short = line if len(line) <= LONGEST_TITLE else f"{line[: LONGEST_TITLE - 1].rstrip()}…"
        return self.text(short).replace('"', "'").replace("<", "&lt;").replace(">", "&gt;")
