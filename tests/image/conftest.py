"""Builds the image's root once, and runs the service in it like a container."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from api.embedded.redis_server import EmbeddedRedis
from scripts.image_root.base import missing_requirement
from scripts.image_root.build import Image, built_image
from scripts.image_root.container import Container, running
from tests.stub_ollama.process import StubProcess, stub_process
from tests.support.gunicorn_process import free_port
from tests.support.needed_tools import not_here
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def image() -> Iterator[Image]:
    """Builds the image from the Dockerfile. Takes about a minute; the base is cached in .data/image."""
    if reason := missing_requirement():
        not_here(reason)
    with built_image(ROOT) as made:
        yield made


@pytest.fixture(scope="module")
def ollama() -> Iterator[StubProcess]:
    """The stub of Ollama, outside the container."""
    with stub_process() as stub:
        yield stub


@pytest.fixture(scope="module")
def container(image: Image, redis_server: EmbeddedRedis, ollama: StubProcess) -> Iterator[Container]:
    """One container for all tests that do not change it."""
    with started(image, redis_server.url, ollama) as serving:
        yield serving


@pytest.fixture
def own_container(image: Image, redis_server: EmbeddedRedis, ollama: StubProcess) -> Iterator[Container]:
    """A container for a test that stops it, or a part of it."""
    with started(image, redis_server.url, ollama) as serving:
        yield serving


@contextmanager
def started(image: Image, redis_url: str, ollama: StubProcess) -> Iterator[Container]:
    """Runs the image's own command with two workers, with Redis and Ollama outside."""
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
    with TemporaryDirectory() as folder, running(image, settings, Path(folder, "log")) as container:
        wait_until(container.is_ready, timeout=60)
        yield container
