"""`/docs` is served from the package, and its policy prevents loading anything else."""

from __future__ import annotations

import re

import pytest

from api.endpoints.description import ASSETS, FOLDER
from tests.support.service import Service

PAGES = ("/docs", "/docs/oauth2-redirect")


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_names_no_other_host_and_holds_no_script(serve: Service, path: str) -> None:
    answer = await (await serve()).get(path)
    assert answer.headers["content-type"].startswith("text/html")
    assert "//" not in answer.text
    assert re.findall(r"<script(?! src=\"[^\"]+\"></script>)", answer.text) == []
    assert not re.search(r"<style|style=|\son\w+=|javascript:", answer.text)


@pytest.mark.parametrize("path", PAGES)
async def test_what_a_page_refers_to_is_there(serve: Service, path: str) -> None:
    client = await serve()
    page = await client.get(path)
    named = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
    assert named
    for reference in named:
        found = await client.get(str(page.url.join(reference)))
        assert found.status_code == 200, reference
        assert reference == "openapi.json" or found.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", PAGES)
async def test_the_policy_allows_this_host_only(serve: Service, path: str) -> None:
    headers = (await (await serve()).get(path)).headers
    rules = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert rules.pop("img-src") == "'self' data:"
    assert {"default-src", "script-src", "style-src", "connect-src", "frame-ancestors", "base-uri"} <= set(rules)
    assert rules["default-src"] == rules["frame-ancestors"] == "'none'"
    assert set(rules.values()) == {"'none'", "'self'"}  # neither 'unsafe-inline' nor 'unsafe-eval' nor a host
    assert headers["referrer-policy"] == "no-referrer"


async def test_the_parts_have_their_types_and_nothing_else_is_served(serve: Service) -> None:
    client = await serve()
    kinds = {name: (await client.get(f"/docs/{name}")).headers["content-type"].partition(";")[0] for name in ASSETS}
    assert kinds["swagger-ui-bundle.js"] in {"text/javascript", "application/javascript"}
    assert kinds["swagger-ui.css"] == "text/css"
    assert kinds["favicon-32x32.png"] == "image/png"
    for other in ("index.html", "README.md", "..%2Fdocs_page.py", "%2e%2e/docs_page.py", "nothing"):
        assert (await client.get(f"/docs/{other}")).status_code == 404
    assert (await client.get("/redoc")).status_code == 404


def test_the_licence_of_what_is_served_is_beside_it() -> None:
    readme = (FOLDER / "README.md").read_text()
    assert re.search(r"swagger-ui-dist \d+\.\d+\.\d+ from npm", readme)
    assert {"LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt"} <= {path.name for path in FOLDER.iterdir()}
    assert "validatorUrl: null" in (FOLDER / "start.js").read_text()
