"""Callers with wrong keys are slowed by address, and logged once a minute."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from api.endpoints.known_keys import FORGIVEN_SECONDS, FREE, WrongKeys


def test_delays_grow_to_the_longest_and_are_forgiven() -> None:
    wrong = WrongKeys(1.0)
    assert [wrong.delay("10.0.0.1", 0.0) for _ in range(FREE)] == [0.0] * FREE
    assert [wrong.delay("10.0.0.1", 0.0) for _ in range(5)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert wrong.delay("10.0.0.2", 0.0) == 0.0, "another address"
    assert wrong.delay("10.0.0.1", 20 * FORGIVEN_SECONDS) == 0.0


async def test_the_log_has_numbers_and_addresses_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now, rejected = [1000.0], list[int]()
    monkeypatch.setattr("api.endpoints.known_keys.time.monotonic", lambda: now[0])
    wrong = WrongKeys(0.0, lambda: rejected.append(1))
    with capture_logs() as logs:
        for address in ("10.0.0.1", "2001:db8::1", "2001:db8::2", "::ffff:10.0.0.1"):
            await wrong.refuse(address)
        now[0] += 60
        await wrong.refuse("10.0.0.1")
    assert len(rejected) == 5
    assert [(line["event"], line["count"], line["addresses"]) for line in logs] == [
        ("wrong_keys", 1, {"10.0.0.1": 1}),
        ("wrong_keys", 4, {"2001:db8::/64": 2, "10.0.0.1": 2}),
    ]
