"""Answers prompts with passages by quoting: the sentences nearest to the question, with the numbers of their passages.

A model with 135 million parameters cannot read passages and invents their content. Newcomers should see true answers,
so sentences are quoted. This works for prompts in the form of Ragherd's own template; other prompts go to the model.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from api.embedded.model_server.bodies import ChatBody, OllamaFault
from api.embedded.model_server.engine import Finished
from api.errors import EmbeddingUnavailable
from api.ports.inference import Embedder
from api.values import NO_TENANT

NO_ANSWER: Final = "The passages do not say."
MIN_COSINE: Final = 0.3
"""Minimum cosine of a quoted sentence."""
SECOND_SHARE: Final = 0.85
"""A second sentence needs at least this share of the best cosine."""
MAX_SENTENCES: Final = 48
"""Compared with the question. Embedding each takes a few milliseconds."""
_PASSAGE: Final = re.compile(r'<passage number="(\d+)"[^>]*>\n(.*?)\n</passage>', re.DOTALL)
_QUESTION: Final = re.compile(r"^Question: (.+)\Z", re.DOTALL | re.MULTILINE)
_CODE: Final = re.compile(r"^(```|~~~).*?(?:^\1|\Z)", re.DOTALL | re.MULTILINE)
_BLOCK_MARK: Final = re.compile(r"^\s*(?:[-*+]|\d+\.|>|#{1,6})\s+", re.MULTILINE)
_RULE: Final = re.compile(r"[\s|:-]+")
_LINK: Final = re.compile(r"\[([^\[\]]*)\]\([^()]*\)")
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(])")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence with the number of its passage."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Passages:
    """The question of a prompt, and the sentences that may answer it."""

    question: str
    sentences: tuple[Sentence, ...]


def parse_passages(body: ChatBody) -> Passages | None:
    """Returns None unless the last message consists of passages and a question."""
    last = body.messages[-1] if body.messages else None
    if last is None or last.role != "user" or body.format or body.tools:
        return None
    passages, asked = _PASSAGE.findall(last.content), _QUESTION.search(last.content)
    if not passages or asked is None:
        return None
    found = [Sentence(int(number), sentence) for number, text in passages for sentence in sentences(text)]
    return Passages(asked[1].strip(), tuple(found[:MAX_SENTENCES]))


def sentences(text: str) -> list[str]:
    """Returns the sentences of a passage's prose, lists and table rows, without code, headings and
    truncated sentences.
    """
    found: list[str] = []
    for block in re.split(r"\n\s*\n", _CODE.sub("\n\n", text)):
        if block.lstrip().startswith("|"):
            found += _rows(block.splitlines())
        elif not block.lstrip().startswith("#"):
            found += _SENTENCE.split(_plain(block))
    return [one for one in found if one.endswith((".", "!", "?")) and " " in one]


def _plain(block: str) -> str:
    return " ".join(_LINK.sub(r"\1", _BLOCK_MARK.sub("", block)).replace("**", "").split())


def _rows(lines: Sequence[str]) -> list[str]:
    """Returns the rows below the header rule of a table, or all rows if the header was cut off."""
    rule = next((place for place, line in enumerate(lines) if _RULE.fullmatch(line)), -1)
    return [_row(line) for line in lines[rule + 1 :]]


def _row(line: str) -> str:
    """Returns a row as a sentence: `name: its meaning.`"""
    cells = [_plain(cell) for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
    words = ": ".join(cell for cell in cells if cell)
    return words if words.endswith((".", "!", "?")) else f"{words}."


async def quote(read: Passages, embedder: Embedder) -> AsyncGenerator[str | Finished, None]:
    """Yields pieces of text, then `Finished`, like `TextModel.answer`. Raises `OllamaFault`."""
    began = time.perf_counter_ns()
    try:
        texts = [read.question, *(sentence.text for sentence in read.sentences)]
        embeddings = await embedder.embed(texts, tenant=NO_TENANT)
    except EmbeddingUnavailable as error:
        raise OllamaFault(500, str(error)) from error
    read_ns = time.perf_counter_ns() - began
    asked, *others = (np.frombuffer(embedding.vector, dtype="<f4") for embedding in embeddings)
    words = answer(read.sentences, [float(one @ asked) for one in others]).split(" ")
    for place, word in enumerate(words):
        yield word if place == 0 else f" {word}"
    prompt_words = sum(len(sentence.text.split()) for sentence in read.sentences)
    yield Finished("stop", prompt_words, read_ns, len(words), time.perf_counter_ns() - began - read_ns)


def answer(among: Sequence[Sentence], cosines: Sequence[float]) -> str:
    """Returns the nearest sentence, and the second if it is nearly as near, in their original order."""
    ranked = sorted(range(len(among)), key=lambda place: -cosines[place])
    least = max(MIN_COSINE, SECOND_SHARE * cosines[ranked[0]]) if ranked else MIN_COSINE
    chosen = sorted(place for place in ranked[:2] if cosines[place] >= least)
    if not chosen:
        return NO_ANSWER
    unique = dict.fromkeys((among[place].text, among[place].number) for place in chosen)
    return " ".join(f"{text[:-1]} [{number}]{text[-1]}" for text, number in unique)
