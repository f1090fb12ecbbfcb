"""`ragherd keys` against the real service."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import httpx
from typer.testing import CliRunner, Result

from ragherd.commands import commands
from tests.support.service import Service

ADMIN = "the-admin-key"
SETTINGS: dict[str, Any] = {
    "access": {"require_keys": True, "admin_keys": ADMIN},
    "server": {"log_level": "error"},  # its log would be part of what the command prints
}


async def run(client: httpx.AsyncClient, *arguments: str, code: int = 0) -> Result:
    command = ["keys", *arguments, "--url", str(client.base_url)]
    environment = {"COLUMNS": "200", "RAGHERD_API_KEY": ADMIN}
    result = await asyncio.to_thread(partial(CliRunner().invoke, commands, command, env=environment))
    assert result.exit_code == code, result.output
    return result


async def test_a_key_from_its_creation_to_its_end(serve: Service) -> None:
    client = await serve(**SETTINGS)
    made = await run(client, "create", "--tenant", "acme", "--name", "web shop", "--days", "1", "--model", "llama3.2")
    secret = made.stdout.strip()
    assert "not shown again" in made.stderr
    headers = {"Authorization": f"Bearer {secret}"}
    assert (await client.post("/query", json={"question": "Who?"}, headers=headers)).status_code == 200
    (listed,) = json.loads((await run(client, "--json")).stdout)["keys"]
    assert (listed["name"], listed["models"]) == ("web shop", ["llama3.2"])
    table = (await run(client, "list")).stdout
    assert "web shop" in table
    assert secret not in table
    rotated = json.loads((await run(client, "rotate", listed["id"], "--json")).stdout)
    assert rotated["secret"] != secret
    assert ADMIN not in made.output
    assert (await run(client, "revoke", listed["id"])).stdout == f"revoked: {listed['id']}\n"
    assert "There is no key" in (await run(client, "revoke", listed["id"], code=1)).output
    await run(client, "create", code=2)
    await run(client, "rotate", code=2)
