"""Renders an overlay with `kubectl kustomize`, or a chart with `helm template`."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ragherd.rehearsal.manifests import SERVICE, Unusable

RENDER_SECONDS: Final = 60.0


def manifests_of(folder: Path, values: Sequence[Path], namespace: str) -> str:
    """Returns the manifests of a folder as YAML. Raises `Unusable`."""
    if (folder / "Chart.yaml").is_file():
        files = [option for one in values for option in ("--values", str(one))]
        return _printed(["helm", "template", SERVICE, str(folder), "--namespace", namespace, *files])
    if values:
        raise Unusable("--values needs a chart")
    if not (folder / "kustomization.yaml").is_file():
        raise Unusable(f"{folder}: has neither a kustomization.yaml nor a Chart.yaml")
    return _printed(["kubectl", "kustomize", str(folder)])


def _printed(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the operator's programs, without a shell
            command, capture_output=True, text=True, timeout=RENDER_SECONDS, check=False
        )
    except FileNotFoundError:
        raise Unusable(f"{command[0]} is not on the path") from None
    except subprocess.TimeoutExpired:
        raise Unusable(f"{command[0]} took over {RENDER_SECONDS:g} s") from None
    if done.returncode:
        raise Unusable(f"{command[0]}: {' '.join(done.stderr.split())[-400:]}")
    return done.stdout
