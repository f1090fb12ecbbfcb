"""`ragherd audit`: list the actions of admins, and verify their chain of hashes."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from api.ports.audit import AuditEntry, AuditRecord, chain_fault, has_hash
from ragherd.exits import FAILED
from ragherd.service_client import (
    AsJson,
    ServiceClient,
    Url,
    clean,
    connected,
    moment,
    new_table,
    print_document,
    terminal,
)

PATH: Final = "/api/audit"
PAGE: Final = 1000


def audit(
    limit: Annotated[int, typer.Option(min=1, help="Most entries to list.")] = 20,
    verify: Annotated[bool, typer.Option("--verify", help="Check the hashes of all entries.")] = False,
    known: Annotated[
        str | None, typer.Option("--hash", help="With --verify: a hash from the log that the chain must have.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List the actions of admins, newest first. Needs an admin key.

    The exit code of --verify is 1 if an entry was changed, removed or inserted, or if the chain lacks the hash.
    """
    with connected(url) as service:
        entries = _entries(service, None if verify else limit)
    fault = _fault(entries, known) if verify else None
    if as_json:
        verdict = {"verified": fault is None, "fault": fault, "kept": len(entries)} if verify else {}
        print_document({**verdict, "entries": entries[:limit]})
    else:
        _show(entries[:limit])
        if verify:
            typer.echo(fault or _whole(entries))
    if fault is not None:
        raise typer.Exit(FAILED)


def _entries(service: ServiceClient, limit: int | None) -> list[dict[str, Any]]:
    """Returns the entries, newest first: all of them, or as many as wanted."""
    found: list[dict[str, Any]] = []
    before: str | None = None
    while limit is None or len(found) < limit:
        wanted = PAGE if limit is None else min(PAGE, limit - len(found))
        page = service.get(PATH, field="entries", limit=wanted, before=before)["entries"]
        found += page
        if len(page) < wanted:
            break
        before = page[-1]["id"]
    return found


def _fault(entries: list[dict[str, Any]], known: str | None) -> str | None:
    chain = [_entry(shown) for shown in reversed(entries)]
    fault = chain_fault(chain)
    if fault is None and known is not None and not has_hash(chain, known):
        return "The chain lacks the given hash: it was replaced, or the entry is older than those kept."
    return fault


def _entry(shown: dict[str, Any]) -> AuditEntry:
    action, by, role, request, worker = (shown[name] for name in ("action", "by", "role", "request_id", "worker"))
    record = AuditRecord(action, by, role, request, worker, shown["details"])
    return AuditEntry(shown["number"], shown["at_ms"], record, shown["previous"], shown["hash"], shown["id"])


def _whole(entries: list[dict[str, Any]]) -> str:
    if not entries:
        return "The chain is empty."
    newest, oldest = entries[0], entries[-1]
    return f"The chain is whole: entries {oldest['number']:,} to {newest['number']:,}, last hash {newest['hash']}."


def _show(entries: list[dict[str, Any]]) -> None:
    table = new_table("number", "time", "action", "details", "by", "request")
    for one in entries:
        details = " ".join(f"{name}={value}" for name, value in one["details"].items())
        cells = (one["action"], details, one["by"], one["request_id"])
        table.add_row(f"{one['number']:,}", moment(one["time"]), *map(clean, cells))
    terminal().print(table)
