"""Which scripts a model on Ollama can read."""

from __future__ import annotations

import numpy as np
import pytest

from api.ollama.embedding import PIECES, PROBES, is_read, scripts_to_read, unread_of

LONG = "x" * 101


@pytest.mark.parametrize(
    ("text", "read", "unread"),
    [
        ("How do I reset my password?", (), ()),
        ("Où est l’hôtel à Zürich? — 5 €", (), ("€",)),
        ("How do I reset 密码?", (), ("密码",)),
        ("How do I reset 密码?", ("HAN",), ()),
        ("What does ☀ mean?", ("HAN",), ("☀",)),
        ("उपयोगकर्ता कैसे", (), ("उपयोगकर्ता", "कैसे")),
        ("休暇の申請", ("HAN",), ("の",)),
        (f"{LONG.upper()} and y", (), (LONG,)),
        ("a " * PIECES, (), ()),
        ("a " * PIECES + "Then", (), ("then",)),
    ],
)
def test_which_texts_count_as_unread(text: str, read: tuple[str, ...], unread: tuple[str, ...]) -> None:
    assert unread_of(text, read) == unread


def test_each_probe_is_in_its_script() -> None:
    for script, texts in PROBES.items():
        assert len(set(texts)) == 3
        assert all(script in scripts_to_read([text]) for text in texts)


def test_similar_vectors_mean_that_a_script_is_not_read() -> None:
    apart = np.eye(3, dtype="<f4")
    assert is_read(apart)
    assert not is_read(np.array([apart[0], apart[1], apart[1]], dtype="<f4"))
