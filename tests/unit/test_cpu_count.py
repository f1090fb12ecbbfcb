"""The number of CPUs on a machine and in a container."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker_config.limits import available_cpus, cpu_quota, limited_cpus


@pytest.mark.parametrize(
    ("affinity", "quota", "expected"),
    [(8, None, 8), (8, 2.0, 2), (8, 1.5, 2), (8, 0.25, 1), (2, 4.0, 2), (1, None, 1)],
)
def test_the_smaller_of_affinity_and_quota_counts_and_at_least_one(
    affinity: int, quota: float | None, expected: int
) -> None:
    assert limited_cpus(affinity, quota) == expected


def _machine(root: Path, membership: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": membership, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        pytest.param("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5, id="version 2, in a container"),
        pytest.param("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None, id="version 2, no limit"),
        pytest.param(
            "0::/pods/one\n",
            {"sys/fs/cgroup/pods/cpu.max": "200000 100000\n", "sys/fs/cgroup/pods/one/cpu.max": "max 100000\n"},
            2.0,
            id="version 2, the limit is on the group above",
        ),
        pytest.param(
            "4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
            {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            0.5,
            id="version 1, the path is the host's",
        ),
        pytest.param(
            "4:cpu:/\n",
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            None,
            id="version 1, no limit",
        ),
        pytest.param("3:cpuset:/\n", {"sys/fs/cgroup/cpuset/cpuset.cpus": "0-1\n"}, None, id="no cpu controller"),
    ],
)
def test_the_quota_comes_from_control_groups(
    tmp_path: Path, membership: str, files: dict[str, str], expected: float | None
) -> None:
    assert cpu_quota(_machine(tmp_path, membership, files)) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


def test_this_machine_has_at_least_one() -> None:
    assert available_cpus() >= 1
