"""The values of WORKER_MEMORY_LIMIT, and which workers exceed it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from worker_config.limits import available_memory, limit_in_bytes
from worker_config.memory_guard import MIB, MemoryGuard, resident_bytes


def machine(root: Path, membership: str, **files: str) -> Path:
    for name, text in {"proc/self/cgroup": membership, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("written", "expected"),
    [("900000000", 900_000_000), ("800Mi", 800 * MIB), ("1.5G", 1_500_000_000), ("2Gi", 2048 * MIB), ("512K", 512_000)],
)
def test_amounts_are_parsed(written: str, expected: int) -> None:
    assert limit_in_bytes(written) == expected


def test_a_percentage_refers_to_the_control_group_limit(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/pod/one\n", **{"sys/fs/cgroup/pod/memory.max": str(1000 * MIB)})
    assert limit_in_bytes("40%", root) == 400 * MIB


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/\n", {"sys/fs/cgroup/memory.max": "max\n"}),
        ("3:memory:/\n", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}),
        ("", {}),
    ],
)
def test_without_a_limit_it_refers_to_the_memory_of_the_machine(
    tmp_path: Path, membership: str, files: dict[str, str]
) -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_memory(machine(tmp_path, membership, **files)) == whole


def test_the_smallest_limit_holds_in_version_1(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": str(64 * MIB)}
    assert available_memory(machine(tmp_path, "3:memory:/a/b\n", **files)) == 64 * MIB


def test_a_live_process_uses_memory_and_a_dead_one_none() -> None:
    assert resident_bytes(os.getpid()) > MIB
    assert resident_bytes(2**30) == 0


def guard(limit: int | None, uses: dict[int, int]) -> MemoryGuard:
    return MemoryGuard(limit, lambda pid: uses[pid])


def test_a_worker_past_the_limit_is_reported() -> None:
    uses = {1: 100 * MIB, 2: 100 * MIB}
    memory = guard(200 * MIB, uses)
    assert [memory.is_over(1), memory.is_over(2)] == [False, False]
    uses[2] = 201 * MIB
    assert [memory.is_over(1), memory.is_over(2)] == [False, True]
    assert memory.describe(2) == "it uses 201 MiB, WORKER_MEMORY_LIMIT is 200 MiB"


def test_without_a_limit_no_worker_is_reported() -> None:
    assert guard(None, {1: 2**50}).is_over(1) is False


def test_a_limit_below_the_initial_size_waits_for_growth_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    uses = {1: 190 * MIB}
    memory = guard(200 * MIB, uses)
    with caplog.at_level(logging.WARNING, "gunicorn.error"):
        assert not memory.is_over(1)
        uses[1] = 210 * MIB
        assert not memory.is_over(1)
        uses[1] = 240 * MIB
        assert memory.is_over(1)
    assert [record.getMessage() for record in caplog.records] == [
        "WORKER_MEMORY_LIMIT (200 MiB) is too close to a worker's initial memory (190 MiB): replacing at 237 MiB"
    ]


def test_a_reused_process_id_starts_over() -> None:
    uses = {1: 500 * MIB}
    memory = guard(200 * MIB, uses)
    assert not memory.is_over(1)
    memory.forget(1)
    uses[1] = 100 * MIB
    assert not memory.is_over(1)
    uses[1] = 300 * MIB
    assert memory.is_over(1)
