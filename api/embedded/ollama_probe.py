"""Is there an Ollama, and which of its models can answer questions?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

_PROBE_TIMEOUT = 1.0


def find_ollama(base_urls: Sequence[str]) -> str | None:
    """The first of `base_urls` that answers GET /api/version within a second."""
    with httpx.Client(timeout=_PROBE_TIMEOUT, trust_env=False) as client:
        for url in base_urls:
            version = _json(client, "GET", f"{url}/api/version")
            if "version" in version:
                return url
    return None


def first_text_model(base_url: str) -> str | None:
    """The first model that `/api/tags` lists and that generates text."""
    with httpx.Client(timeout=10.0, trust_env=False) as client:
        for model in _json(client, "GET", f"{base_url}/api/tags").get("models", []):
            shown = _json(client, "POST", f"{base_url}/api/show", {"model": model["name"]})
            if generates_text(model, shown):
                return str(model["name"])
    return None


def generates_text(model: dict[str, Any], shown: dict[str, Any]) -> bool:
    """Whether a model of /api/tags, shown by /api/show, is one for text: Ollama says so, or it is no BERT."""
    capabilities = shown.get("capabilities")
    if capabilities is not None:
        return "completion" in capabilities
    return "bert" not in str((model.get("details") or {}).get("family", ""))


def _json(client: httpx.Client, method: str, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object of an answer; empty for a failure of any kind, which to a probe is only "no"."""
    try:
        response = client.request(method, url, json=body)
        value = response.json() if response.is_success else {}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
