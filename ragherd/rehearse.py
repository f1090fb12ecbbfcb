"""`ragherd rehearse`: deploys the service to a namespace of a cluster, takes things away under load, and reports."""

from __future__ import annotations

import json
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ragherd.exits import (
    FAILED,
    INTERRUPTED,
    TERMINATED,
    UNREACHABLE,
    USAGE_ERROR,
    Terminated,
    exit_with,
    sigterm_interrupts,
)
from ragherd.rehearsal.added import Keys
from ragherd.rehearsal.disruption_steps import remove_namespace
from ragherd.rehearsal.kubectl import ClusterUnreachable, Kubectl, KubectlError
from ragherd.rehearsal.manifests import Changes, Object, Rehearsed, Unusable, namespace_labels, parsed, rehearsed
from ragherd.rehearsal.plan import DELETE, STEPS, chosen
from ragherd.rehearsal.rehearsal import Options, Rehearsal, is_ready
from ragherd.rehearsal.report import markdown, page, verdict
from ragherd.rehearsal.source import manifests_of
from ragherd.rehearsal.steps import Result, Step, results
from ragherd.service_client import AsJson, clean, print_document

NAMESPACE: Final = "ragherd-rehearsal"
INTERRUPTIONS: Final = {"by the user": INTERRUPTED, "by SIGTERM": TERMINATED}
"""Exit codes. Any other interruption is the cluster's."""


def rehearse(
    manifests: Annotated[
        Path,
        typer.Argument(help="Folder of an overlay or of the chart, such as k8s/overlays/staging.", show_default=False),
    ],
    image: Annotated[str, typer.Option(help="Image that the cluster's nodes have or can pull.", show_default=False)],
    second_image: Annotated[str | None, typer.Option(help="Image to upgrade to, and back from.")] = None,
    values: Annotated[list[Path] | None, typer.Option(help="File with values for the chart. May be repeated.")] = None,
    context: Annotated[str | None, typer.Option(help="Context of kubectl. Default: the current one.")] = None,
    namespace: Annotated[
        str | None, typer.Option(help="Namespace to create, and to remove at the end. It must not exist.")
    ] = None,
    ollama: Annotated[str | None, typer.Option(help="URL of an Ollama that pods reach. Default: a stand-in.")] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Request little CPU and memory, for a cluster on a laptop.")
    ] = False,
    rate: Annotated[
        float,
        typer.Option(
            min=0.1, max=1000, help="Requests per second in each step with load. The stand-in alone answers 20."
        ),
    ] = 10.0,
    seconds: Annotated[float, typer.Option(min=1, help="Least seconds of load in each step with load.")] = 30.0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until a request has failed.")] = 10.0,
    ready_seconds: Annotated[
        float, typer.Option(min=10, help="Seconds in which workloads must be ready, with pulls of images.")
    ] = 600.0,
    only: Annotated[list[str] | None, typer.Option(help="Step to run. May be repeated. Default: every step.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the namespace.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for rehearsal.md, rehearsal.html and rehearsal.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rehearse a deployment on the cluster of kubectl's context, and report what broke.

    It deploys an overlay or the chart to a new namespace. A Job in the cluster asks questions while pods, nodes, Redis
    and keys are replaced. It needs no GPU: a stand-in answers instead of Ollama. Draining cordons a node for minutes,
    and moves only the rehearsal's pods.

    Ctrl-C and SIGTERM end it, uncordon the node and remove the namespace. What could not be restored is named with the
    command that does it.

    The exit code is 1 if a step failed, 3 if the cluster cannot be reached.
    """
    steps = _steps(only)
    kubectl = Kubectl(context or "", namespace or f"{NAMESPACE}-{secrets.token_hex(3)}")
    options = Options(image, second_image or "", rate, seconds, timeout, ready_seconds)
    began = datetime.now(UTC)
    try:
        given = parsed(manifests_of(manifests, values or [], kubectl.namespace))
        nodes = _nodes(kubectl)
        changes = Changes(
            kubectl.namespace, image, ollama=ollama or "", small=small, node=nodes[0], served=_served(kubectl)
        )
        rehearsal = _rehearsal(kubectl, rehearsed(given, changes), given, options, nodes)
        found = _facts(rehearsal)
    except Unusable as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    except ClusterUnreachable as error:
        raise exit_with(str(error), UNREACHABLE) from None
    except KubectlError as error:
        raise exit_with(str(error)) from None
    found |= {"manifests": str(manifests), "ollama": ollama or "", "began": began.isoformat(timespec="seconds")}
    with sigterm_interrupts():
        _run(rehearsal, (*steps, *(() if keep else (DELETE,))), found)
        _restore(rehearsal, found, keep=keep)
    _finish(found, out, as_json=as_json)


def _steps(only: list[str] | None) -> tuple[Step, ...]:
    known = {step.name for step in STEPS}
    if unknown := sorted(set(only or []) - known):
        raise exit_with(f"--only {unknown[0]}: the steps are {', '.join(step.name for step in STEPS)}", USAGE_ERROR)
    return chosen(frozenset(only or []))


def _served(kubectl: Kubectl) -> frozenset[str]:
    return frozenset(kubectl.run("api-versions").split())


def _nodes(kubectl: Kubectl) -> tuple[str, ...]:
    """Returns the nodes that take pods. Raises `KubectlError` and `Unusable`."""
    found = tuple(
        str(each["metadata"]["labels"].get("kubernetes.io/hostname", ""))
        for each in kubectl.outside().items("nodes")
        if is_ready(each)
        and not each["spec"].get("unschedulable")
        and all(one["effect"] == "PreferNoSchedule" for one in each["spec"].get("taints", []))
    )
    if not found:
        raise Unusable("the cluster has no node that takes pods")
    return found


def _rehearsal(
    kubectl: Kubectl, adapted: Rehearsed, given: list[Object], options: Options, nodes: tuple[str, ...]
) -> Rehearsal:
    """Raises `KubectlError`, and `Unusable` if the namespace exists."""
    if kubectl.outside().run("get", "namespace", kubectl.namespace, "--ignore-not-found", "--output", "name").strip():
        raise Unusable(f"--namespace {kubectl.namespace}: it exists, and a rehearsal removes its namespace")
    keys = Keys(*(secrets.token_hex(24) for _ in range(3)))
    return Rehearsal(kubectl, adapted, options, keys, namespace_labels(given), nodes[0], nodes)


def _facts(rehearsal: Rehearsal) -> dict[str, Any]:
    """Returns the document before the first step."""
    options = rehearsal.options
    version = json.loads(rehearsal.kubectl.run("version", "--output", "json"))["serverVersion"]["gitVersion"]
    return {
        "kubernetes": version,
        "nodes": len(rehearsal.nodes),
        "replicas": rehearsal.least_replicas,
        "image": options.image,
        "second_image": options.second_image,
        "rate": options.rate,
        "timeout": options.timeout,
        "left_out": list(rehearsal.manifests.left_out),
        "interrupted": "",
        "remains": [],
        "steps": [],
    }


def _run(rehearsal: Rehearsal, steps: tuple[Step, ...], found: dict[str, Any]) -> None:
    """Runs the steps, and adds their results to the document."""
    start = time.monotonic()
    total = len(steps)
    typer.echo(f"Namespace {rehearsal.kubectl.namespace}, {total} steps", err=True)
    try:
        for number, result in enumerate(results(steps, rehearsal, _announce), 1):
            found["steps"].append(result.document())
            typer.echo(_line(number, total, result), err=True)
    except KeyboardInterrupt as signal:
        found["interrupted"] = "by SIGTERM" if isinstance(signal, Terminated) else "by the user"
    except ClusterUnreachable as error:
        found["interrupted"] = str(error)
    found["seconds"] = round(time.monotonic() - start, 1)


def _restore(rehearsal: Rehearsal, found: dict[str, Any], *, keep: bool) -> None:
    """Uncordons the node, and removes the namespace after an interruption. Adds what could not be done, as commands."""
    kubectl = rehearsal.kubectl
    remains = bool(found["interrupted"]) and not keep
    if keep:
        typer.echo(f"Kept: {' '.join(kubectl.outside().command('delete', 'namespace', kubectl.namespace))}", err=True)
    try:
        rehearsal.uncordon()
        if remains:
            typer.echo(f"Removing {kubectl.namespace}", err=True)
            remove_namespace(kubectl)
            remains = False
    except (KubectlError, KeyboardInterrupt):
        commands: list[tuple[str, ...]] = [("uncordon", node) for node in sorted(rehearsal.cordoned)]
        commands += [("delete", "namespace", kubectl.namespace)] if remains else []
        found["remains"] = [" ".join(kubectl.outside().command(*one)) for one in commands]
        for line in found["remains"]:
            typer.echo(f"Run this when the cluster can be reached: {line}", err=True)


def _announce(step: Step) -> None:
    typer.echo(f"        {step.name}: {step.expects} ...", err=True)


def _line(number: int, total: int, result: Result) -> str:
    return f"[{number:>2}/{total}] {result.outcome:<7} {result.name}: {clean(result.seen)} ({result.seconds:.0f} s)"


def _finish(found: dict[str, Any], out: Path | None, *, as_json: bool) -> None:
    """Prints and writes the report. Ends the command with the exit code."""
    found["ok"], _ = verdict(found)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / "rehearsal.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            (out / "rehearsal.md").write_text(markdown(found), encoding="utf-8")
            (out / "rehearsal.html").write_text(page(found), encoding="utf-8")
        except OSError as error:
            raise exit_with(f"--out {out}: {error.strerror or error}", USAGE_ERROR) from None
    if as_json:
        print_document(found)
    else:
        typer.echo(markdown(found))
    if found["interrupted"]:
        raise exit_with(f"interrupted: {found['interrupted']}", INTERRUPTIONS.get(found["interrupted"], UNREACHABLE))
    if not found["ok"]:
        raise typer.Exit(FAILED)
