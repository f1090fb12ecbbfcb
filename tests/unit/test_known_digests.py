"""The models' weights over all backends."""

from __future__ import annotations

from api.ollama.models import KnownDigests
from api.values import model_key


def digest(known: KnownDigests, model: str) -> str:
    return known.by_model.get(model_key(model), known.unknown)


def test_all_names_of_a_model_share_its_digest() -> None:
    known = KnownDigests(None)
    known.learn("ollama", {"llama3.2:latest": "sha256:1"})
    assert digest(known, "llama3.2") == digest(known, "LLAMA3.2:latest") == digest(known, "Llama3.2")
    assert digest(known, "llama3.2") != digest(known, "qwen3:4b")


def test_a_digest_changes_and_returns_with_the_weights() -> None:
    known = KnownDigests(None)
    unknown = digest(known, "m")
    known.learn("ollama", {"m:latest": "sha256:1"})
    first = digest(known, "m")
    known.learn("ollama", {"m:latest": "sha256:2"})
    assert len({unknown, first, digest(known, "m")}) == 3
    known.learn("ollama", {"m:latest": "sha256:1"})
    assert digest(known, "m") == first


def test_a_silent_backend_changes_nothing() -> None:
    known = KnownDigests(None)
    known.learn("ollama", {"m:latest": "sha256:1"})
    before = digest(known, "m")
    known.learn("ollama", {})
    assert digest(known, "m") == before
    assert known.knows("ollama")
    assert not known.knows("ollama-2")


def test_equal_weights_count_once_and_order_does_not_matter() -> None:
    one, other, third = KnownDigests(None), KnownDigests(None), KnownDigests(None)
    one.learn("ollama", {"m:latest": "a"})
    one.learn("ollama-2", {"m:latest": "a"})
    other.learn("ollama", {"m:latest": "a"})
    third.learn("ollama", {"m:latest": "b"})
    third.learn("ollama-2", {"m:latest": "a"})
    assert digest(one, "m") == digest(other, "m") != digest(third, "m")
    other.learn("ollama-2", {"m:latest": "b"})
    assert digest(other, "m") == digest(third, "m")


def test_the_context_length_is_part_of_the_digest() -> None:
    assert digest(KnownDigests(None), "m") != digest(KnownDigests(4096), "m") != digest(KnownDigests(8192), "m")
