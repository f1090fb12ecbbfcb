"""What admins do to a whole deployment: read the audit log, and erase a tenant."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request

from api.endpoints.audit import audited
from api.endpoints.health import worker_state
from api.endpoints.query import Name
from api.endpoints.routes import CheckedRoute, needs
from api.endpoints.validation import rfc3339
from api.ports.audit import AuditEntry

AUDIT: Final = "/api/audit"
TENANTS: Final = "/api/tenants"

router = APIRouter(route_class=CheckedRoute, tags=["operations"])


@router.get(AUDIT, summary="List the actions of admins, newest first")
@needs("admin")
async def audit(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[str | None, Query(pattern=r"^\d{1,16}-\d{1,16}$")] = None,
) -> dict[str, Any]:
    """At least the last 10,000. `before` is the `id` of an entry. `ragherd audit --verify` checks the hashes."""
    found = await worker_state(request).audit.page(limit, before)
    return {"entries": [_shown(entry) for entry in found]}


def _shown(entry: AuditEntry) -> dict[str, Any]:
    record = entry.record
    return {
        "id": entry.id,
        "number": entry.number,
        "time": rfc3339(entry.at_ms),
        "at_ms": entry.at_ms,
        "action": record.action,
        "by": record.by,
        "role": record.role,
        "request_id": record.request,
        "worker": record.worker,
        "details": dict(record.details),
        "previous": entry.previous,
        "hash": entry.hash,
    }


@router.delete(f"{TENANTS}/{{tenant:path}}", summary="Erase a tenant")
@needs("admin")
async def erase_tenant(request: Request, tenant: Name, dry_run: bool = False) -> dict[str, Any]:
    """Delete everything of a tenant: documents, answers, labels, feedback. You can repeat it.

    After the response no worker serves or stores an answer to a question from before it.
    """
    if not dry_run:
        await audited(request, "tenant.erase", tenant=tenant)
    erased = await worker_state(request).erase_tenant(tenant, dry_run)
    return {"erased": dict(erased), "dry_run": dry_run}
