"""What of the passages and of the history goes into a prompt, so that model and answer have room in the context.

Ollama leaves out what is too long without a word; so it is decided here what goes in.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from api.model import ChatMessage, Source
from api.query.prompt import Prompts

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
MOST_A_TOKEN: Final = 8
"""More characters than any text has for each token: what is longer does not fit, and is not counted."""

Count = Callable[[str], int]
"""How many tokens a text has."""


def budget(num_ctx: int | None, num_predict: int | None) -> int:
    """Tokens that a prompt may have: the context without what the answer may take, which is half of it at most.

    A number that is not positive is none: Ollama takes those for no limit.
    """
    context = num_ctx if num_ctx and num_ctx > 0 else CONTEXT
    answer = num_predict if num_predict and num_predict > 0 else ANSWER
    return context - min(answer, context // 2)


def estimated_tokens(text: str) -> int:
    """About as many tokens as a model makes of `text` at most: 3.2 characters a token, 1.5 of those beyond ASCII.

    A figure, a character of Chinese, Japanese or Korean and an emoji count as a token each.
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
    """The sources and the turns with which `prompts.grounded` stays within the budget.

    Sources are kept whole and in their order until one does not fit. Of the first the beginning is kept if the whole
    is too long, never less than 200 characters. Of the history the latest turns are kept that, with the question, take
    half of the budget.
    """
    kept_history = _latest(question, history, budget_tokens // 2, count)

    def size(kept: Sequence[Source]) -> int:
        return _tokens(prompts.grounded(question, kept_history, kept), count)

    numbers = range(1, len(sources) + 1)
    fitting = bisect_right(numbers, budget_tokens, key=lambda number: size(sources[:number]))
    if fitting or not sources:
        return tuple(sources[:fitting]), kept_history
    first = sources[0]
    lengths = range(1, min(len(first.text), budget_tokens * MOST_A_TOKEN) + 1)
    length = bisect_right(lengths, budget_tokens, key=lambda end: size([replace(first, text=first.text[:end])]))
    return (replace(first, text=_cut(first.text, max(length, LEAST))),), kept_history


def _tokens(turns: Sequence[ChatMessage], count: Count) -> int:
    return sum(count(turn.content) + TURN for turn in turns)


def _latest(question: str, history: Sequence[ChatMessage], budget_tokens: int, count: Count) -> tuple[ChatMessage, ...]:
    """The end of the history that fits beside the question; it does not begin with an answer whose question went."""
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
