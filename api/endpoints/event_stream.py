"""An answer as server-sent events: `sources`, `token`s, then `done` or `error`. docs/streaming.md shows the wire."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.requests import Request

from api.endpoints.answer_form import single_line
from api.endpoints.answer_stream import AnswerStream, Events
from api.endpoints.error_responses import problem_document
from api.endpoints.event_wire import Streaming
from api.endpoints.query_answer import document
from api.errors import RagherdError
from api.model import Token
from api.query.answered import Answered, Opening
from api.query.cache_control import CacheControl

MEDIA_TYPE: Final = "text/event-stream"


def accepted(accept: str) -> bool:
    """Whether an `Accept` header names event streams, and not to refuse them."""
    for media_range in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in media_range.split(";"))
        if kind == MEDIA_TYPE:
            return not any(parameter.replace(" ", "").rstrip("0.") == "q=" for parameter in parameters)
    return False


class EventStream(AnswerStream):
    """The stream of POST /query."""

    def __init__(
        self,
        request: Request,
        answer: AbstractAsyncContextManager[Events],
        control: CacheControl,
        streaming: Streaming,
    ) -> None:
        super().__init__(answer, control, streaming, _Form(request.url.path, request.state.request_id))


class _Form:
    """See `answer_form.StreamForm`."""

    media_type = MEDIA_TYPE
    sign_of_life: bytes | None = KEEPALIVE_COMMENT

    def __init__(self, path: str, request_id: str) -> None:
        self._path = path
        self._request_id = request_id

    def opening(self, opening: Opening) -> bytes:
        return _event("sources", opening.sources)

    def token(self, token: Token) -> bytes:
        return _event("token", {"text": token.text})

    def done(self, answered: Answered) -> bytes:
        whole = document(answered, self._request_id)
        return _event("done", {name: value for name, value in whole.items() if name != "answer"})

    def error(self, error: RagherdError) -> bytes:
        return _event("error", problem_document(error, path=self._path, request_id=self._request_id))


def _event(name: str, data: Any) -> bytes:
    return format_sse_event(event=name, data_str=single_line(data))
