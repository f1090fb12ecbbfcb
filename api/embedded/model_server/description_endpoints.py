"""What the server says of itself and of its models: `/`, version, tags, ps, show."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse

from api.embedded.model_server.bodies import ShowBody, read_body
from api.embedded.model_server.catalog import LABEL, Model
from api.embedded.model_server.state import state_of

VERSION: Final = "0.0.0-ragherd-standin"
FOR_EVER: Final = "2318-01-01T00:00:00Z"
"""When a model that is never unloaded expires: Ollama, too, names a year about 290 years ahead."""


async def root(request: Request) -> PlainTextResponse:
    """Begins with the words by which clients know Ollama."""
    return PlainTextResponse(f"Ollama is running\n({LABEL})\n")


async def version(request: Request) -> JSONResponse:
    """Not a version of Ollama's, and says so."""
    return JSONResponse({"version": VERSION})


async def tags(request: Request) -> JSONResponse:
    """The models there are."""
    return JSONResponse({"models": [_listed(model) for model in state_of(request).catalog.models]})


async def ps(request: Request) -> JSONResponse:
    """The models in memory: all of them, always."""
    models = [
        {**_identified(model), "expires_at": FOR_EVER, "size_vram": 0, "context_length": _context_length(model)}
        for model in state_of(request).catalog.models
    ]
    return JSONResponse({"models": models})


async def show(request: Request) -> JSONResponse:
    """One model in detail."""
    body = await read_body(request, ShowBody)
    model = state_of(request).catalog.find(body.model or body.name)
    fields = {
        "license": model.license,
        "modelfile": f"# {LABEL}\nFROM {model.name}\n",
        "parameters": "",
        "template": "{{ .System }}\n{{ .Prompt }}" if model.capability == "completion" else "",
        "details": model.details,
        "model_info": model.info,
        "capabilities": [model.capability],
        "modified_at": model.modified_at,
    }
    return JSONResponse(fields)


def _identified(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "size": model.size,
        "digest": model.digest,
        "details": model.details,
    }


def _listed(model: Model) -> dict[str, Any]:
    return {**_identified(model), "modified_at": model.modified_at}


def _context_length(model: Model) -> int:
    length: int = model.info[f"{model.details['family']}.context_length"]
    return length
