"""The model server quotes passages instead of inventing their content."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from api.embedded.model_server.bodies import ChatInput
from api.embedded.model_server.engine import Finished
from api.embedded.model_server.generation import NO_ANSWER, Sentence, answer, parse_passages, quote, sentences
from api.query.prompt import Prompts, load_template
from api.values import Embedding, Source

PAGE = """# Holiday

Holiday is approved by the [team lead](lead.md). **Ask** for it
two weeks before.

- Unpaid leave is approved by the office.

```
never.quote(this).
```

| setting | meaning |
|---|---|
| `DAYS` | How many there are. |

cut off in mid"""


def body(question: str, *texts: str, **more: Any) -> ChatInput:
    """Returns a body in the form of the packaged template."""
    sources = [Source(f"d{number}", "A title", 0, text, 0.5) for number, text in enumerate(texts)]
    turns = Prompts(load_template(None)).grounded(question, [], sources)
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return ChatInput.model_validate({"model": "smollm2", "messages": messages, **more})


def test_only_prose_lists_and_rows_are_sentences() -> None:
    assert sentences(PAGE) == [
        "Holiday is approved by the team lead.",
        "Ask for it two weeks before.",
        "Unpaid leave is approved by the office.",
        "`DAYS`: How many there are.",
    ]


def test_the_ragherd_prompt_is_parsed() -> None:
    read = parse_passages(body("Who\napproves it?", "The office does. Nobody else does.", "It is red."))
    assert read is not None
    assert read.question == "Who\napproves it?"
    assert read.sentences == (
        Sentence(1, "The office does."),
        Sentence(1, "Nobody else does."),
        Sentence(2, "It is red."),
    )


@pytest.mark.parametrize(
    "other",
    [
        ChatInput.model_validate({"model": "m", "messages": [{"role": "user", "content": "Question: What?"}]}),
        ChatInput.model_validate({"model": "m", "messages": []}),
        body("What?", "It is so.", format="json"),
    ],
)
def test_any_other_prompt_goes_to_the_model(other: ChatInput) -> None:
    assert parse_passages(other) is None


@pytest.mark.parametrize(
    ("cosines", "said"),
    [
        ([0.9, 0.2], "One is so [1]."),
        ([0.8, 0.9], "One is so [1]. Two is not [2]!"),
        ([0.1, 0.2], NO_ANSWER),
    ],
)
def test_the_nearest_sentences_are_quoted_in_order_with_their_numbers(cosines: list[float], said: str) -> None:
    assert answer([Sentence(1, "One is so."), Sentence(2, "Two is not!")], cosines) == said


def test_without_a_sentence_the_answer_is_empty() -> None:
    assert answer([], []) == NO_ANSWER


class OneHot:
    """An embedder that gives each text a chosen similarity to the question."""

    async def embed(self, texts: list[str], *, tenant: str) -> list[Embedding]:
        near = {"What?": 1.0, "It is so.": 0.9}
        cosines = (near.get(text, 0.0) for text in texts)
        return [Embedding(np.array([cosine, 1.0 - cosine], dtype="<f4").tobytes()) for cosine in cosines]


async def test_the_quote_streams_like_a_generation() -> None:
    read = parse_passages(body("What?", "It is so. It is green."))
    assert read is not None
    pieces = [piece async for piece in quote(read, OneHot())]  # type: ignore[arg-type]
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == "It is so [1]."
    end = pieces[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.tokens) == ("stop", 4)


def test_reference_numbers_of_a_document_are_not_quoted_as_citations() -> None:
    text = "The old bridge was opened in 1931 [2]. It is 40 metres long [12]. Its colour is green [1, 3]."
    read = parse_passages(body("When was the old bridge opened?", text, "The mill is red.", "The town hall is large."))
    assert read is not None
    cosines = [0.9, 0.1, 0.1, 0.1, 0.1]
    assert answer(read.sentences, cosines) == "The old bridge was opened in 1931 (2) [1]."
