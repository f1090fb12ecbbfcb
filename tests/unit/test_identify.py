"""Language identification of short questions: English is recognized, and no other language is mistaken for it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from api.languages.identify import language_of

ROWS = Path(__file__).with_name("foreign_pairs.tsv").read_text("utf-8").splitlines()[1:]
FOREIGN = [text for row in ROWS for text in row.split("\t")[2:]]


@pytest.mark.parametrize(
    "text",
    [
        "How do I reset my password?",
        "reset password",
        "shipping cost",
        "firewall",
        "cant log in",
        "whats my balance",
        "git rebase --continue",
        "Where is the café in São Paulo?",
        "What did Gödel prove, and is Müller a professor?",
        "Who is José García?",
        "How do I say 'gracias' in French?",
        "Was in the meeting: who will die, and is an art gift here?",
        "translate 猫 to English",
    ],
)
def test_english_is_identified(text: str) -> None:
    assert language_of(text) == "en"


@pytest.mark.parametrize("text", ["", "15", "NASA", "?", "👍", "GPT-4"])
def test_names_and_numbers_have_no_language(text: str) -> None:
    assert language_of(text) == ""


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Wie setze ich mein Passwort zurück?", "de"),
        ("Où est l’hôtel ?", "fr"),
        ("¿Dónde está mi pedido?", "es"),
        ("Dove si trova il mio ordine?", "it"),
        ("Onde está meu pedido e quanto é?", "pt"),
        ("Waar is mijn bestelling?", "nl"),
        ("Gdzie jest moje zamówienie?", "pl"),
        ("Hur återställer jag mitt lösenord?", "sv"),
        ("Şifremi nasıl sıfırlarım?", "tr"),
        ("谁批准报销？", "han"),
        ("喫煙できますか", "kana"),
        ("Кто утверждает отпуск?", "cyrillic"),
        ("Passwort vergessen", "und"),
        ("password dimenticata", "und"),
        ("cancelar pedido", "und"),
        ("wachtwoord vergeten", "und"),
    ],
)
def test_other_languages(text: str, language: str) -> None:
    assert language_of(text) == language


def test_a_hundred_questions_in_ten_languages_are_not_mistaken_for_english() -> None:
    assert len(FOREIGN) == 100
    assert [text for text in FOREIGN if language_of(text) in ("en", "")] == []


@pytest.mark.slow
@pytest.mark.timed
def test_identification_takes_linear_time() -> None:
    def seconds(words: int) -> float:
        text = "é" * words + " l'a" * words + " Straße" * words
        best = 1e9
        for _ in range(3):
            began = time.process_time()
            language_of(text)
            best = min(best, time.process_time() - began)
        return best + 1e-4

    assert seconds(20_000) < 12 * seconds(5_000)
