"""Which weights the models have, over all backends."""

from __future__ import annotations

from api.ollama.models import KnownDigests


def test_one_model_under_all_of_its_names() -> None:
    known = KnownDigests(None)
    known.learn("ollama", {"llama3.2:latest": "sha256:1"})
    assert known.digest("llama3.2") == known.digest("LLAMA3.2:latest") == known.digest("Llama3.2")
    assert known.digest("llama3.2") != known.digest("qwen3:4b")


def test_new_weights_make_another_digest_and_old_ones_the_same_again() -> None:
    known = KnownDigests(None)
    unknown = known.digest("m")
    known.learn("ollama", {"m:latest": "sha256:1"})
    first = known.digest("m")
    known.learn("ollama", {"m:latest": "sha256:2"})
    assert len({unknown, first, known.digest("m")}) == 3
    known.learn("ollama", {"m:latest": "sha256:1"})
    assert known.digest("m") == first


def test_a_backend_that_says_nothing_changes_nothing() -> None:
    known = KnownDigests(None)
    known.learn("ollama", {"m:latest": "sha256:1"})
    before = known.digest("m")
    known.learn("ollama", {})
    assert known.digest("m") == before
    assert known.knows("ollama")
    assert not known.knows("ollama-2")


def test_backends_with_the_same_weights_count_once_and_their_order_not_at_all() -> None:
    one, other, third = KnownDigests(None), KnownDigests(None), KnownDigests(None)
    one.learn("ollama", {"m:latest": "a"})
    one.learn("ollama-2", {"m:latest": "a"})
    other.learn("ollama", {"m:latest": "a"})
    third.learn("ollama", {"m:latest": "b"})
    third.learn("ollama-2", {"m:latest": "a"})
    assert one.digest("m") == other.digest("m") != third.digest("m")
    other.learn("ollama-2", {"m:latest": "b"})
    assert other.digest("m") == third.digest("m")


def test_the_context_is_part_of_it() -> None:
    assert KnownDigests(None).digest("m") != KnownDigests(4096).digest("m") != KnownDigests(8192).digest("m")
