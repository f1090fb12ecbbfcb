"""Which language a text is in."""

from __future__ import annotations

from api.languages.scripts import LATIN, scripts_of


def language_of(text: str) -> str:
    """ISO 639-1 for a language in Latin letters, else the script's name in lower case; empty where nothing tells."""
    scripts = scripts_of(text)
    if not scripts:
        return ""
    script, letters = max(scripts.items(), key=lambda item: item[1])
    if script != LATIN and 2 * letters > scripts.total():
        return script.lower()
    return ""
