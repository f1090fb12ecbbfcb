"""The documentation site builds, has every page, and has no broken links."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from bs4 import BeautifulSoup
from mkdocs.commands.build import build
from mkdocs.config import load_config

from scripts.docs_hooks import ROOT_PAGES, first_sentence, site_link, with_site_links

pytestmark = [pytest.mark.slow, pytest.mark.once(reason="mkdocs builds the same pages on every Python")]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REPO = "https://github.com/ragherd/ragherd"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the site. Every mkdocs warning is an error: a link to a missing page, a page outside the navigation."""
    folder = tmp_path_factory.mktemp("site")
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


def pages() -> set[str]:
    return {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} | set(ROOT_PAGES.values())


@cache
def parsed(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(), "html.parser")


def test_every_page_is_in_the_navigation_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert sorted(re.findall(r"[\w/-]+\.md", text)) == sorted(pages())


def test_the_site_has_every_page_as_html_and_as_markdown(site: Path) -> None:
    for page in pages():
        folder = page.removesuffix("index.md").removesuffix(".md")
        assert (site / folder / "index.html").is_file()
        assert (site / page).read_text().startswith("# ")


def test_every_link_on_the_site_resolves(site: Path) -> None:
    checked = 0
    for page in site.rglob("index.html"):
        for link in parsed(page).select("a[href], img[src], link[href], script[src]"):
            target, anchor = urldefrag(str(link.get("href") or link.get("src")))
            if re.match(r"[a-z]+:", target):
                continue
            linked = (page.parent / unquote(target)).resolve() if target else page
            linked = linked / "index.html" if linked.is_dir() else linked
            assert linked.is_file(), f"{page.relative_to(site)}: {target}"
            if anchor and linked.suffix == ".html":
                assert parsed(linked).find(id=unquote(anchor)), f"{page.relative_to(site)}: {target}#{anchor}"
            checked += 1
    assert checked > 1000


def test_diagrams_render_and_search_covers_every_page(site: Path) -> None:
    assert parsed(site / "architecture" / "index.html").select("pre.mermaid")
    index = (site / "search" / "search_index.json").read_text()
    assert {f"{page.removesuffix('.md')}/" for page in pages() if not page.endswith("index.md")} <= set(
        re.findall(r'"location":"([^"#]+)"', index)
    )


# -- Decisions ---------------------------------------------------------------------------------------------------------


RECORDS = sorted((DOCS / "decisions").glob("[0-9]*.md"))


def test_the_index_of_decisions_lists_every_record_by_its_title() -> None:
    listed = re.findall(r"\[([^\]]+)\]\((\d[^)]+)\)", (DOCS / "decisions" / "index.md").read_text())
    assert listed == [(record.read_text().partition("\n")[0].removeprefix("# "), record.name) for record in RECORDS]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_record_is_short_and_has_context_decision_and_consequences(record: Path) -> None:
    text = record.read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
    assert 100 <= len([word for word in text.split() if re.search(r"\w", word)]) <= 200


# -- For language models -----------------------------------------------------------------------------------------------


def test_llms_txt_has_a_title_a_summary_and_every_page(site: Path) -> None:
    text = (site / "llms.txt").read_text()
    assert re.match(r"# Ragherd\n\n> .+\n\n## Why\n\n- \[", text)
    linked = re.findall(r"^- \[[^\]]+\]\(https://ragherd\.github\.io/ragherd/([^)]+)\)(?:: .+)?$", text, re.MULTILINE)
    assert sorted(linked) == sorted(pages())


def test_the_description_of_a_page_is_its_first_sentence() -> None:
    assert first_sentence("# Redis\n\nUse [Redis 8](https://x.example). It\nis fast.\n") == "Use Redis 8."
    assert first_sentence("# Redis\n\n| a | b |\n|---|---|\n\n```\nCode.\n```\n\n## One server\n\nText.") is None


# -- Links as on GitHub ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "source", "expected"),
    [
        ("redis.md", "docs/index.md", "redis.md"),
        ("redis.md#tls", "docs/index.md", "redis.md#tls"),
        ("#tls", "docs/redis.md", "#tls"),
        ("https://redis.io", "docs/redis.md", "https://redis.io"),
        ("docs/redis.md", "README.md", "redis.md"),
        ("docs/images/scaling.svg", "README.md", "images/scaling.svg"),
        ("LICENSE", "README.md", f"{REPO}/blob/main/LICENSE"),
        ("../README.md", "docs/index.md", "readme.md"),
        ("../../CHANGELOG.md#010", "docs/decisions/index.md", "../changelog.md#010"),
        ("../redis.md", "docs/decisions/index.md", "../redis.md"),
        ("../k8s", "docs/kubernetes.md", f"{REPO}/tree/main/k8s"),
        ("../.env.example", "docs/configuration.md", f"{REPO}/blob/main/.env.example"),
    ],
)
def test_a_repository_link_leads_to_the_same_page_on_the_site(target: str, source: str, expected: str) -> None:
    assert site_link(target, source, REPO) == expected


def test_a_code_block_keeps_its_links() -> None:
    text = "[a](../README.md)\n\n```md\n[a](../README.md)\n```\n\n[b](../README.md)\n"
    expected = "[a](readme.md)\n\n```md\n[a](../README.md)\n```\n\n[b](readme.md)\n"
    assert with_site_links(text, "docs/index.md", REPO) == expected
