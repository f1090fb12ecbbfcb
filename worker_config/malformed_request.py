"""What a client is told whose request no application sees: the same form as every other error.

It cannot be read, or it came too late, or there is no room for it. It is answered here, under its own id.
"""

from __future__ import annotations

import uuid
from http import HTTPStatus

import orjson


def refusal(status: HTTPStatus, detail: str, worker: str) -> bytes:
    """A whole response, after which the connection is closed: where the next request would begin is not known."""
    request_id = uuid.uuid4().hex
    body = orjson.dumps(
        {
            "type": "about:blank",
            "title": status.phrase,
            "status": status,
            "detail": detail,
            "instance": "/",
            "request_id": request_id,
        }
    )
    head = (
        f"HTTP/1.1 {status} {status.phrase}",
        "content-type: application/problem+json",
        f"content-length: {len(body)}",
        "connection: close",
        f"x-request-id: {request_id}",
        f"x-worker: {worker}",
        *(["retry-after: 1"] if status == HTTPStatus.SERVICE_UNAVAILABLE else []),
    )
    return "\r\n".join((*head, "", "")).encode() + body
