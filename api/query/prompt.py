"""Builds the prompt from its template, and selects the passages and turns that fit into the model's context.

The template file's digest is part of the cache key, so a changed prompt never serves answers of the old one. Text in a
document can neither open nor close the tags around it, nor start a turn of the model. That protects the structure of
the prompt; a model may still follow an instruction in a passage.

Ollama silently truncates a prompt that is too long, so this module decides what goes in.
"""

from __future__ import annotations

import hashlib
import math
import re
import string
import tomllib
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from api.errors import SettingsError
from api.query import citations
from api.query.citations import rewritten
from api.unicode_text import INVISIBLE
from api.values import ChatMessage, Source

VARIABLE: Final = "PROMPT_TEMPLATE_PATH"
PACKAGED: Final = "grounded-1.toml"
PLACEHOLDERS: Final = frozenset({"number", "title", "text", "passages", "question"})


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """The texts of one template file. `passage` and `user` have placeholders as `string.Template` writes them.

    `digest` is 8 hex digits of SHA-256 over the file's text.
    """

    version: str
    digest: str
    plain_system: str
    grounded_system: str
    passage: str
    user: str
    nothing_relevant: str

    @property
    def scope(self) -> str:
        """The template's part of the cache key. An edited file has another, even under the same version."""
        return f"{self.version}-{self.digest}"


def load_template(path: str | None) -> PromptTemplate:
    """Returns the template in the file at `path`, or Ragherd's own. Blocks, so call it at the worker's start.

    Raises `SettingsError`.
    """
    file = Path(path) if path else files("api.query") / "templates" / PACKAGED
    try:
        text = file.read_text("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise SettingsError(f"{VARIABLE}: the file is not UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"{VARIABLE}: the file cannot be read: {reason}") from None
    return parse_template(text)


def parse_template(text: str) -> PromptTemplate:
    """Parses `text`, a TOML document. Raises `SettingsError` in one line that names the key and the fault."""
    try:
        shape = _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(_line(str(error))) from None
    except ValidationError as error:
        raise SettingsError(_line(_first_fault(error))) from None
    return PromptTemplate(
        version=shape.version,
        digest=hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8],
        plain_system=shape.plain.system,
        grounded_system=shape.grounded.system,
        passage=shape.grounded.passage,
        user=shape.grounded.user,
        nothing_relevant=shape.nothing_relevant,
    )


def _line(fault: str) -> str:
    return f"{VARIABLE}: {' '.join(fault.split())}"


def _first_fault(error: ValidationError) -> str:
    first: Any = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    reasons = {"extra_forbidden": "there is no such key", "missing": "is missing"}
    return f"{key}: {reasons.get(first['type'], first['msg'].removeprefix('Value error, '))}"


def _used(text: str) -> set[str]:
    return set(Template(text).get_identifiers())


def _no_placeholders(text: str) -> str:
    if found := sorted(_used(text) & PLACEHOLDERS):
        raise ValueError(f"${found[0]} is not filled in here")
    return text


def _placeholders(text: str, needed: set[str], optional: set[str]) -> str:
    if not Template(text).is_valid():
        raise ValueError("a $ that begins no placeholder; a dollar sign is written $$")
    if unknown := sorted(_used(text) - needed - optional):
        raise ValueError(f"there is no placeholder ${unknown[0]}")
    if missing := sorted(needed - _used(text)):
        raise ValueError(f"${missing[0]} is missing")
    return text


def _of_passage(text: str) -> str:
    return _placeholders(text, {"number", "text"}, {"title"})


def _of_user(text: str) -> str:
    return _placeholders(text, {"passages", "question"}, set())


Text = Annotated[str, Field(min_length=1)]
Fixed = Annotated[Text, AfterValidator(_no_placeholders)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, str_strip_whitespace=True)


class _Plain(_Table):
    system: Fixed


class _Grounded(_Table):
    system: Fixed
    passage: Annotated[Text, AfterValidator(_of_passage)]
    user: Annotated[Text, AfterValidator(_of_user)]


class _File(_Table):
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    plain: _Plain
    grounded: _Grounded
    nothing_relevant: Fixed


LONGEST_TITLE: Final = 200
"""Characters of a title in a prompt."""
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
"""Lookalikes of angle brackets and bars: full-width, small, single quotes, mathematical and Chinese brackets."""
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
        """Returns `value` with its lines, safe between tags."""
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
        """Returns `value` in one line, safe in quotes within a tag, cut after 200 characters."""
        line = " ".join(_CONTROL.sub(" ", value).split())
        short = line if len(line) <= LONGEST_TITLE else f"{line[: LONGEST_TITLE - 1].rstrip()}…"
        return self.text(short).replace('"', "'").replace("<", "&lt;").replace(">", "&gt;")


def _as_seen(text: str) -> tuple[str, list[int] | None]:
    """Returns `text` without invisible characters, and with letters, angle brackets and bars in their plain form.

    Also returns the position of each character in `text`; None if all positions are the same.
    """
    if text.isascii():
        return text, None
    unseen = {found.start() for found in _UNSEEN.finditer(text)}
    places = [place for place in range(len(text)) if place not in unseen]
    return "".join(_plain(text[place]) for place in places), places


@lru_cache(4096)
def _plain(character: str) -> str:
    """Maps full-width and mathematical letters to ASCII, and lookalikes of angle brackets to `<` and `>`."""
    compatible = unicodedata.normalize("NFKC", character.translate(_ANGLES))
    return compatible if len(compatible) == 1 and compatible.isascii() else character


def raw(question: str, history: Sequence[ChatMessage], system: str | None) -> tuple[ChatMessage, ...]:
    """As the client sent them. `system` is its own instruction, where it has one."""
    before = () if system is None else (ChatMessage("system", system),)
    return (*before, *history, ChatMessage("user", question))


class Prompts:
    """The messages of `POST /query`, worded by one template file."""

    def __init__(self, template: PromptTemplate) -> None:
        self._template = template
        self._passage = string.Template(template.passage)
        self._user = string.Template(template.user)
        self._fence = Fence(f"{template.passage}\n{template.user}")

    @property
    def nothing_relevant(self) -> str:
        """The answer if no passage is relevant to the question."""
        return self._template.nothing_relevant

    def plain(self, question: str, history: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
        """Returns an instruction, earlier turns and the question."""
        return ChatMessage("system", self._template.plain_system), *history, ChatMessage("user", question)

    def grounded(
        self, question: str, history: Sequence[ChatMessage], sources: Sequence[Source]
    ) -> tuple[ChatMessage, ...]:
        """Returns an instruction, earlier turns, the passages and the question; `[1]` is the first of `sources`.

        Citations are removed from earlier answers, since their numbers meant other passages. Reference numbers in
        passages are put in parentheses, so that no answer repeats them as citations.
        """
        passages = "\n\n".join(self._one(number, source) for number, source in enumerate(sources, start=1))
        asked = self._user.substitute(passages=passages, question=self._fence.text(question))
        said = (_without_citations(turn) for turn in history)
        return ChatMessage("system", self._template.grounded_system), *said, ChatMessage("user", asked)

    def _one(self, number: int, source: Source) -> str:
        title, text = self._fence.title(rewritten(source.title)), self._fence.text(rewritten(source.text))
        return self._passage.substitute(number=number, title=title, text=text)


@lru_cache(32)
def prompts_of(template: str) -> Prompts:
    """Returns the prompts of a template's text, which has been parsed before."""
    return Prompts(parse_template(template))


def _without_citations(turn: ChatMessage) -> ChatMessage:
    if turn.role != "assistant":
        return turn
    return ChatMessage("assistant", citations.clean(turn.content, 0))


CONTEXT: Final = 4096
"""Tokens of context that Ollama gives a model where nothing else is set."""
ANSWER: Final = 1024
"""Tokens kept free for an answer whose length is not set."""
TURN: Final = 8
"""Tokens that a model's own template puts around a turn."""
LEAST: Final = 200
"""Characters that the first passage keeps, however small the budget."""

_WHOLE: Final = re.compile(r"[0-9\u2e80-\U0010ffff]")
_LARGE: Final = re.compile(r"[\u0080-\u2e7f]")
_SMALL_A_TOKEN: Final = 3.2
_LARGE_A_TOKEN: Final = 1.5
_SENTENCE_END: Final = re.compile(r"[.!?…][\"')\]»”’]*(?=\s)|[。！？]|(?=\n)")
MAX_PER_TOKEN: Final = 8
"""More characters than any text has for each token: what is longer does not fit, and is not counted."""

Count = Callable[[str], int]
"""A function that counts the tokens of a text."""


def budget(num_ctx: int | None, num_predict: int | None) -> int:
    """Returns the most tokens of a prompt: the context length minus the answer's share, which is at most half.

    Numbers that are not positive mean no limit, as in Ollama.
    """
    context = num_ctx if num_ctx and num_ctx > 0 else CONTEXT
    answer = num_predict if num_predict and num_predict > 0 else ANSWER
    return context - min(answer, context // 2)


def estimated_tokens(text: str) -> int:
    """Estimates an upper bound on the tokens of `text`: 3.2 ASCII characters or 1.5 others per token.

    Each digit, each Chinese, Japanese or Korean character and each emoji counts as a token.
    """
    whole, large = len(_WHOLE.findall(text)), len(_LARGE.findall(text))
    return math.ceil(whole + large / _LARGE_A_TOKEN + (len(text) - whole - large) / _SMALL_A_TOKEN)


def fit(
    prompts: Prompts,
    question: str,
    history: Sequence[ChatMessage],
    sources: Sequence[Source],
    budget_tokens: int,
    count: Count = estimated_tokens,
) -> tuple[tuple[Source, ...], tuple[ChatMessage, ...]]:
    """Returns the sources and turns with which `prompts.grounded` stays within the budget.

    Sources are kept whole and in order until one does not fit. If the first is too long, its beginning is kept, at
    least 200 characters. The latest turns are kept that take, with the question, half of the budget.
    """
    kept_history = _latest(question, history, budget_tokens // 2, count)

    def size(kept: Sequence[Source]) -> int:
        return _tokens(prompts.grounded(question, kept_history, kept), count)

    numbers = range(1, len(sources) + 1)
    fitting = bisect_right(numbers, budget_tokens, key=lambda number: size(sources[:number]))
    if fitting or not sources:
        return tuple(sources[:fitting]), kept_history
    first = sources[0]
    lengths = range(1, min(len(first.text), budget_tokens * MAX_PER_TOKEN) + 1)
    length = bisect_right(lengths, budget_tokens, key=lambda end: size([replace(first, text=first.text[:end])]))
    return (replace(first, text=_cut(first.text, max(length, LEAST))),), kept_history


def _tokens(turns: Sequence[ChatMessage], count: Count) -> int:
    return sum(count(turn.content) + TURN for turn in turns)


def _latest(question: str, history: Sequence[ChatMessage], budget_tokens: int, count: Count) -> tuple[ChatMessage, ...]:
    """Returns the end of the history that fits next to the question; it never begins with an answer."""
    left = budget_tokens - count(question) - TURN
    kept = len(history)
    while kept and (left := left - count(history[kept - 1].content) - TURN) >= 0:
        kept -= 1
    while 0 < kept < len(history) and history[kept].role == "assistant":
        kept += 1
    return tuple(history[kept:])


def _cut(text: str, length: int) -> str:
    """Its first `length` characters or fewer: to a sentence's end in the latter half of them, else to a word's."""
    if len(text) <= length:
        return text
    ends = [match.end() for match in _SENTENCE_END.finditer(text, 0, length + 1) if match.end() <= length]
    if ends and ends[-1] > length // 2:
        return text[: ends[-1]].rstrip()
    words = text[: length + 1].rstrip()
    space = max(words.rfind(" "), words.rfind("\n"))
    return text[: space if len(words) > length and space > length // 2 else length].rstrip()
