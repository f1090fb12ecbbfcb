"""Four replicas share one state: a hit on any is a hit on all, and an open breaker on any is open on all."""

from __future__ import annotations

import pytest

from tests.chaos.fleet import Fleet
from tests.support.waiting import wait_until

pytestmark = pytest.mark.chaos


def test_an_answer_of_one_replica_is_a_hit_on_every_other(fleet: Fleet) -> None:
    for asked in fleet.replicas:
        question = f"How do I reset the password of server {asked.name}?"
        paraphrase = f"The password of server {asked.name}, how do I reset?"
        first = asked.ask(question).json()
        assert first["cache"]["status"] == "miss"
        for other in fleet.replicas:
            again, near = other.ask(question).json(), other.ask(paraphrase).json()
            assert (again["cache"]["status"], again["cache"]["kind"]) == ("hit", "exact")
            assert (near["cache"]["status"], near["cache"]["kind"]) == ("hit", "semantic")
            assert again["cache"]["entry"] == near["cache"]["entry"] == first["cache"]["entry"]
            assert again["answer"] == near["answer"] == first["answer"]
    assert fleet.ollama.stats["requests"]["/api/chat"] >= len(fleet.replicas)


def test_the_breaker_opens_and_recovers_on_every_replica(fleet: Fleet) -> None:
    first, other, *_ = fleet.replicas
    fleet.ollama.behaviour("status", status=500, path="/api/chat")
    assert {first.ask(f"{number}?", fresh=True).status_code for number in range(5)} == {502}
    wait_until(lambda: states(fleet) == {"OPEN"})
    assert {replica.ask("new?").status_code for replica in fleet.replicas} == {503}
    fleet.ollama.behaviour()
    wait_until(lambda: other.ask("and now?", fresh=True).is_success, timeout=15)
    wait_until(lambda: other.ask("and now?", fresh=True).is_success and states(fleet) == {"CLOSED"}, timeout=15)
    assert {replica.ask(f"new on {replica.name}?").status_code for replica in fleet.replicas} == {200}
    assert len({replica.breaker()["epoch"] for replica in fleet.replicas}) == 1


def states(fleet: Fleet) -> set[str]:
    return {replica.breaker()["state"] for replica in fleet.replicas}
