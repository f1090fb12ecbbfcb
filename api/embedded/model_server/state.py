"""What the endpoints share: opened before the server listens, reached through the request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from api.embedded.model_server.catalog import Catalog, describe, text_weights
from api.embedded.model_server.text_model import TextModel
from api.embedders.minilm import model_files
from api.embedders.onnx import OnnxEmbedder
from api.ports.models import Embedder

EMBED_SECONDS: Final = 300.0
"""Ollama sets no deadline: this one is for a computation that hangs."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """The models, loaded."""

    catalog: Catalog
    text_model: TextModel
    embedder: Embedder


@asynccontextmanager
async def open_models(threads: int, embed_model_path: str | None) -> AsyncIterator[ServerState]:
    """Loads both models (two seconds). Raises `SettingsError` when one is not to be had.

    `threads` compute the text; `embed_model_path` is EMBED_MODEL_PATH.
    """
    async with AsyncExitStack() as stack:
        weights = text_weights()
        catalog = await asyncio.to_thread(describe, weights, model_files(embed_model_path).weights)
        embedder = await stack.enter_async_context(OnnxEmbedder.open(embed_model_path, EMBED_SECONDS))
        text_model = await stack.enter_async_context(TextModel.open(weights, threads))
        yield ServerState(catalog, text_model, embedder)


def state_of(request: Request) -> ServerState:
    """The state of the server that got this request."""
    state: ServerState = request.app.state.server
    return state
