"""Erasing a tenant."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request

from api.endpoints.audit import audited
from api.endpoints.health import worker_state
from api.endpoints.middleware import CheckedRoute, needs
from api.endpoints.query import Name

PATH: Final = "/api/tenants"

router = APIRouter(route_class=CheckedRoute, tags=["operations"])


@router.delete(f"{PATH}/{{tenant:path}}", summary="Erase a tenant")
@needs("admin")
async def erase(request: Request, tenant: Name, dry_run: bool = False) -> dict[str, Any]:
    """Delete everything of a tenant: documents, answers, labels, feedback. You can repeat it.

    After the response no worker serves or stores an answer to a question from before it.
    """
    if not dry_run:
        await audited(request, "tenant.erase", tenant=tenant)
    erased = await worker_state(request).erase_tenant(tenant, dry_run)
    return {"erased": dict(erased), "dry_run": dry_run}
