"""Imports point one way. Whoever needs an arrow that is not here moves the code, not the arrow."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]

# A room may import itself and those named. `api` alone is its version.
ALLOWED: dict[str, set[str]] = {
    "api.faults": set(),
    "api.model": set(),
    "api.errors": {"api.faults"},
    "api.loopback": set(),
    "api.settings": {"api.errors", "api.loopback", "api.redis_tls_files"},
    "api.redis_tls_files": {"api.errors"},
    "api.ports": {"api.model"},
    "api.background": set(),
    "api.cancel_scope": {"api.background"},
    "api.lag_timeout": {"api.cancel_scope"},
    "api.reachability": {"api.background"},
    "api.breaker": {"api.background", "api.errors", "api.faults", "api.model"},
    "api.bulkhead": {"api.background", "api.cancel_scope", "api.errors"},
    "api.flights": {"api.background", "api.cancel_scope", "api.ports", "api.model", "api.errors", "api.faults"},
    "api.batch_size": set(),
    "api.module_command": set(),
    "api.unicode_text": set(),
    "api.backends": {"api.batch_size", "api.cancel_scope", "api.ports", "api.model", "api.errors", "api.faults"},
    "api.languages": set(),
    "api.guards": {"api.languages", "api.unicode_text"},
    "api.knowledge": {
        "api.module_command",
        "api.background",
        "api.batch_size",
        "api.ports",
        "api.model",
        "api.errors",
        "api.unicode_text",
    },
    "api.query": {
        "api.unicode_text",
        "api.backends",
        "api.knowledge",
        "api.guards",
        "api.languages",
        "api.background",
        "api.cancel_scope",
        "api.lag_timeout",
        "api.ports",
        "api.model",
        "api.errors",
        "api.faults",
    },
    "api.embedders": {"api.lag_timeout", "api.ports", "api.model", "api.errors"},
    "api.ollama": {
        "api.languages",
        "api.background",
        "api.cancel_scope",
        "api.lag_timeout",
        "api.ports",
        "api.model",
        "api.errors",
        "api.faults",
    },
    "api.redis_store": {
        "api.lag_timeout",
        "api.ports",
        "api.model",
        "api.errors",
        "api.breaker",
        "api.bulkhead",
        "api.flights",
    },
    "api.observability": {
        "api",
        "api.model",
        "api.errors",
        "api.faults",
        "api.ports",
        "api.breaker",
        "api.bulkhead",
        "api.flights",
        "api.query",
        "api.redis_store",
    },
    "api.endpoints": {
        "api.backends",
        "api.unicode_text",
        "api.background",
        "api.cancel_scope",
        "api.knowledge",
        "api.query",
        "api.breaker",
        "api.bulkhead",
        "api.ports",
        "api.model",
        "api.loopback",
        "api.errors",
        "api.faults",
    },
    "api.embedded": {
        "api.background",
        "api.embedders",
        "api.ports",
        "api.model",
        "api.module_command",
        "api.settings",
        "api.errors",
        "worker_config",
    },
    "api.scaling": set(),
    "api.backup": {"api.ports", "api.model", "api.errors"},
    "api.cli": {
        "api.backup",
        "api.wiring_backup",
        "api.wiring_check",
        "api.knowledge",
        "api.embedded",
        "api.redis_store",
        "api.scaling",
        "api.settings",
        "api.errors",
        "api",
        "worker_config",
    },
    "api.wiring": {"*"},
    "api.wiring_backends": {"*"},
    "api.wiring_cache": {"*"},
    "api.wiring_knowledge": {"*"},
    "api.wiring_redis": {"*"},
    "api.wiring_backup": {"*"},
    "api.wiring_check": {"*"},
    "api.app": {"api.wiring", "api.endpoints", "api.observability", "api.settings", "api"},
    "api.asgi": {"api.app", "api.settings"},
    "worker_config": {"api.module_command", "api.settings", "api.errors", "api.observability"},
}
ABOVE_WIRING = {"api.app", "api.asgi", "api.cli", "api.embedded"}
PARTS = {*ABOVE_WIRING, "api.wiring", "api.endpoints"}
NEVER = {
    "api.wiring": ABOVE_WIRING,
    "api.wiring_backends": PARTS,
    "api.wiring_cache": PARTS,
    "api.wiring_knowledge": PARTS,
    "api.wiring_redis": PARTS,
    "api.wiring_backup": PARTS,
    "api.wiring_check": PARTS,
}


def room_of(module: str) -> str:
    """`api.query.prompt` lives in `api.query`; modules right under `api` are rooms of their own."""
    parts = module.split(".")
    return parts[0] if parts[0] == "worker_config" else ".".join(parts[:2])


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" if node.module == "api" else node.module for alias in node.names}
    return {name for name in found if name.split(".")[0] in {"api", "worker_config"}}


def rooms(module: str) -> str:
    """`from api import __version__` imports the bare package."""
    return "api" if module == "api.__version__" else room_of(module)


def test_imports_point_one_way() -> None:
    wrong: list[str] = []
    files = [path for top in ("api", "worker_config") for path in (ROOT / top).rglob("*.py")]
    assert len(files) > 80
    for path in files:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module == "api.__init__":
            continue
        room = room_of(module)
        for imported in imports_of(path):
            target = rooms(imported)
            allowed = ALLOWED[room]
            if target != room and ("*" not in allowed or target in NEVER[room]) and target not in allowed:
                wrong.append(f"{module} imports {imported}")
    assert not wrong, "\n".join(sorted(wrong))


def test_only_wiring_names_adapters_and_only_app_and_wiring_read_settings() -> None:
    adapters = {"api.redis_store", "api.ollama", "api.embedders"}
    for room in ("api.query", "api.backends", "api.endpoints", "api.breaker", "api.bulkhead", "api.app"):
        assert not adapters & ALLOWED[room]
    readers = {room for room, allowed in ALLOWED.items() if "api.settings" in allowed or "*" in allowed}
    assert readers == {
        "api.wiring",
        "api.wiring_backends",
        "api.wiring_cache",
        "api.wiring_knowledge",
        "api.wiring_redis",
        "api.wiring_backup",
        "api.wiring_check",
        "api.app",
        "api.asgi",
        "api.embedded",
        "api.cli",
        "worker_config",
    }
