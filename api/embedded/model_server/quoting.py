"""Answers to a prompt with passages: their sentences nearest to the question, word for word, with their numbers.

A model of 135 million parameters can not read passages: it makes up what they say. What a newcomer reads of documents
is to be true, so here it is quoted. The turns are those of Ragherd's own prompt template; a prompt that is worded in
another way goes to the model.
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
from api.ports.models import Embedder
from api.values import NO_TENANT

NOT_SAID: Final = "The passages do not say."
NEAR: Final = 0.3
"""The least cosine of a sentence that is quoted."""
NEARLY_AS_NEAR: Final = 0.85
"""Of the best one's cosine: what a second sentence has at least."""
SENTENCES: Final = 48
"""Looked at; each takes some milliseconds to embed."""
_PASSAGE: Final = re.compile(r'<passage number="(\d+)"[^>]*>\n(.*?)\n</passage>', re.DOTALL)
_QUESTION: Final = re.compile(r"^Question: (.+)\Z", re.DOTALL | re.MULTILINE)
_CODE: Final = re.compile(r"^(```|~~~).*?(?:^\1|\Z)", re.DOTALL | re.MULTILINE)
_BLOCK_MARK: Final = re.compile(r"^\s*(?:[-*+]|\d+\.|>|#{1,6})\s+", re.MULTILINE)
_RULE: Final = re.compile(r"[\s|:-]+")
_LINK: Final = re.compile(r"\[([^\[\]]*)\]\([^()]*\)")
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(])")


@dataclass(frozen=True, slots=True)
class Quotable:
    """A sentence of the passage of that number."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a prompt asks, and the sentences that may answer it."""

    question: str
    sentences: tuple[Quotable, ...]


def reading(body: ChatBody) -> Reading | None:
    """None where the last turn is not made of passages and a question."""
    last = body.messages[-1] if body.messages else None
    if last is None or last.role != "user" or body.format or body.tools:
        return None
    passages, asked = _PASSAGE.findall(last.content), _QUESTION.search(last.content)
    if not passages or asked is None:
        return None
    found = [Quotable(int(number), sentence) for number, text in passages for sentence in sentences(text)]
    return Reading(asked[1].strip(), tuple(found[:SENTENCES]))


def sentences(text: str) -> list[str]:
    """Those of a passage's prose, lists and rows of tables; no code and headings, nor what is cut off at its edges."""
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
    """Those under the rule that ends a table's head; all, where the head was cut off."""
    rule = next((place for place, line in enumerate(lines) if _RULE.fullmatch(line)), -1)
    return [_row(line) for line in lines[rule + 1 :]]


def _row(line: str) -> str:
    """Cells as a sentence: `name: its meaning.`"""
    cells = [_plain(cell) for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
    words = ": ".join(cell for cell in cells if cell)
    return words if words.endswith((".", "!", "?")) else f"{words}."


async def quoted(read: Reading, embedder: Embedder) -> AsyncGenerator[str | Finished, None]:
    """As `TextModel.answer` gives a text: its pieces, then how it ended. Raises `OllamaFault`."""
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


def answer(among: Sequence[Quotable], cosines: Sequence[float]) -> str:
    """The nearest sentence, and the next where it is nearly as near, in the order in which they stand."""
    ranked = sorted(range(len(among)), key=lambda place: -cosines[place])
    least = max(NEAR, NEARLY_AS_NEAR * cosines[ranked[0]]) if ranked else NEAR
    chosen = sorted(place for place in ranked[:2] if cosines[place] >= least)
    if not chosen:
        return NOT_SAID
    unique = dict.fromkeys((among[place].text, among[place].number) for place in chosen)
    return " ".join(f"{text[:-1]} [{number}]{text[-1]}" for text, number in unique)
