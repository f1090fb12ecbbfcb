"""`ragherd reencrypt`: after a change of ENCRYPTION_KEYS, rewrites the texts in Redis that have another key."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from api.errors import SettingsError, StoreUnavailable
from api.settings import load_settings
from api.wiring.backup import reencrypt as rewritten
from ragherd.exits import USAGE_ERROR, exit_with
from ragherd.service_client import AsJson, print_document


def reencrypt(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only.")] = False, as_json: AsJson = False
) -> None:
    """Encrypt texts in Redis again with the first key of ENCRYPTION_KEYS; with `plain` as the first, decrypt them.

    The service can keep running. Exit code 1 if a text cannot be decrypted, or is still to be encrypted again.
    """
    try:
        counts = asyncio.run(rewritten(load_settings(), dry_run=dry_run))
    except SettingsError as error:
        raise exit_with(str(error), USAGE_ERROR) from None
    except StoreUnavailable as error:
        raise exit_with(f"{error}; run the command again to continue") from None
    kinds = dict.fromkeys(kind for kind, _ in sorted(counts))
    found = {kind: {outcome: count for (of, outcome), count in sorted(counts.items()) if of == kind} for kind in kinds}
    if as_json:
        print_document({**found, "dry_run": dry_run})
    else:
        for kind, outcomes in found.items():
            typer.echo(f"{kind}: " + ", ".join(f"{outcome} {count:,}" for outcome, count in outcomes.items()))
        typer.echo("Nothing was changed." if dry_run else "Done.")
    left = sum(count for (_, outcome), count in counts.items() if outcome in ("changed", "unreadable", "waiting"))
    if left:
        raise exit_with(f"{left:,} texts are left: add the keys of unreadable ones, and run the command again")
