"""`ragherd keys`: the API keys in Redis."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from ragherd.exits import USAGE_ERROR, exit_with
from ragherd.service_client import (
    AsJson,
    Url,
    clean,
    connected,
    moment,
    new_table,
    print_document,
    terminal,
)

PATH: Final = "/api/keys"


class KeysAction(StrEnum):
    """The actions of `ragherd keys`."""

    LIST = "list"
    CREATE = "create"
    ROTATE = "rotate"
    REVOKE = "revoke"


class KeyRoleOption(StrEnum):
    """The roles of keys."""

    USER = "user"
    OPERATOR = "operator"
    ADMIN = "admin"


def keys(
    action: Annotated[KeysAction, typer.Argument(help="What to do.")] = KeysAction.LIST,
    key_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="For rotate and revoke: the key's ID.")] = None,
    tenant: Annotated[str | None, typer.Option(help="For create: its tenant. For list: only these.")] = None,
    role: Annotated[KeyRoleOption, typer.Option(help="For create.")] = KeyRoleOption.USER,
    name: Annotated[str | None, typer.Option(help="For create: who uses it.")] = None,
    days: Annotated[
        float | None, typer.Option(min=0.001, max=36_500, help="For create: it expires after. Default: never.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="For create: a model that it may use; repeatable. Default: all.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="For create. Default: no limit.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="For create. Default: no limit.")] = None,
    tokens_per_day: Annotated[
        int | None, typer.Option(min=1, help="For create: generated tokens. Default: no limit.")
    ] = None,
    tokens_per_month: Annotated[
        int | None, typer.Option(min=1, help="For create: generated tokens. Default: no limit.")
    ] = None,
    concurrent_streams: Annotated[int | None, typer.Option(min=1, help="For create. Default: no limit.")] = None,
    overlap: Annotated[
        int, typer.Option(min=0, max=2_592_000, help="For rotate: seconds that the former secret works on.")
    ] = 0,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Manage the API keys in Redis, without a restart.

    `create` and `rotate` print the secret: nobody can read it later. `revoke` is known to every worker within a second.
    All need an admin key.
    """
    with connected(url) as service:
        if action is KeysAction.LIST:
            found = service.get(PATH, field="keys", tenant=tenant)
        elif action is KeysAction.CREATE:
            if tenant is None:
                raise exit_with("create: give --tenant", USAGE_ERROR)
            limits = {
                "requests_per_minute": requests_per_minute,
                "tokens_per_minute": tokens_per_minute,
                "tokens_per_day": tokens_per_day,
                "tokens_per_month": tokens_per_month,
                "concurrent_streams": concurrent_streams,
            }
            found = service.send(
                "POST", PATH, field="secret", json=_body(tenant, role, name, days, model) | _given(limits)
            )
        elif key_id is None:
            raise exit_with(f"{action}: name the key's ID", USAGE_ERROR)
        elif action is KeysAction.ROTATE:
            path, params = f"{PATH}/{quote(key_id, safe='')}/rotate", {"overlap_seconds": overlap}
            found = service.send("POST", path, field="secret", params=params)
        else:
            found = service.send("DELETE", f"{PATH}/{quote(key_id, safe='')}", field="id")
        if as_json:
            print_document(found)
        else:
            _show(action, found)


def _body(
    tenant: str, role: KeyRoleOption, name: str | None, days: float | None, models: list[str] | None
) -> dict[str, Any]:
    body: dict[str, Any] = {"tenant": tenant, "role": role.value}
    if name is not None:
        body["name"] = name
    if days is not None:
        body["expires_at"] = (datetime.now(UTC) + timedelta(days=days)).isoformat()
    if models:
        body["models"] = models
    return body


def _given(limits: dict[str, int | None]) -> dict[str, int]:
    return {name: limit for name, limit in limits.items() if limit is not None}


def _show(action: KeysAction, found: Any) -> None:
    if action is KeysAction.LIST:
        table = new_table("id", "tenant", "role", "name", "created", "expires", "last used", "models")
        for one in found["keys"]:
            times = (moment(one[name]) for name in ("created_at", "expires_at", "last_used_at"))
            models = ", ".join(one["models"]) or "all"
            table.add_row(*map(clean, (one["id"], one["tenant"], one["role"], one["name"], *times, models)))
        terminal().print(table)
    elif action is KeysAction.REVOKE:
        typer.echo(f"revoked: {clean(found['id'])}")
    else:
        typer.echo(clean(found["secret"]))
        typer.echo(f"The secret of {clean(found['id'])}. It is not shown again.", err=True)
