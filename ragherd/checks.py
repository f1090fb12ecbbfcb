"""The result of a check, and how `ragherd doctor`, `preflight` and `smoke` report theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from ragherd.exits import FAILED
from ragherd.service_client import clean, print_document


@dataclass(frozen=True, slots=True)
class Check:
    """`detail` is what was found, `advice` what to do. A check that is `ok` and has advice is a warning."""

    name: str
    ok: bool
    detail: str
    advice: str = ""

    def line(self) -> str:
        """Returns the check as a line of text."""
        mark = "FAIL" if not self.ok else "warn" if self.advice else "ok"
        advice = f". {clean(self.advice)}" if self.advice else ""
        return f"{mark:<5} {self.name}: {clean(self.detail).removesuffix('.' if advice else '')}{advice}"


def document(checks: Sequence[Check]) -> dict[str, Any]:
    """Returns the checks as JSON."""
    rows = [{"name": one.name, "ok": one.ok, "detail": one.detail, "advice": one.advice or None} for one in checks]
    return {"ok": all(one.ok for one in checks), "checks": rows}


def report(checks: Sequence[Check], code: int = FAILED, *, as_json: bool, **more: Any) -> None:
    """Prints the checks, as JSON with `more` fields. Ends the command with `code` if one of them failed."""
    if as_json:
        print_document({**document(checks), **more})
    else:
        typer.echo("\n".join(one.line() for one in checks))
        failed, warned = sum(not one.ok for one in checks), sum(one.ok and bool(one.advice) for one in checks)
        typer.echo(f"{len(checks)} checks: {failed} failed, {warned} with a warning")
    if not all(one.ok for one in checks):
        raise typer.Exit(code)
