"""The endpoints that Ragherd is compared with. `uvicorn --factory` starts them; their answers have the same form.

Each holds one question and asks no model: they answer hits only. The embedder is Ragherd's own, and the threshold too.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from fastapi import FastAPI

from api.embedders.minilm import MiniLM, model_files
from api.endpoints.query import QueryIn
from api.endpoints.streaming import QueryOut

QUESTION: Final = "What is the capital of France?"
ANSWER: Final = "The capital of France is Paris."
THRESHOLD: Final = 0.92
SITE: Final = "RIVALS_SITE"
"""The variable that names the folder with the rivals' packages. They come after Ragherd's own."""


def body_of(answer: str, kind: str) -> dict[str, Any]:
    """Returns an answer as POST /query gives it."""
    return {
        "answer": answer,
        "model": "llama3.2",
        "request_id": "0" * 32,
        "sources": [],
        "cache": {
            "status": "hit",
            "kind": kind,
            "similarity": 1.0,
            "age_seconds": 1.0,
            "entry": f"rag:cache:{'0' * 68}",
        },
        "timings_ms": {"total": 1.0, "embed": 0.0, "cache": 1.0, "retrieve": 0.0, "generate": 0.0},
        "usage": {"prompt_tokens": 0, "completion_tokens": 0},
    }


def bare() -> FastAPI:
    """An endpoint that returns a constant."""
    app, constant = FastAPI(), body_of(ANSWER, "exact")

    @app.post("/query", response_model=QueryOut)
    async def post_query(body: QueryIn) -> dict[str, Any]:
        return constant

    return app


def redisvl_embeds() -> FastAPI:
    """redisvl's SemanticCache, which embeds each question."""
    return _redisvl(remembers=False)


def redisvl_remembered() -> FastAPI:
    """redisvl's SemanticCache behind a memory of embeddings, as Ragherd has it."""
    return _redisvl(remembers=True)


def _redisvl(*, remembers: bool) -> FastAPI:
    from redisvl.extensions.cache.llm import SemanticCache
    from redisvl.utils.vectorize import CustomTextVectorizer

    embed, embed_later = _embedder(remembers=remembers)
    cache = SemanticCache(
        name=f"rival-{remembers}".lower(),
        distance_threshold=1 - THRESHOLD,
        vectorizer=CustomTextVectorizer(embed=embed, aembed=embed_later),
        redis_url=os.environ["REDIS_URL"],
        overwrite=True,
    )
    cache.store(QUESTION, ANSWER)
    app = FastAPI()

    @app.post("/query", response_model=QueryOut)
    async def post_query(body: QueryIn) -> dict[str, Any]:
        [found] = await cache.acheck(prompt=body.question)
        return body_of(found["response"], "semantic")

    return app


def _embedder(*, remembers: bool) -> tuple[Callable[[str], list[float]], Callable[[str], Awaitable[list[float]]]]:
    """Returns functions that embed, the second in a thread of its own. With `remembers`, each text only once."""
    model, thread = MiniLM(model_files(None)), ThreadPoolExecutor(1)
    known: dict[str, list[float]] = {}

    def embed(text: str) -> list[float]:
        return [float(value) for value in np.frombuffer(model.encode([text])[0], dtype="<f4")]

    async def embed_later(text: str) -> list[float]:
        if (vector := known.get(text)) is None:
            vector = await asyncio.get_running_loop().run_in_executor(thread, embed, text)
            if remembers:
                known[text] = vector
        return vector

    return embed, embed_later


def gptcache() -> FastAPI:
    """GPTCache with SQLite and faiss, as its first example has it. It is synchronous, so each call takes a thread."""
    sys.path.append(os.environ[SITE])
    from gptcache import Cache, Config  # type: ignore[import-not-found]
    from gptcache.adapter.api import get, put  # type: ignore[import-not-found]
    from gptcache.manager import manager_factory  # type: ignore[import-not-found]
    from gptcache.processor.pre import get_prompt  # type: ignore[import-not-found]
    from gptcache.similarity_evaluation.distance import SearchDistanceEvaluation  # type: ignore[import-not-found]

    model, cache = MiniLM(model_files(None)), Cache()
    farthest = 4.0  # of unit vectors, squared
    cache.init(
        pre_embedding_func=get_prompt,
        embedding_func=lambda text, **_: np.frombuffer(model.encode([text])[0], dtype="<f4"),
        data_manager=manager_factory(
            "sqlite,faiss", data_dir=tempfile.mkdtemp(dir=os.environ["TMPDIR"]), vector_params={"dimension": 384}
        ),
        similarity_evaluation=SearchDistanceEvaluation(max_distance=farthest),
        config=Config(similarity_threshold=1 - 2 * (1 - THRESHOLD) / farthest),
    )
    put(QUESTION, ANSWER, cache_obj=cache)
    app = FastAPI()

    @app.post("/query", response_model=QueryOut)
    def post_query(body: QueryIn) -> dict[str, Any]:
        return body_of(get(body.question, cache_obj=cache), "semantic")

    return app
