"""The languages of an embedder, and questions in other languages."""

from __future__ import annotations

import pytest

from api.languages.identify import EVERY, ONLY_ENGLISH, Languages, languages_of, script_of, scripts_of, words_outside


@pytest.mark.parametrize(
    ("character", "script"),
    [
        ("a", "LATIN"), ("é", "LATIN"), ("ｆ", "LATIN"), ("密", "HAN"), ("か", "KANA"), ("ｶ", "KANA"), ("한", "HANGUL"),
        ("ж", "CYRILLIC"), ("π", "GREEK"), ("ก", "THAI"), ("क", "DEVANAGARI"), ("5", ""), ("☀", ""), ("²", ""),
        ("µ", ""), ("\u0301", ""), ("\ufe0f", ""), ("ª", ""),
    ],
)  # fmt: skip
def test_the_script_of_a_character(character: str, script: str) -> None:
    assert script_of(character) == script


def test_the_scripts_and_words_of_a_text() -> None:
    assert scripts_of("Reset 密码 now") == {"LATIN": 8, "HAN": 2}
    assert words_outside("Reset 密码 in кошка2собака", frozenset(["LATIN"])) == ("密码", "кошка", "собака")
    assert words_outside("Reset 密码", frozenset(["LATIN", "HAN"])) == ()


@pytest.mark.parametrize(
    ("languages", "text", "outside"),
    [
        (ONLY_ENGLISH, "How do I reset my password?", ""),
        (ONLY_ENGLISH, "How do I reset 密码?", ""),
        (ONLY_ENGLISH, "谁批准报销？", "han"),
        (ONLY_ENGLISH, "iPhone的密码怎么重置", "han"),
        (ONLY_ENGLISH, "Кто утверждает отпуск?", "cyrillic"),
        (ONLY_ENGLISH, "123 + 5?", ""),
        (ONLY_ENGLISH, "Passwort vergessen", "und"),
        (ONLY_ENGLISH, "Wie setze ich mein Passwort zurück?", "de"),
        (Languages(frozenset(["en", "de"])), "Wie setze ich mein Passwort zurück?", ""),
        (Languages(frozenset(["en", "de"])), "Passwort vergessen", ""),
        (Languages(frozenset(["en", "de"])), "¿Dónde está mi pedido?", "es"),
        (EVERY, "Кто утверждает отпуск?", ""),
        (Languages(frozenset(["en", "ru"])), "Кто утверждает отпуск?", ""),
        (Languages(frozenset(["en", "ru"])), "谁批准报销？", "han"),
    ],
)
def test_a_text_outside_the_languages(languages: Languages, text: str, outside: str) -> None:
    assert languages.outside(text) == outside


@pytest.mark.parametrize(
    ("model", "languages"),
    [
        ("nomic-embed-text", ONLY_ENGLISH),
        ("all-minilm:l6-v2", ONLY_ENGLISH),
        ("mxbai-embed-large", ONLY_ENGLISH),
        ("snowflake-arctic-embed:22m", ONLY_ENGLISH),
        ("granite-embedding:30m", ONLY_ENGLISH),
        ("somebody/their-own", ONLY_ENGLISH),
        ("bge-m3", EVERY),
        ("hf.co/gpustack/bge-m3-GGUF:Q8_0", EVERY),
        ("Paraphrase-Multilingual:278m", EVERY),
        ("granite-embedding:278m", EVERY),
        ("snowflake-arctic-embed2", EVERY),
        ("nomic-embed-text-v2-moe", EVERY),
    ],
)
def test_the_languages_of_models_by_name(model: str, languages: Languages) -> None:
    assert languages_of(model) == languages
