"""Imports point one way. If you need an import that is not allowed here, move the code instead."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUR_IMPORT = re.compile(
    r"^[ \t]*((?:from|import)[ \t]+(?:\.|(?:api|ragherd|training|worker_config)\b)(?:[^(\n]*\([^)]*\)|[^(\n]*))",
    re.MULTILINE,
)
"""Parsing the whole of each file takes twenty times as long. The style allows one module to an `import`."""

# A room may import itself and those named. `api` alone is its version.
ALLOWED: dict[str, set[str]] = {
    "api.values": set(),
    "api.errors": set(),
    "api.loopback": set(),
    "api.module_command": set(),
    "api.settings": {"api.errors", "api.loopback"},
    "api.ports": {"api.errors", "api.values"},
    "api.cancellation": {"api.errors"},
    "api.breaker": {"api.cancellation", "api.errors", "api.values"},
    "api.bulkhead": {"api.cancellation", "api.errors", "api.ports", "api.values"},
    "api.single_flight": {"api.cancellation", "api.ports", "api.values", "api.errors"},
    "api.unicode_text": set(),
    "api.backends": {"api.cancellation", "api.ports", "api.values", "api.errors"},
    "api.languages": set(),
    "api.guards": {"api.languages", "api.unicode_text"},
    "api.quality": {"api.ports", "api.values", "api.errors", "api.guards", "api.languages", "api.unicode_text"},
    "api.knowledge": {
        "api.languages",
        "api.module_command",
        "api.cancellation",
        "api.ports",
        "api.values",
        "api.errors",
        "api.unicode_text",
    },
    "api.query": {
        "api.quality",
        "api.unicode_text",
        "api.backends",
        "api.knowledge",
        "api.guards",
        "api.languages",
        "api.cancellation",
        "api.ports",
        "api.values",
        "api.errors",
    },
    "api.embedders": {"api.cancellation", "api.ports", "api.values", "api.errors"},
    "api.ollama": {"api.languages", "api.cancellation", "api.ports", "api.values", "api.errors"},
    "api.redis_store": {
        "api.languages",
        "api.cancellation",
        "api.ports",
        "api.values",
        "api.errors",
        "api.quality",
        "api.breaker",
        "api.bulkhead",
        "api.single_flight",
    },
    "api.observability": {
        "api",
        "api.values",
        "api.errors",
        "api.ports",
        "api.breaker",
        "api.bulkhead",
        "api.single_flight",
        "api.ollama",
        "api.redis_store",
    },
    "api.endpoints": {
        "api.backends",
        "api.languages",
        "api.unicode_text",
        "api.cancellation",
        "api.knowledge",
        "api.query",
        "api.breaker",
        "api.bulkhead",
        "api.ports",
        "api.values",
        "api.loopback",
        "api.errors",
    },
    "api.embedded": {
        "api.module_command",
        "api.cancellation",
        "api.embedders",
        "api.ports",
        "api.values",
        "api.settings",
        "api.errors",
        "worker_config",
    },
    "api.scaling": set(),
    "api.backup": {"api.ports", "api.values", "api.errors"},
    "ragherd": {
        "api.embedders",
        "api.guards",
        "api.languages",
        "api.ports",
        "api.quality",
        "api.query",
        "api.values",
        "api.backup",
        "api.wiring.backup",
        "api.wiring.check",
        "training",
        "worker_config",
        "api.knowledge",
        "api.embedded",
        "api.redis_store",
        "api.scaling",
        "api.settings",
        "api.errors",
        "api",
    },
    "api.wiring.worker": {"*"},
    "api.wiring.backends": {"*"},
    "api.wiring.cache": {"*"},
    "api.wiring.knowledge": {"*"},
    "api.wiring.redis": {"*"},
    "api.wiring.backup": {"*"},
    "api.wiring.check": {"*"},
    "api.app": {"api.wiring.worker", "api.endpoints", "api.observability", "api.settings", "api"},
    "api.asgi": {"api.app", "api.settings"},
    "worker_config": {"api.module_command", "api.settings", "api.errors", "api.observability"},
    "training": {"api.embedders", "api.guards", "api.ports", "api.errors"},
}
ABOVE_WIRING = {"api.app", "api.asgi", "ragherd", "api.embedded"}
PARTS = {*ABOVE_WIRING, "api.wiring.worker", "api.endpoints"}
NEVER = {
    "api.wiring.worker": ABOVE_WIRING,
    "api.wiring.backends": PARTS,
    "api.wiring.cache": PARTS,
    "api.wiring.knowledge": PARTS,
    "api.wiring.redis": PARTS,
    "api.wiring.backup": PARTS,
    "api.wiring.check": PARTS,
}


def room_of(module: str) -> str:
    """`api.query.prompt` lives in `api.query`. A module right under `api` or `api.wiring` is a room by itself."""
    parts = module.split(".")
    if parts[0] in ("ragherd", "training", "worker_config"):
        return parts[0]
    return ".".join(parts[: 3 if parts[1:2] == ["wiring"] else 2])


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for statement in OUR_IMPORT.findall(path.read_text("utf-8")):
        (node,) = ast.parse(statement).body
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: relative import"
            assert node.level == 0, f"{path}: relative import"
            found |= {
                f"{node.module}.{alias.name}" if node.module in ("api", "api.wiring") else node.module
                for alias in node.names
            }
    return found


def rooms(module: str) -> str:
    """`from api import __version__` imports the bare package."""
    return "api" if module == "api.__version__" else room_of(module)


def test_imports_point_one_way() -> None:
    wrong: list[str] = []
    files = [path for top in ("api", "ragherd", "training", "worker_config") for path in (ROOT / top).rglob("*.py")]
    assert len(files) > 80
    for path in files:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module in ("api.__init__", "api.wiring.__init__"):
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
        "api.wiring.worker",
        "api.wiring.backends",
        "api.wiring.cache",
        "api.wiring.knowledge",
        "api.wiring.redis",
        "api.wiring.backup",
        "api.wiring.check",
        "api.app",
        "api.asgi",
        "api.embedded",
        "ragherd",
        "worker_config",
    }
