"""Functions that read user text take linear time for any text.

Each function reads hostile texts of one length and of four times that length. Linear work takes four times as long,
quadratic work sixteen times. The test measures the thread's CPU time, and compares the shortest of a few times, which a
busy machine changes little. It cannot count work instead: most of it is in C.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import pytest
from starlette.datastructures import Headers

from api.backends.thinking import Thinking
from api.embedded.model_server.generation import sentences
from api.endpoints import streaming as event_stream
from api.endpoints.dropin_wire import single_line
from api.endpoints.validation import refuse_too_many_values
from api.errors import InvalidRequest, UnreadableDocument
from api.guards.agreement import GUARDS, disagreement
from api.guards.words import read_words
from api.knowledge import diversity, html, markdown, quotes
from api.knowledge.chunk_embedding import EmbeddedText
from api.knowledge.chunking import SECTION, Chunker, estimated_tokens, numbered, sections, spans, tables
from api.knowledge.expansion import expanded, uncovered
from api.knowledge.markdown import first_heading
from api.knowledge.plain_text import decoded, tidied
from api.knowledge.ranking import leading
from api.knowledge.repair import garbage, repaired
from api.languages.documents import language_of_document
from api.languages.identify import LATIN, language_of, words_outside
from api.ollama.embedding import unread_of
from api.ports import question as cache_control
from api.ports.document_store import Chunk, DocumentFacts, DocumentFilter
from api.ports.question import Query
from api.query import citations, condense
from api.query import prompt as prompt_budget
from api.query.cache_key import LONGEST, fingerprint, normalise
from api.query.citations import rewritten
from api.query.prompt import Fence, Prompts, load_template
from api.redis_store.stores.documents.passage_search import by_words
from api.unicode_text import is_blank, nfc
from api.values import ChatMessage, EmbedderIdentity, Source

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timed,
    pytest.mark.once(reason="measures how work grows, which is in the code"),
]

MAX_RATIO: Final = 8.0
LEAST_SECONDS: Final = 0.005
"""Shorter times are noise. The text grows until it takes longer."""
MAX_SECONDS: Final = 2.0
"""A function that takes longer is not measured again."""
LONGEST_TEXT: Final = 400_000
ATTEMPTS: Final = 4

HOSTILE: Final = {
    "letters": "a",
    "words": "word ",
    "marks": "\u0315\u0300",
    "marks of narrow katakana": "\uff9e\u0300",
    "hidden marks": "\u0f73\u0315",
    "one long ligature": "\ufdfa",
    "joined emoji": "\U0001f468\u200d\U0001f469\u200d",
    "hangul": "\u1100\u1161\u11a8",
    "spaces": " ",
    "lines": "\n",
    "empty lines": "\n \t",
    "digits": "1",
    "grouped digits": "1,111,",
    "dotted": "1.",
    "not not": "not never ",
    "quotes": '"',
    "quoted": '"a ',
    "backticks": "`",
    "uneven backticks": "` `` ```",
    "fences": "```\n",
    "parts of code": '```c linenums="1"\n',
    "pages": "\fA page of some forty letters, or a few more.",
    "headings": "# a\n",
    "headings of parts": "# a\n\n",
    "hashes": "#",
    "emphasis": "*a **b _c ",
    "brackets": "[",
    "numbered brackets": "[1, ",
    "tags": "<",
    "tags with spaces": "< / ",
    "hidden tags": "<\u200b",
    "tag names": "<passage",
    "comments": "<!--",
    "sections": "<![CDATA[",
    "attributes": "<a b ",
    "scripts": "<script",
    "turns": "<|a",
    "full-width turns": "<｜a",
    "html": "<p><b>",
    "cells": "|a",
    "rows": "|a|b|\n",
    "lists": "- a\n",
    "hyphens": "a-",
    "apostrophes": "a'",
    "points": "...",
    "exclamations": "!",
    "thai": "\u0e01\u0e32",
    "chinese": "\u4e2d",
    "surrogates": "\ud800",
    "nothing": "\u200b",
}
"""Texts to repeat."""

PROMPTS: Final = Prompts(load_template(None))
FENCE: Final = Fence("<passage><question>")
CHUNKER: Final = Chunker(estimated_tokens, 256, 32)
EMBEDDER: Final = EmbedderIdentity("e", 4, "aaaaaaaaaa")
EMBEDDED: Final = EmbeddedText(estimated_tokens, 256)


def thinking(text: str) -> None:
    """Reads both the thoughts and the answer."""
    for said in (f"<think>{text}", text):
        one = Thinking()
        for at in range(0, len(said), 3):
            one.feed(said[at : at + 3])
        one.end()


def without_halves(text: str) -> str:
    """Removes lone surrogates, which JSON cannot contain."""
    return text.encode("utf-8", "replace").decode()


def guessed(text: str) -> None:
    """Reads an encoding that must be detected."""
    with suppress(UnreadableDocument):
        decoded(text.encode("utf-8", "replace").replace(b" ", b"\xe4 ") + b"\xff\xfe\xfd")


def prompt(text: str) -> None:
    sources = [Source("d1", text, 0, text, 0.5)]
    prompt_budget.fit(PROMPTS, "Why?", [ChatMessage("user", text)], sources, 2_000)


def embedded(text: str) -> None:
    EMBEDDED.of(DocumentFacts("t", text), Chunk(0, "Two years.", text, 0, 10))


def page(text: str) -> None:
    """Reads a page that ends with a tag, and a page with tags nested too deep."""
    for end in ("", ">", "-->"):
        with suppress(RecursionError):
            html.read(without_halves(text) + end, 1, 1)


def values_of_json(text: str) -> None:
    """Counts more brackets than any request needs, outside strings."""
    with suppress(InvalidRequest):
        refuse_too_many_values(f'"{text}"{"[" * 10_001}'.encode("utf-8", "replace"))


def words_of(guard: int) -> Callable[[str], object]:
    _, read, compare = GUARDS[guard]
    return lambda text: compare(read(read_words(text)), read(read_words(f"{text} not b 7")))


READERS: Final[dict[str, Callable[[str], object]]] = {
    "nfc": nfc,
    "is_blank": is_blank,
    "normalise": lambda text: [normalise(text[at : at + LONGEST]) for at in range(0, len(text), LONGEST)],
    "normalise, whole": normalise,
    "fingerprint": lambda text: fingerprint(Query(text, "t", "m", system=without_halves(text)), EMBEDDER, ""),
    "condense": lambda text: condense.turns(Query(text, "t", "m", history=(ChatMessage("user", text),))),
    "fence": FENCE.text,
    "fence, title": FENCE.title,
    "reference numbers": rewritten,
    "prompt": prompt,
    "citations": lambda text: citations.clean(text, 3),
    "thinking": thinking,
    "disagreement": lambda text: disagreement(text, f"{text} b"),
    **{f"guard {name}": words_of(number) for number, (name, _, _) in enumerate(GUARDS)},
    "words to look for": lambda text: by_words("i", "t", DocumentFilter(), text, 5, stemmers=["chinese"]),
    "language of a document": language_of_document,
    "tidied": tidied,
    "decoded": lambda text: decoded(without_halves(text).encode("utf-16")),
    "guessed": guessed,
    "first_heading": lambda text: first_heading(f"# {text}"),
    "sections": sections,
    "chunks": lambda text: spans(text, numbered(text, [(at, text[at : at + 800]) for at in range(0, len(text), 700)])),
    "cut": lambda text: [CHUNKER.cut(*part) for part in sections(tidied(without_halves(text)))],
    "embedded text": embedded,
    "html": page,
    "markdown": markdown.read,
    "front matter": lambda text: markdown.read(f"---\n{text}"),
    "repaired": repaired,
    "repaired lines": lambda text: repaired(text.replace(" ", "-\n")),
    "garbage": garbage,
    "quoted sentences": sentences,
    "closest sentence": lambda text: quotes.closest(text, text),
    "tables": tables,
    "acronyms": lambda text: expanded(text, (), [text]),
    "parts of a question": lambda text: uncovered(f"a part, {text}", [0], {0: text}, 1, 3),
    "near-copies": diversity.words_of,
    "cache-control": cache_control.parse,
    "accept": lambda text: event_stream.accepted(Headers(raw=[(b"accept", without_halves(text).encode())])),
    "single line": lambda text: single_line(without_halves(text)),
    "language": language_of,
    "words outside": lambda text: words_outside(text, frozenset([LATIN])),
    "unread": lambda text: unread_of(text, ()),
    "rare terms": lambda text: leading(f"{text} QZ-1108", {0: text, 1: f"{text} qz-1108"}),
    "values of JSON": values_of_json,
}
"""Functions that read text of a client, a document or a model. File parsers run in a process with limits."""

SHORTEST: Final = {"cut": 4 * SECTION, "prompt": 40_000, "condense": 4_000}
"""Minimum lengths for functions that work in sections or truncate their input."""


def seconds(read: Callable[[str], object], text: str) -> float:
    """Measures the CPU time of this thread."""
    gc.disable()
    try:
        before = time.thread_time()
        read(text)
        return time.thread_time() - before
    finally:
        gc.enable()


def ratio(name: str, unit: str) -> float:
    """Returns how many times longer a text of four times the length takes: the shortest times of a few."""
    read, length = READERS[name], SHORTEST.get(name, 1_000)
    longs: list[float] = []
    while not longs or (min(longs) < LEAST_SECONDS and 4 * length < LONGEST_TEXT):
        length *= 2 if longs else 1
        longs = [seconds(read, unit * (4 * length // len(unit)))]
        if longs[0] >= LEAST_SECONDS:  # once more: a busy machine makes one time long
            longs.append(seconds(read, unit * (4 * length // len(unit))))
    shorts: list[float] = []
    while min(longs) >= LEAST_SECONDS:
        shorts.append(seconds(read, unit * (length // len(unit))))
        found = min(longs) / max(min(shorts), LEAST_SECONDS / 16)
        if found <= MAX_RATIO or len(shorts) == ATTEMPTS or min(longs) > MAX_SECONDS:
            return found
        longs.append(seconds(read, unit * (4 * length // len(unit))))
    return 1.0


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("name", READERS)
def test_four_times_the_text_takes_about_four_times_as_long(name: str, unit: str) -> None:
    found = ratio(name, unit)
    assert found <= MAX_RATIO, f"{found:.1f} times as long for four times the text"
