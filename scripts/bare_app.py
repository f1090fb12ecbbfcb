"""A FastAPI endpoint that returns a constant answer with the same request and response models. Used by bench_query."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from api.endpoints.query import QueryIn
from api.endpoints.streaming import QueryOut

ANSWER: dict[str, Any] = {
    "answer": "The capital of France is Paris.",
    "model": "llama3.2",
    "request_id": "0" * 32,
    "sources": [],
    "cache": {
        "status": "hit",
        "kind": "exact",
        "similarity": 1.0,
        "age_seconds": 1.0,
        "entry": f"rag:cache:{'0' * 68}",
    },
    "timings_ms": {"total": 1.0, "embed": 0.0, "cache": 1.0, "retrieve": 0.0, "generate": 0.0},
    "usage": {"prompt_tokens": 0, "completion_tokens": 0},
}

app = FastAPI()


@app.post("/query", response_model=QueryOut)
async def post_query(body: QueryIn) -> dict[str, Any]:
    """Returns the constant."""
    return ANSWER
