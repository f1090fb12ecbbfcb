"""Hooks of mkdocs.yml: pages of the site from outside docs/.

The README and the other Markdown files of the root become pages of the site. Links from docs/ to other files lead to
the repository. The same Markdown thus works on GitHub and on the site. `llms.txt` lists the pages for language models
(llmstxt.org). Each page is also served as Markdown: `redis.md` next to `redis/`.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[1]
BRANCH: Final = "main"
ROOT_PAGES: Final = {
    "README.md": "readme.md",  # lower case: mkdocs treats README.md as index.md
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "THIRD-PARTY-NOTICES.md": "third-party-notices.md",
}
"""Page of the site by file of the repository."""

FENCE: Final = re.compile(r"^(`{3,}|~{3,}).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
LINK: Final = re.compile(r"(\]\()([^)\s]+)(\))")


# -- Called by mkdocs --------------------------------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages of the root."""
    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page for the site."""
    assert config.repo_url is not None
    return with_site_links(markdown, source_of(page.file.src_uri), config.repo_url)


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Adds `llms.txt` and each page's Markdown to the site."""
    assert config.site_url is not None
    assert config.repo_url is not None
    texts = {page.file.src_uri: text_of(page) for page in nav.pages}
    files.append(File.generated(config, "llms.txt", content=llms_txt(nav, texts, config)))
    for uri, text in texts.items():
        copy = File.generated(config, f"{uri}.txt", content=with_site_links(text, source_of(uri), config.repo_url))
        copy.dest_uri = uri  # keeps the name `redis.md`, which mkdocs would render otherwise
        files.append(copy)
    return nav


# -- Links -------------------------------------------------------------------------------------------------------------


def source_of(page: str) -> str:
    """Returns the page's file in the repository."""
    root_page = {site: name for name, site in ROOT_PAGES.items()}.get(page)
    return root_page or f"docs/{page}"


def with_site_links(markdown: str, source: str, repo_url: str) -> str:
    """Returns the Markdown of the file `source` with links for the site. Code blocks stay unchanged."""
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [_rewritten(markdown[end : fence.start()], source, repo_url), fence.group()]
        end = fence.end()
    return "".join([*parts, _rewritten(markdown[end:], source, repo_url)])


def _rewritten(text: str, source: str, repo_url: str) -> str:
    return LINK.sub(lambda link: link[1] + site_link(link[2], source, repo_url) + link[3], text)


def site_link(target: str, source: str, repo_url: str) -> str:
    """Returns the target on the site of a link in the file `source`."""
    path, hash_, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", target):
        return target
    linked = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    page = ROOT_PAGES.get(linked) or (linked.removeprefix("docs/") if linked.startswith("docs/") else None)
    if page is None:
        kind = "tree" if (ROOT / linked).is_dir() else "blob"
        return f"{repo_url.rstrip('/')}/{kind}/{BRANCH}/{linked}{hash_}{anchor}"
    here = posixpath.dirname("" if source in ROOT_PAGES else source.removeprefix("docs/"))
    return posixpath.relpath(page, here or ".") + hash_ + anchor


# -- llms.txt ----------------------------------------------------------------------------------------------------------


def text_of(page: Page) -> str:
    """Returns the page's Markdown as in the repository."""
    return (ROOT / source_of(page.file.src_uri)).read_text()


def llms_txt(nav: Navigation, texts: dict[str, str], config: MkDocsConfig) -> str:
    """Returns the list of pages by section, each with its first sentence, in the llmstxt.org format."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}"]
    for section in nav.items:
        assert isinstance(section, Section)
        lines += ["", f"## {section.title}", ""]
        for page in _pages(section):
            uri = page.file.src_uri
            sentence = first_sentence(texts[uri])
            lines.append(f"- [{page.title}]({config.site_url}{uri})" + (f": {sentence}" if sentence else ""))
    return "\n".join([*lines, ""])


def _pages(section: Section) -> Iterator[Page]:
    for child in section.children:
        if isinstance(child, Page):
            yield child
        elif isinstance(child, Section):
            yield from _pages(child)


def first_sentence(markdown: str) -> str | None:
    """Returns the first sentence of prose before the second heading, without links."""
    opening = re.split(r"^## ", FENCE.sub("", markdown), maxsplit=1, flags=re.MULTILINE)[0]
    for paragraph in re.split(r"\n\s*\n", opening):
        if re.match(r"[A-Z`\[]", paragraph):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
            return re.split(r"(?<=[.!?])\s", plain)[0].removesuffix(":")
    return None
