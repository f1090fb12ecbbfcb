"""The languages of embedding models, by the names that Ollama gives them."""

from __future__ import annotations

from typing import Final

from api.languages.languages import ENGLISH, EVERY, Languages

MULTILINGUAL: Final = (
    "bge-m3",
    "embeddinggemma",
    "granite-embedding:278m",
    "nomic-embed-text-v2",
    "paraphrase-multilingual",
    "qwen3-embedding",
    "snowflake-arctic-embed2",
    "snowflake-arctic-embed-l-v2",
    "snowflake-arctic-embed-m-v2",
)
"""What the names of multilingual models begin with, after the publisher's name. All others are taken for English:
`nomic-embed-text`, `all-minilm`, `mxbai-embed-large`, `snowflake-arctic-embed` and `granite-embedding` are."""


def languages_of(model: str) -> Languages:
    """Of a model by its name, as `bge-m3`, `hf.co/someone/bge-m3-GGUF:Q8_0` or `granite-embedding:278m`."""
    name = model.casefold().rpartition("/")[2]
    return EVERY if name.startswith(MULTILINGUAL) else ENGLISH
