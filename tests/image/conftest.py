"""The image's root, made once, and the service running in it as a container would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.image_root.base import what_is_missing
from scripts.image_root.build import Image, built_image
from scripts.image_root.container import Container, running
from tests.gunicorn_process import free_port
from tests.needed_tools import not_here
from tests.stub_ollama.process import StubProcess, stub_process

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """What the Dockerfile's steps make. About a minute; the base is kept in .data/image."""
    if reason := what_is_missing():
        not_here(reason)
    with built_image(ROOT) as made:
        yield made


@pytest.fixture
def ollama() -> Iterator[StubProcess]:
    """The stub of Ollama, outside the container."""
    with stub_process() as stub:
        yield stub


@pytest.fixture
def container(image: Image, redis_url: str, ollama: StubProcess, tmp_path: Path) -> Iterator[Container]:
    """The image's own command with two workers, its Redis and Ollama outside."""
    settings = {
        "HOST": "127.0.0.1",
        "PORT": free_port(),
        "METRICS_PORT": free_port(),
        "WORKERS": "2",
        "REDIS_URL": redis_url,
        "REDIS_PREFIX": "rag-image:",
        "REDIS_TIMEOUT": "1",
        "OLLAMA_BASE_URL": ollama.base_url,
        "OLLAMA_WARM_UP": "false",
        "LLM_MODEL": "llama3.2",
        "DRAIN_DELAY": "0.1",
    }
    with running(image, settings, tmp_path / "container.log") as started:
        yield started
