"""Client traffic for the fleet: cached questions, new questions, and streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx

from tests.chaos.fleet import NO_STORE
from tests.support.load import Load, Request, constant_load

CACHED = "What does everybody ask?"
LONG = "Which words does a longer answer have? " + " ".join(f"word{number}" for number in range(20))


def cached(url: str) -> Request:
    """A question that the cache answers after the first time."""
    return lambda client: client.post(f"{url}/query", json={"question": CACHED})


def fresh(url: str) -> Request:
    """A question that is generated each time."""
    return lambda client: client.post(f"{url}/query", json={"question": "And now?"}, headers=NO_STORE)


def streamed(url: str) -> Request:
    """A question that is generated and streamed each time, and read to its end."""

    def request(client: httpx.Client) -> httpx.Response:
        response = client.post(f"{url}/query", json={"question": LONG, "stream": True}, headers=NO_STORE)
        assert "event: done" in response.text, response.text
        return response

    return request


@contextmanager
def all_kinds(url: str) -> Iterator[dict[str, Load]]:
    """Sends constant traffic of every kind over kept and new connections."""
    with ExitStack() as stack:
        yield {
            "cached": stack.enter_context(constant_load(cached(url), 2)),
            "cached, a connection each": stack.enter_context(constant_load(cached(url), 1, keep_alive=False)),
            "generated": stack.enter_context(constant_load(fresh(url), 1)),
            "streams": stack.enter_context(constant_load(streamed(url), 2)),
        }


def no_failures(loads: dict[str, Load]) -> None:
    """Asserts that no request failed."""
    assert {kind: load.failures[:3] for kind, load in loads.items() if load.failures} == {}
    assert all(load.answered for load in loads.values())


def summary(loads: dict[str, Load]) -> str:
    return "; ".join(f"{kind}: {load}" for kind, load in loads.items())
