"""The pages that `ragherd dev` stores as its first documents."""

from __future__ import annotations

import shutil
from pathlib import Path

from ragherd.dev import demo_pages

DOCS = Path(__file__).parents[2] / "docs"


def test_the_demo_stores_the_pages_that_explain_the_product() -> None:
    stored = {file.source for file in demo_pages(DOCS)}
    assert {"docs/circuit-breaker.md", "docs/semantic-cache.md", "docs/knowledge-base.md"} <= stored
    assert not stored & {"docs/tutorial.md", "docs/measurements.md", "docs/decisions/06-breaker.md"}


def test_no_stored_page_repeats_the_printed_answer_of_the_demo() -> None:
    """The small model would quote a printed answer instead of the explanation."""
    answer = "opens and rejects every call to it at once [1]"
    assert answer in (DOCS / "tutorial.md").read_text()
    assert [file.source for file in demo_pages(DOCS) if answer in file.path.read_text()] == []


def test_a_folder_of_another_install_gives_the_same_sources(tmp_path: Path) -> None:
    copied = shutil.copytree(DOCS, tmp_path / "pages")
    assert [file.source for file in demo_pages(copied)] == [file.source for file in demo_pages(DOCS)]
