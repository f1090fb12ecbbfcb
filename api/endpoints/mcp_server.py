"""Serves the tools of POST /mcp with the package `mcp`. `mcp_api` imports this module when it is first needed.

Nothing is kept between two messages: each has its own session manager of the package, so that any worker can answer
any message, and whatever a message started ends with it.

An error of a tool is a result that the model can read (`isError`): one sentence on what is wrong and one on what to do.
Its `_meta` has the problem document of the HTTP API. Only a message that violates the protocol, or names an unknown
tool, gets an error of JSON-RPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

import anyio
import structlog
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from api.cancellation import cancel_and_wait
from api.endpoints.mcp_api import PATH
from api.endpoints.mcp_tools import INPUTS, OUTPUTS, SERVED, Progress, ServedTool, holdings_of
from api.endpoints.problems import problem_document, without_store
from api.endpoints.validation import shortened, validated
from api.errors import (
    BreakerOpen,
    DeadlinePassed,
    InternalError,
    InvalidRequest,
    NotFound,
    RagherdError,
    StoreUnavailable,
    UpstreamError,
    UpstreamFault,
)
from api.ports.telemetry import Telemetry

Context = ServerRequestContext[Any, Request]

INSTRUCTIONS: Final = (
    "Ragherd answers questions from the documents of your organization. Use `ask` for an answer with citations, "
    "`search` and `get_passage` to read the documents yourself. To cancel a call, close its connection."
)


class ToolServer:
    """Serves the tools of one worker."""

    def __init__(self, telemetry: Telemetry, version: str) -> None:
        self._telemetry = telemetry
        self._log = structlog.get_logger("ragherd.mcp")
        self._server: Server[Any] = Server(
            "ragherd",
            version=version,
            title="Ragherd",
            instructions=INSTRUCTIONS,
            get_tool_input_schema=INPUTS.get,
            on_list_tools=self._list,
            on_call_tool=self._call,
        )
        self._server.middleware.clear()  # its spans: Ragherd traces the request and the steps of the flow

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one message."""
        manager = StreamableHTTPSessionManager(self._server, stateless=True)
        async with manager.run():
            await manager.handle_request(scope, receive, send)

    async def _list(self, context: Context, _: PaginatedRequestParams | None) -> ListToolsResult:
        holdings = await _in_own_task(holdings_of(_request_of(context)))
        listed = [_listed(name, tool, holdings) for name, tool in SERVED.items()]
        return ListToolsResult(tools=listed, cache_scope="private")

    async def _call(self, context: Context, call: CallToolRequestParams) -> CallToolResult:
        tool, request = SERVED.get(call.name), _request_of(context)
        if tool is None:
            self._telemetry.tool_called("unknown", "unknown-tool")
            raise MCPError(INVALID_PARAMS, f"Unknown tool '{shortened(call.name, 100)}'. Known: {', '.join(SERVED)}.")
        outcome = "left"
        try:
            given = validated(tool.takes, call.arguments or {})
            answer = await _in_own_task(tool.run(request, given, _progress(context)))
            outcome = "ok"
            return CallToolResult(
                content=[TextContent(type="text", text=answer.text)], structured_content=answer.fields
            )
        except Exception as error:  # noqa: BLE001 - the model gets it, and the log has the traceback of a bug
            known = _known(error)
            if isinstance(known, InternalError):
                self._log.exception("tool_failed", tool=call.name)
            outcome = request.state.error = known.slug
            return _failed(known, request.state.request_id)
        finally:
            self._telemetry.tool_called(call.name, outcome)


def _listed(name: str, tool: ServedTool, holdings: str) -> Tool:
    return Tool(
        name=name,
        title=tool.title,
        description=f"{tool.description} {holdings}".strip() if tool.about_documents else tool.description,
        input_schema=INPUTS[name],
        output_schema=OUTPUTS[name],
        annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    )


def _request_of(context: Context) -> Request:
    assert context.request is not None, "the transport is HTTP"
    return context.request


def _progress(context: Context) -> Progress | None:
    """Returns how to report progress, if the caller asked for it."""
    if not context.meta or context.meta.get("progress_token") is None:
        return None

    async def report(characters: float, message: str) -> None:
        await context.session.report_progress(characters, message=message)

    return report


async def _in_own_task(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs `work` in a task that is cancelled as the rest of the service cancels, and waits for its end.

    The package cancels with anyio, which would also interrupt each wait of the flow's own clean-up.
    """
    task = asyncio.create_task(work, name="mcp-tool")
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            await cancel_and_wait([task])
        raise
    finally:
        del task  # it holds its error, which refers to this frame


# -- errors ------------------------------------------------------------------------------------------------------------


def _known(error: Exception) -> RagherdError:
    if isinstance(error, RagherdError):
        return error
    if isinstance(error, StoreUnavailable):
        return without_store(error, "tool")
    return InternalError()


def _failed(error: RagherdError, request_id: str) -> CallToolResult:
    """Returns the error as the model reads it. Clients check `structuredContent` even of errors, so it has none."""
    said = error.detail if error.detail.endswith((".", "!", "?")) else f"{error.detail}."
    problem = problem_document(error, path=PATH, request_id=request_id)
    if retry_after := error.headers.get("Retry-After"):
        problem["retry_after_seconds"] = int(retry_after)
    return CallToolResult(
        content=[TextContent(type="text", text=f"{error.title}: {said} {_advice(error)}".rstrip())],
        is_error=True,
        _meta={"ragherd/problem": problem},
    )


def _advice(error: RagherdError) -> str:
    if isinstance(error, InvalidRequest):
        return "Correct the arguments and call the tool again."
    if isinstance(error, NotFound):
        return "Call `search` for ids that exist now."
    if isinstance(error, DeadlinePassed):
        return "Ask for less, or raise X-Request-Timeout in the client's settings."
    if isinstance(error, UpstreamError) and error.fault is UpstreamFault.MODEL_NOT_FOUND:
        return "Leave out `model` to use the service's."
    seconds = error.headers.get("Retry-After")
    again = f"Try again in {seconds} s." if seconds else "Try again later." if error.status >= 500 else ""
    if isinstance(error, BreakerOpen | UpstreamError):
        return f"{again} Meanwhile `search` and `get_passage` work."
    return again
