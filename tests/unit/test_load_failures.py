"""How `ragherd load-test` names what fails before there is a response."""

from __future__ import annotations

import httpx
import pytest

from ragherd.load_test import asker


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.ConnectError("refused"), "no connection"),
        (httpx.ConnectTimeout(""), "no connection"),
        (httpx.RemoteProtocolError("disconnected"), "connection lost"),
    ],
)
async def test_a_failure_says_whether_there_was_a_connection(error: httpx.TransportError, kind: str) -> None:
    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    async with httpx.AsyncClient(transport=httpx.MockTransport(fail), base_url="http://service") as http:
        reply = await asker(http, {})("Who is there?")
    assert (reply.error, bool(reply.reason)) == (kind, True)
