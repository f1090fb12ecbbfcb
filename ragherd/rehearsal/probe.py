"""Runs in a pod of the cluster, from `python -c`: sends requests and opens connections there.

It reads a job from standard input as JSON, and prints its result as JSON. It uses the standard library only,
because the pod may run an older image.
"""

from __future__ import annotations

import json
import socket
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

TIMEOUT = 10.0
POLL_SECONDS = 0.002


def send(request: dict[str, Any]) -> dict[str, Any]:
    """Sends a request: method, url, headers and body. Returns status, body and milliseconds."""
    body = request.get("body")
    sent = urllib.request.Request(  # noqa: S310 - http:// only, from the rehearsal
        request["url"],
        method=request["method"],
        headers={"Content-Type": "application/json", **request.get("headers", {})},
        data=None if body is None else json.dumps(body).encode(),
    )
    began = time.perf_counter()
    try:
        with urllib.request.urlopen(sent, timeout=request.get("timeout", TIMEOUT)) as response:  # noqa: S310
            status, text = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    except OSError as error:
        return {"status": 0, "body": str(error), "ms": _since(began)}
    try:
        found = json.loads(text)
    except ValueError:
        found = text.decode(errors="replace")
    return {"status": status, "body": found, "ms": _since(began)}


def connect(target: dict[str, Any]) -> str:
    """Opens a connection to a host and port. Returns `open`, or why there is none."""
    try:
        socket.create_connection((target["host"], target["port"]), timeout=target.get("timeout", 3.0)).close()
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return f"refused: {error}"
    return "open"


def spread(job: dict[str, Any]) -> dict[str, Any]:
    """Sends `first`, and returns after how many milliseconds each watched request's body has `field` = `value`.

    Times count from the moment at which `first` was sent.
    """
    deadline = time.perf_counter() + job.get("timeout", TIMEOUT)
    began: list[float] = []

    def watch(request: dict[str, Any]) -> float | None:
        while time.perf_counter() < deadline:
            body = send(request)["body"]
            if isinstance(body, dict) and body.get(job["field"]) == job["value"]:
                return _since(began[0]) if began else 0.0
            time.sleep(POLL_SECONDS)
        return None

    with ThreadPoolExecutor(len(job["watched"])) as pool:
        watching = [pool.submit(watch, one) for one in job["watched"]]
        time.sleep(0.2)  # every watcher has asked at least once
        began.append(time.perf_counter())
        first = send(job["first"])
        return {"first": first, "ms": [one.result() for one in watching]}


def _since(began: float) -> float:
    return round(1000 * (time.perf_counter() - began), 2)


def main() -> None:
    job = json.load(sys.stdin)
    match job["do"]:
        case "send":
            found: Any = [send(one) for one in job["requests"]]
        case "connect":
            with ThreadPoolExecutor(len(job["targets"])) as pool:
                found = list(pool.map(connect, job["targets"]))
        case _:
            found = spread(job)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
