"""The ACL rule of `ragherd redis-acl` grants exactly what the code uses. The integration tests run with it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api.ports.answer_cache import Store
from api.redis_store.acl import acl_commands, acl_line
from ragherd.commands import commands

STORE = Path(__file__).parents[2] / "api" / "redis_store"
BY_REDIS_PY = {"client|setinfo", "evalsha", "exec", "multi", "script|exists", "script|load"}
"""Commands that redis-py sends by itself: when it connects, and for scripts and transactions."""
GUARDS = ("prelude", "breaker", "bulkhead")
STORES: tuple[Store, ...] = ("main", "breaker")


def by_scripts(*names: str) -> set[str]:
    """Returns the commands that these Lua files call, or those of all files."""
    files = [path for path in STORE.rglob("*.lua") if not names or path.stem in names]
    assert len(files) >= len(names)
    found = re.findall(r"redis\.p?call\(\s*['\"]([A-Za-z.]+)", "\n".join(path.read_text() for path in files))
    return {name.lower() for name in found}


def by_python() -> set[str]:
    """Returns possible commands in the Python files: methods of a client or pipeline, and names of search commands."""
    text = "\n".join(path.read_text() for path in STORE.rglob("*.py") if path.name != "acl.py")
    methods = re.findall(r"\b(?:client|pipe|subscribed)\.([a-z_]+)\(", text)
    named = {"delete": "del", "create": "ft.create"}
    searches = {name.lower() for name in re.findall(r"\"(FT\.[A-Z_]+)\"", text)}
    made = {"ft.create"} if ".create_index(" in text else set()
    of_two = {name.lower().replace(" ", "|") for name in re.findall(r"\"((?:CLIENT|CLUSTER) [A-Z]+)\"", text)}
    return {named.get(name, name) for name in methods} | searches | made | of_two


@pytest.mark.parametrize("separate", [True, False])
def test_every_command_of_the_scripts_is_granted(separate: bool) -> None:
    guards, others = by_scripts(*GUARDS), {*by_scripts()} - by_scripts(*GUARDS)
    assert len(guards) > 10
    assert guards <= set(acl_commands("breaker"))
    assert others <= set(acl_commands("main", separate=separate))
    if not separate:
        assert guards <= set(acl_commands("main"))


def test_cluster_commands_are_granted_only_on_a_cluster() -> None:
    asked = {name for name in by_python() if name.startswith("cluster|")}
    assert len(asked) == 2
    for store in STORES:
        assert set(acl_commands(store, cluster=True)) - set(acl_commands(store)) == asked


def test_no_unused_command_is_granted() -> None:
    used = by_scripts() | by_python() | BY_REDIS_PY
    assert set(acl_commands("main", cluster=True)) - used == set()
    assert set(acl_commands("breaker")) - by_scripts(*GUARDS) - by_python() - BY_REDIS_PY == set()
    assert not [name for name in acl_commands("main") if name.startswith(("config", "keys", "flush", "acl", "eval|"))]


def test_the_breaker_user_can_access_only_breaker_keys() -> None:
    line = acl_line("breaker", user="guard", prefix="rag:", password="secret")
    assert re.findall(r"[~&]\S+", line) == ["~rag:cb:*", "~rag:bulkhead:*", "~rag:probe", "&rag:*"]
    assert not re.search(r"ft\.|scan", line)


def test_the_line_contains_only_a_digest_of_the_password() -> None:
    line = acl_line("main", user="ragherd", prefix="mine:", password="secret")
    assert line.startswith(f"user ragherd on #{hashlib.sha256(b'secret').hexdigest()} ~mine:* &mine:* -@all +")
    assert "secret" not in line


@pytest.mark.parametrize(("arguments", "store"), [([], "main"), (["--breaker"], "breaker")])
def test_the_command_prints_the_line(monkeypatch: pytest.MonkeyPatch, arguments: list[str], store: Store) -> None:
    monkeypatch.setenv("REDIS_PREFIX", "mine:")
    ran = CliRunner().invoke(commands, ["redis-acl", "--password-stdin", *arguments], input="secret\n")
    assert ran.exit_code == 0
    assert ran.output == acl_line(store, user="ragherd", prefix="mine:", password="secret") + "\n"
    document = CliRunner().invoke(commands, ["redis-acl", "--password-stdin", "--json", *arguments], input="secret\n")
    assert json.loads(document.stdout) == {"rules": [ran.output.removesuffix("\n")]}


@pytest.mark.parametrize(("variable", "arguments"), [("REDIS_URL", []), ("BREAKER_REDIS_URL", ["--breaker"])])
def test_the_command_recognizes_a_cluster_url(
    monkeypatch: pytest.MonkeyPatch, variable: str, arguments: list[str]
) -> None:
    assert "+cluster|slots" not in CliRunner().invoke(commands, ["redis-acl", *arguments]).output
    monkeypatch.setenv(variable, "rediss+cluster://node:6379")
    assert "+cluster|slots" in CliRunner().invoke(commands, ["redis-acl", *arguments]).output


def test_without_a_password_the_line_has_a_placeholder_that_redis_rejects() -> None:
    ran = CliRunner().invoke(commands, ["redis-acl"])
    assert "user ragherd on #<sha256-of-the-password> ~rag:* " in ran.output


@pytest.mark.parametrize("arguments", [["--user", "a b"], ["--password-stdin"]])
def test_invalid_users_and_passwords_are_rejected(arguments: list[str]) -> None:
    ran = CliRunner().invoke(commands, ["redis-acl", *arguments], input="\n")
    assert ran.exit_code == 2
    assert ran.output.startswith("ragherd: --")


@pytest.mark.parametrize("prefix", ["*", "rag: ~*", ""])
def test_a_prefix_that_would_grant_more_is_rejected(prefix: str) -> None:
    ran = CliRunner().invoke(commands, ["redis-acl", "--prefix", prefix])
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "--prefix" in ran.stderr
