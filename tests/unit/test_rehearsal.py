"""The decisions of `ragherd rehearse`: how steps end, what the load says, and what the report shows."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from ragherd.rehearsal.added import LoadPlan
from ragherd.rehearsal.kubectl import ClusterUnreachable, Kubectl, KubectlError, TooLate, failure, until
from ragherd.rehearsal.load import Load, document, hits_away
from ragherd.rehearsal.plan import STEPS, chosen
from ragherd.rehearsal.rehearsal import Rehearsal, StepFailed
from ragherd.rehearsal.report import markdown, page, verdict
from ragherd.rehearsal.service_steps import documented_keys, faults_of
from ragherd.rehearsal.steps import LoadSuffered, Result, Seen, Step, counted, results, without_failures

NOTHING = cast("Rehearsal", None)


def load(failed: int = 0) -> Load:
    errors = {"HTTP 502": failed} if failed else {}
    found = {
        "requests": 100,
        "failed": failed,
        "unfinished": 0,
        "hit_rate": 0.9,
        "by_status": {"hit": 90, "miss": 10 - failed},
        "errors": errors,
        "error_examples": dict.fromkeys(errors, "Ollama <failed>"),
        "latency_ms": {"p50": 3.0, "p95": 9.0, "p99": 20.0, "max": 250.0},
        "series": [row(0, 5), row(1, 0), row(2, 5)],
    }
    return Load(LoadPlan("load", 10, 60, 10), found)


def row(second: float, hits: int, requests: int = 5) -> dict[str, Any]:
    return {"second": second, "hits": hits, "requests": requests, "failed": 0}


def step(name: str, run: Callable[[Rehearsal], Seen], **more: Any) -> Step:
    return Step(name, "that it works", run, **more)


def run(*steps: Step) -> list[Result]:
    return list(results(steps, NOTHING, lambda _: None))


def passes(_: Rehearsal) -> Seen:
    return Seen("it works", {"pods": 3})


def fails(_: Rehearsal) -> Seen:
    raise StepFailed("it does not")


# -- Steps -------------------------------------------------------------------------------------------------------------


def test_a_failed_step_stops_no_other() -> None:
    found = run(step("one", fails), step("two", passes))
    assert [(one.outcome, one.seen) for one in found] == [("failed", "it does not"), ("passed", "it works")]


def test_after_a_failed_vital_step_no_other_is_tried() -> None:
    found = run(step("one", fails, vital=True), step("two", passes), step("three", passes, always=True))
    assert [one.outcome for one in found] == ["failed", "skipped", "passed"]
    assert found[1].seen == "needs the step: one"


def test_a_step_that_makes_no_sense_is_skipped_with_the_reason() -> None:
    [found] = run(step("one", fails, skip=lambda _: "the cluster has one node"))
    assert (found.outcome, found.seen) == ("skipped", "the cluster has one node")


def test_a_step_tidies_up_after_a_failure_too() -> None:
    tidied = []
    run(
        step("one", fails, tidy=lambda _: tidied.append("one")),
        step("two", passes, tidy=lambda _: tidied.append("two")),
    )
    assert tidied == ["one", "two"]


def test_a_step_that_cannot_tidy_up_has_failed() -> None:
    def broken(_: Rehearsal) -> None:
        raise KubectlError("kubectl uncordon: forbidden")

    [found] = run(step("one", passes, tidy=broken))
    assert (found.outcome, found.seen) == ("failed", "it works; afterwards: kubectl uncordon: forbidden")


def test_a_lost_cluster_ends_the_rehearsal() -> None:
    def lost(_: Rehearsal) -> Seen:
        raise ClusterUnreachable("kubectl get: connection refused")

    with pytest.raises(ClusterUnreachable):
        run(step("one", lost))


def test_one_failed_request_fails_a_step_that_promises_none() -> None:
    assert without_failures(load(), "restarted").text == "restarted; 0 of 100 requests failed"
    with pytest.raises(LoadSuffered, match=r"1 of 100 requests failed \(1 x HTTP 502\)") as caught:
        without_failures(load(1), "restarted")
    assert caught.value.figures["load"]["failed"] == 1
    assert counted(load(1), "killed").figures["load"]["failed"] == 1


def test_steps_can_be_chosen_and_keep_their_order() -> None:
    assert [one.name for one in chosen(frozenset({"kill", "rights"}))] == ["apply", "ready", "rights", "kill"]
    assert chosen(frozenset()) == STEPS


# -- Load --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "seconds"),
    [
        ((0, 0, 5, 5), 0),  # the start has no hits yet
        ((5, 0, 0, 5), 4),
        ((5, 0, 5, 0, 0, 0, 5), 6),
        ((5, 5, 0, 0), 0),  # nobody knows whether they would have come back
    ],
)
def test_hits_away_is_the_longest_time_between_two_hits(hits: tuple[int, ...], seconds: float) -> None:
    assert hits_away([row(2.0 * number, one) for number, one in enumerate(hits)]) == seconds


def test_seconds_without_requests_are_no_seconds_without_hits() -> None:
    assert hits_away([row(0, 1), row(1, 0, requests=0), row(2, 1)]) == 0


def test_the_document_of_a_load_is_the_last_line_of_its_log() -> None:
    assert document('a warning\n{"requests": 3}\n') == {"requests": 3}
    with pytest.raises(KubectlError, match="no figures: Traceback"):
        document("Traceback\n")


# -- kubectl -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Kubectl]:
    """Makes a kubectl from the body of a Python program."""

    def make(body: str) -> Kubectl:
        path = tmp_path / "kubectl"
        path.write_text(f"#!{sys.executable} -S\nimport sys, time\n{textwrap.dedent(body)}")
        path.chmod(0o755)
        return Kubectl("lab", "home", str(path))

    return make


def test_a_call_names_its_context_and_namespace(program: Callable[[str], Kubectl]) -> None:
    printed = program("print(*sys.argv[1:], sys.stdin.read())").run("get", "pods", text="sent")
    assert printed == "--context lab --namespace home get pods sent\n"


def test_warnings_are_kept_and_are_no_part_of_an_error(program: Callable[[str], Kubectl]) -> None:
    kubectl = program('sys.exit("Warning: would violate PodSecurity\\nError: forbidden\\n  by policy")')
    with pytest.raises(KubectlError, match=r"^kubectl apply: Error: forbidden by policy$"):
        kubectl.run("apply")
    assert kubectl.warnings == ["Warning: would violate PodSecurity"]


def test_a_call_has_a_deadline(program: Callable[[str], Kubectl]) -> None:
    with pytest.raises(TooLate, match=r"kubectl get took over 0\.2 s"):
        program("time.sleep(60)").run("get", seconds=0.2)


def test_a_missing_kubectl_is_one_line() -> None:
    with pytest.raises(KubectlError, match="no-such-program is not on the path"):
        Kubectl(program="no-such-program").run("get")


def test_an_unreachable_cluster_is_told_from_a_refusal() -> None:
    said = "The connection to the server 127.0.0.1:6443 was refused - did you specify the right host or port?"
    assert isinstance(failure("get", [said]), ClusterUnreachable)
    assert not isinstance(failure("get", ["Error from server (Forbidden): pods is forbidden"]), ClusterUnreachable)


def test_a_port_is_forwarded_while_it_is_used(program: Callable[[str], Kubectl]) -> None:
    kubectl = program('print("Forwarding from 127.0.0.1:40123 -> 9090", flush=True)\ntime.sleep(60)')
    with kubectl.forwarded("service/ragherd-metrics", 9090) as url:
        assert url == "http://127.0.0.1:40123"


def test_a_port_that_cannot_be_forwarded_is_an_error(program: Callable[[str], Kubectl]) -> None:
    kubectl = program('sys.exit("error: services \\"x\\" not found")')
    with pytest.raises(KubectlError, match='port-forward: error: services "x" not found'), kubectl.forwarded("x", 1):
        pass


def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragherd.rehearsal.kubectl.POLL_SECONDS", 0.01)
    with pytest.raises(TooLate, match=r"no pod within 0\.05 s"):
        until(lambda: None, 0.05, "no pod")


# -- What is looked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"allowPrivilegeEscalation": True}, "may gain privileges"),
        ({"readOnlyRootFilesystem": False}, "can write to its root"),
        ({"capabilities": {"drop": ["NET_RAW"]}}, "keeps capabilities"),
        ({"runAsNonRoot": False}, "runs as root"),
        ({"seccompProfile": {"type": "Unconfined"}}, "has no seccomp profile"),
    ],
)
def test_a_pod_with_more_rights_is_found(change: dict[str, Any], fault: str) -> None:
    inner = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    pod = {"securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}}
    assert faults_of({**pod, "containers": [{"name": "one", "securityContext": inner}]}) == []
    assert faults_of({**pod, "containers": [{"name": "one", "securityContext": {**inner, **change}}]}) == [
        f"one {fault}"
    ]


def test_the_page_of_keys_has_patterns() -> None:
    patterns = documented_keys("mine:")
    for key in ("mine:cb:{ollama}", "mine:cb:{ollama}:log", "mine:stats:cache", "mine:worker:pod-1-abcd"):
        assert any(one.fullmatch(key) for one in patterns), key
    assert not any(one.fullmatch("mine:something:else") for one in patterns)


# -- Report ------------------------------------------------------------------------------------------------------------


def found(*steps: Result, interrupted: str = "") -> dict[str, Any]:
    return {
        "manifests": "k8s/overlays/dev",
        "image": "ragherd:1",
        "second_image": "",
        "ollama": "",
        "kubernetes": "v1.34.4",
        "nodes": 2,
        "replicas": 3,
        "left_out": ["PodMonitor ragherd"],
        "rate": 10.0,
        "timeout": 10.0,
        "began": "2026-11-29T12:00:00+00:00",
        "seconds": 61.4,
        "interrupted": interrupted,
        "steps": [one.document() for one in steps],
    }


def test_the_report_shows_each_step_and_each_load() -> None:
    killed = counted(load(2), "pod | killed")
    shown = found(Result("kill", "few fail", "passed", killed.text, 12.3, killed.figures))
    text = markdown(shown)
    assert "| kill | passed | few fail | pod &#124; killed; 2 of 100 requests failed (2 x HTTP 502) | 12 s |" in text
    assert "| kill | 100 | 2 | 90 % | 3 | 9 | 20 | 250 | 1 s |" in text
    assert "- kill: 2 x HTTP 502: Ollama &lt;failed>" in text
    assert "| left out | PodMonitor ragherd |" in text
    html = page(shown)
    assert "<td>12 s</td>" in html
    assert "Ollama &lt;failed&gt;" in html
    json.dumps(shown)


def test_a_failed_step_and_an_interruption_are_no_success() -> None:
    good, skipped = Result("one", "", "passed", "yes"), Result("two", "", "skipped", "no metrics-server")
    assert verdict(found(good, skipped)) == (True, ["1 of 2 steps passed", "two was skipped: no metrics-server"])
    assert verdict(found(good, Result("bad", "", "failed", "it broke")))[0] is False
    assert verdict(found(good, interrupted="by the user"))[0] is False
