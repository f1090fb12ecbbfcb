"""Takes the pictures of the deployment report for the docs, in the light and the dark theme. Needs Chromium.

ragherd report --html report.html
.venv/bin/python -m scripts.picture_report report.html
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZE = {"width": 1120, "height": 900}
MARGIN = 10
LAST = "Over time"
"""The last section of the picture."""
NAMES = {"light": "report", "dark": "report-dark"}


def main(file: str) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("Chromium is not installed (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme, name in NAMES.items():
            page = browser.new_page(viewport=SIZE, color_scheme=scheme)  # type: ignore[arg-type]
            page.goto(Path(file).resolve().as_uri())
            box = page.locator("section", has=page.get_by_role("heading", name=LAST, exact=True)).bounding_box()
            assert box is not None
            height = box["y"] + box["height"] + MARGIN
            area = {"x": 0, "y": 0, "width": SIZE["width"], "height": height}
            page.screenshot(path=IMAGES / f"{name}.png", full_page=True, clip=area)  # type: ignore[arg-type]
            print(IMAGES / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1])
