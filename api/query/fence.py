"""What stands in a document stays material: nothing in it opens or ends the tags around it, or a turn of the model's.

This keeps the structure of the prompt. It does not keep a model from doing what a passage says.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

from api.unicode_text import INVISIBLE

LONGEST_TITLE: Final = 200
"""Characters of a title that a prompt has."""
LONGEST_MARK: Final = 64
"""Characters between the bars of a control token."""

_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of what is shown
    "\ud800-\udfff"  # halves of characters, which no JSON can hold
    "\U000e0000-\U000e007f]"  # tags: a text within the text that no reader sees
)
_ANGLES: Final = str.maketrans(
    {
        **dict.fromkeys("\uff1c\ufe64\u2039\u2329\u3008\u27e8\u276c\u276e\u02c2\u1438", "<"),
        **dict.fromkeys("\uff1e\ufe65\u203a\u232a\u3009\u27e9\u276d\u276f\u02c3\u1433", ">"),
        **dict.fromkeys("\uff5c\u2223\u01c0\u2758\u2502\uffe8", "|"),
    }
)
"""What looks like an angle or a bar: full-width, small, single quotes, brackets of mathematics and of Chinese."""
_OPENING: Final = re.compile(rf"[<\[\uff3b{''.join(chr(one) for one, plain in _ANGLES.items() if plain == '<')}]")
_UNSEEN: Final = re.compile(rf"(?!\s)[{INVISIBLE}]")
_TAG_NAME: Final = re.compile(r"</?\s*([A-Za-z][\w-]*)")

_MARKS: Final = (
    *("s", "bos", "eos", "pad", "unk", "sop", "eop", "think", "thinking", "thought"),
    *("start_of_turn", "end_of_turn", "start_of_image", "end_of_image"),
    *("tool", "tools", "tool_call", "tool_calls", "tool_response", "tool_responses"),
    *("tool_result", "tool_results", "tool_code", "tool_outputs"),
    *("function", "functions", "function_call", "function_calls", "function_result", "function_results"),
)
"""Names of tags that models write or read as their own. The tokens with bars are told by their form."""
_BARRED: Final = rf"\|[^\s<>|]{{1,{LONGEST_MARK}}}\|?>|[^\s<>|]{{1,{LONGEST_MARK}}}\|>"
"""`<|im_start|>`, `<｜User｜>`, `<|turn>`, `<turn|>`."""
_BRACKETED: Final = (
    r"/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|ARGS|CALL_ID|THINK|MODEL_SETTINGS"
    r"|PREFIX|SUFFIX|MIDDLE|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|gMASK)\]"
)


class Fence:
    """Knows the tags of one prompt template: every name that follows a `<` in it."""

    def __init__(self, template: str) -> None:
        names = sorted({*_MARKS, *(name.casefold() for name in _TAG_NAME.findall(template))})
        spelled = "|".join(map(re.escape, names))
        self._mark = re.compile(
            rf"<(?=[\s/\\]*(?:(?i:{spelled})(?![\w-])|(?i:<[\s/\\]*SYS>))|{_BARRED})|\[(?={_BRACKETED})"
        )

    def text(self, value: str) -> str:
        """`value` with its lines, to stand between tags."""
        plain = _CONTROL.sub("", value.replace("\r\n", "\n").replace("\r", "\n"))
        if _OPENING.search(plain) is None:
            return plain
        seen, places = _as_seen(plain)
        parts: list[str] = []
        end = 0
        for found in self._mark.finditer(seen):
            place = found.start() if places is None else places[found.start()]
            parts += (plain[end:place], "[ " if found[0] == "[" else "&lt;")
            end = place + 1
        return "".join((*parts, plain[end:]))

    def title(self, value: str) -> str:
        """`value` in one line, to stand in quotes within a tag; cut after 200 characters."""
        line = " ".join(_CONTROL.sub(" ", value).split())
        short = line if len(line) <= LONGEST_TITLE else f"{line[: LONGEST_TITLE - 1].rstrip()}…"
        return self.text(short).replace('"', "'").replace("<", "&lt;").replace(">", "&gt;")


def _as_seen(text: str) -> tuple[str, list[int] | None]:
    """`text` as a reader sees it: nothing invisible, each letter, angle and bar in its plain form.

    The places say where in `text` each character stands; None where that is the same place.
    """
    if text.isascii():
        return text, None
    unseen = {found.start() for found in _UNSEEN.finditer(text)}
    places = [place for place in range(len(text)) if place not in unseen]
    return "".join(_plain(text[place]) for place in places), places


@lru_cache(4096)
def _plain(character: str) -> str:
    """Full-width and mathematical letters as ASCII; what looks like an angle as `<` or `>`."""
    compatible = unicodedata.normalize("NFKC", character.translate(_ANGLES))
    return compatible if len(compatible) == 1 and compatible.isascii() else character
