"""What the API's own description has for all endpoints: the form of errors, and how a key travels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, ConfigDict, Field

from api.endpoints.access import Role
from api.endpoints.checked_route import role_of
from api.endpoints.error_responses import PROBLEM_JSON
from api.endpoints.examples import EXAMPLES
from api.errors import InvalidRequest, RagherdError


class Problem(BaseModel):
    """An error (RFC 9457). Some have further members: docs/http-api.md lists them all."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "type": "urn:ragherd:problem:invalid-request",
                "title": "The request is not valid",
                "status": 422,
                "detail": "options.num_ctx: is not known",
                "instance": "/query",
                "request_id": "ffb017c5ce714d94b949a8e8ebdc84c6",
                "errors": [{"field": "options.num_ctx", "message": "is not known"}],
            }
        },
    )

    type: str = Field(description="What went wrong, for programs.")
    title: str
    status: int
    detail: str = Field(description="What went wrong here, for people.")
    instance: str = Field(description="The path.")
    request_id: str = Field(description="The log has it too.")


EVENTS: Final = "text/event-stream"
Responses = dict[int | str, dict[str, Any]]

ERRORS: Final[Responses] = {
    "default": {
        "description": "An error. 503 has `Retry-After`.",
        "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}
"""For every endpoint that says nothing else. Without it FastAPI describes validation errors of its own, never sent."""


def errors_of(api: str, error_body: Callable[[RagherdError], dict[str, Any]]) -> Responses:
    """Errors in the form of another API."""
    error = InvalidRequest("model: is required", errors=[{"field": "model", "message": "is required"}])
    content = {"application/json": {"example": error_body(error)}}
    return {"default": {"description": f"An error, in {api}'s form. 503 has `Retry-After`.", "content": content}}


def stream_of(media_type: str, *events: str) -> Responses:
    """An answer that comes as a stream where it is asked for as one; `events`: the names of its events."""
    return {200: {"content": {media_type: {"schema": _event(events) if media_type == EVENTS else {"type": "string"}}}}}


def _event(names: Sequence[str]) -> dict[str, Any]:
    """One server-sent event: before OpenAPI 3.2 the schema of a stream describes each of them."""
    name = {"event": {"type": "string", "enum": list(names)}} if names else {}
    return {"type": "object", "required": ["data", *name], "properties": {**name, "data": {"type": "string"}}}


def body_of(kind: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """A body that is read by hand, so that FastAPI does not know of it."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


EMBEDDING_PATHS: Final = ("/api/embed", "/v1/embeddings")
_KEY: Final = {"type": "http", "scheme": "bearer", "description": "A key of `API_KEYS` or `ADMIN_KEYS`."}


class DescribedApp(FastAPI):
    """FastAPI, with what all its endpoints share in the description.

    `most_inputs`: EMBED_MAX_INPUTS. `keyed`: the roles that have keys; others are asked for none.
    """

    def __init__(self, *, most_inputs: int, keyed: Collection[Role], **named: Any) -> None:
        super().__init__(**named)
        self._most_inputs = most_inputs
        self._keyed = keyed

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            described = super().openapi()
            components = described["components"]
            components["securitySchemes"] = {"key": _KEY}
            components["schemas"]["Problem"] = Problem.model_json_schema()
            for body in _bodies(described):
                components["schemas"].update(body.pop("$defs", {}))
            self._describe_keys(described["paths"])
            for path in EMBEDDING_PATHS:
                _limit_inputs(_bodies_of(described["paths"][path]["post"])[0], self._most_inputs)
            for (method, path), example in EXAMPLES.items():
                _succeeded(described["paths"][path][method])["example"] = example
        return super().openapi()

    def _describe_keys(self, paths: dict[str, Any]) -> None:
        """Which endpoints need a key, by the role that each declares."""
        for route in iter_route_contexts(self.routes):
            for method in route.methods or ():
                operation = paths.get(route.path or "", {}).get(method.lower())
                if operation is not None and route.endpoint is not None:
                    operation["security"] = [{"key": []}] if role_of(route.endpoint) in self._keyed else []


def _succeeded(operation: dict[str, Any]) -> dict[str, Any]:
    """The JSON of the first response that tells of success."""
    status = min(status for status in operation["responses"] if status.startswith("2"))
    content: dict[str, Any] = operation["responses"][status]["content"]["application/json"]
    return content


def _bodies(described: dict[str, Any]) -> list[dict[str, Any]]:
    operations = [operation for path in described["paths"].values() for operation in path.values()]
    return [schema for operation in operations for schema in _bodies_of(operation)]


def _bodies_of(operation: dict[str, Any]) -> list[dict[str, Any]]:
    """The schema of each form of an operation's body."""
    return [kind["schema"] for kind in operation.get("requestBody", {}).get("content", {}).values()]


def _limit_inputs(schema: dict[str, Any], most: int) -> None:
    for kind in schema["properties"]["input"]["anyOf"]:
        if kind["type"] == "array":
            kind["maxItems"] = most
