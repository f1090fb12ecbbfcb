"""The running image: not root, a read-only root, gunicorn as process 1, documents parsed in separate processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import httpx
import pytest
from fpdf import FPDF

from scripts.image_root.build import Image
from scripts.image_root.container import Container
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.image, pytest.mark.timeout(600)]
HOLIDAY = "Holiday is approved by the team lead. Ask for it two weeks before it begins."


@pytest.fixture
def client(container: Container) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=container.url, timeout=30) as made:
        yield made


def pdf() -> bytes:
    page = FPDF()
    page.add_page()
    page.set_font("helvetica", size=12)
    page.multi_cell(0, 10, HOLIDAY)
    return bytes(page.output())


def test_it_answers_from_its_cache_and_from_documents(container: Container, client: httpx.Client) -> None:
    first = client.post("/query", json={"question": "What is the capital of France?"}).raise_for_status().json()
    again = client.post("/query", json={"question": "Which city is the capital of France?"}).raise_for_status().json()
    assert (first["cache"]["status"], again["cache"]["kind"]) == ("miss", "semantic")

    page = f"<title>Holiday</title><h1>Holiday</h1><p>{HOLIDAY}".encode()
    for name, content in (("holiday.html", page), ("holiday.pdf", pdf())):
        stored = client.post("/documents", files={"file": (name, content)})
        assert (stored.status_code, stored.json()["status"]) == (201, "ready"), stored.text
    grounded = client.post("/query", json={"question": "Who approves my holiday?"}).raise_for_status().json()
    assert "team lead" in grounded["sources"][0]["text"]


def test_an_upload_too_large_for_memory_passes_through_tmp(client: httpx.Client) -> None:
    text = "\n\n".join(f"Paragraph {number}. {HOLIDAY}" for number in range(15_000))
    stored = client.post("/documents", files={"file": ("long.txt", text.encode())})
    assert len(text) > 1024 * 1024
    assert stored.status_code in {201, 202}, stored.text


def test_every_process_is_without_rights(container: Container) -> None:
    wait_until(lambda: len(container.processes()) == 4)  # the master, two workers, the metrics
    processes = container.processes()
    for facts in processes.values():
        assert set(facts["Uid"].split()) == set(facts["Gid"].split()) == {"10001"}
        assert {facts[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert facts["NoNewPrivs"] == "1"


def test_nothing_but_tmp_can_be_written_not_even_by_root(container: Container) -> None:
    write = "import sys; open(sys.argv[1] + '/written', 'w')"
    for folder in ("/", "/opt/ragherd", "/opt/ragherd/lib/python3.13/site-packages/api", "/var/tmp", "/etc", "/root"):
        denied = container.inside(["python", "-c", write, folder])
        assert denied.returncode != 0, folder
        assert "Read-only file system" in container.inside(["python", "-c", write, folder], as_root=True).stderr, folder
    assert container.inside(["python", "-c", write, "/tmp"]).returncode == 0


def test_the_health_check_is_true_of_it(image: Image, container: Container) -> None:
    healthy = container.inside(image.health_check)
    assert (healthy.returncode, healthy.stderr) == (0, "")
    for pid in container.processes():
        os.kill(pid, signal.SIGSTOP)
    hung = container.inside(image.health_check)
    for pid in container.processes():
        os.kill(pid, signal.SIGCONT)
    assert hung.returncode != 0


def test_the_check_of_its_settings_passes(image: Image, container: Container) -> None:
    assert (image.entrypoint, image.command) == (["ragherd"], ["serve"])
    checked = container.inside([*image.entrypoint, *image.command, "--check"])
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
    assert "Embedder: ready" in checked.stdout


def test_sigterm_ends_it_with_exit_code_0(own_container: Container) -> None:
    asked = httpx.post(f"{own_container.url}/query", json={"question": "What is the capital of Norway?"}, timeout=30)
    assert asked.is_success
    assert own_container.stop() == 0
    assert "Draining" in own_container.output()
    assert "Traceback" not in own_container.output()


def test_process_1_buries_what_a_killed_worker_leaves_behind(own_container: Container) -> None:
    """A reader of a document loses its worker and becomes a child of process 1, which takes it for no worker."""
    reader, worker = reader_at_work(own_container)
    os.kill(reader, signal.SIGSTOP)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: own_container.processes()[reader]["PPid"] == str(own_container.pid))
    os.kill(reader, signal.SIGCONT)
    wait_until(lambda: reader not in own_container.processes(), timeout=40)
    wait_until(own_container.is_ready)
    wait_until(lambda: len(own_container.processes()) == 4)
    assert not [facts for facts in own_container.processes().values() if facts["State"].startswith("Z")]


def test_nothing_of_it_is_left_when_it_is_killed(own_container: Container) -> None:
    """What went on running would write to the Redis of the tests that come after."""
    wait_until(lambda: len(own_container.processes()) == 4)
    processes = own_container.processes()
    own_container.kill()
    wait_until(lambda: not [pid for pid in processes if is_running(pid)])


def is_running(pid: int) -> bool:
    """Returns whether a process is alive and not a zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def reader_at_work(container: Container) -> tuple[int, int]:
    """Returns a process that reads a document, and the worker that started it."""
    page = f"<h1>Holiday</h1>{'<p>' + HOLIDAY:s}" * 8_000
    before = set(container.processes())

    def post() -> None:
        with suppress(httpx.HTTPError):  # its worker is killed
            httpx.post(f"{container.url}/documents", files={"file": ("long.html", page.encode())}, timeout=30)

    Thread(target=post, daemon=True).start()
    wait_until(lambda: set(container.processes()) - before, interval=0.001)
    [(reader, facts)] = [item for item in container.processes().items() if item[0] not in before]
    return reader, int(facts["PPid"])
