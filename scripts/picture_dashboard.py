"""Takes the pictures of the live page for the docs: python -m scripts.picture_dashboard http://127.0.0.1:8001

Asks the service a few questions first, so that there is something to see. Needs Chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
QUESTION = "What does the circuit breaker do when Ollama fails?"
PARAPHRASE = "What does the circuit breaker do if Ollama fails?"


def main(url: str) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("Chromium is not installed (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = opened(browser, url, "light", 1280, 800)
        for question in (QUESTION, PARAPHRASE):
            ask(page, question)
        shoot(page, "live-page")
        dark = opened(browser, url, "dark", 1280, 800)
        ask(dark, PARAPHRASE)
        shoot(dark, "live-page-dark")


def opened(browser: Browser, url: str, scheme: str, width: int, height: int) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(f"{url}/dashboard")
    expect(page.locator("#live")).to_have_text("Live", timeout=20_000)
    return page


def ask(page: Page, question: str) -> None:
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("heading", name="Why", exact=True)).to_be_visible(timeout=60_000)


def shoot(page: Page, name: str, *, full: bool = True) -> None:
    page.evaluate("window.scrollTo(0, 0)")
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path, full_page=full)
    print(path)


if __name__ == "__main__":
    main(sys.argv[1])
