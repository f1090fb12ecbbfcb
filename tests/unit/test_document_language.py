"""A document's language: shown by its text, or declared by its file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from api.languages.documents import canonical, language_of_document
from api.redis_store.stores.documents.document_records import STEMMERS, stemmer_of

NOTES = json.loads((Path(__file__).parents[1] / "data/inflected_questions.json").read_text("utf-8"))["notes"]
GERMAN = "Die Rechnungen werden monatlich versandt. Kunden zahlen innerhalb von 14 Tagen, sonst mahnen wir."
CATALAN = "Les factures s’envien als clients cada mes i s’han de pagar en trenta dies."
BY_SCRIPT = {
    "ru": "Счета отправляются клиентам ежемесячно, вы должны их оплатить.",
    "uk": "Рахунки надсилають клієнтам щомісяця.",
    "bg": "Фактурите се изпращат на клиентите, трябва да бъдат платени навреме. Съобщете ни.",
    "sr": "Рачуни се шаљу купцима сваког месеца.",
    "el": "Τα τιμολόγια αποστέλλονται κάθε μήνα",
    "ar": "يتم إرسال الفواتير إلى العملاء كل شهر",
    "fa": "پرداخت فاکتورها را هر ماه گزارش کنید",
    "he": "חשבוניות נשלחות מדי חודש",
    "hi": "चालान हर महीने ग्राहकों को भेजे जाते हैं",
    "ta": "விலைப்பட்டியல்கள் ஒவ்வொரு மாதமும்",
    "ko": "청구서는 매월 고객에게 발송됩니다",
    "ja": "請求書は毎月お客様に送付されます。",
    "zh": "我们每个月发送发票给客户",
    "th": "ใบแจ้งหนี้จะถูกส่งทุกเดือน",
}


@pytest.mark.parametrize(("language", "text"), [(code, note[1]) for code, notes in NOTES.items() for note in notes])
def test_words_show_the_language(language: str, text: str) -> None:
    assert language_of_document(text) == language


@pytest.mark.parametrize(("language", "text"), BY_SCRIPT.items())
def test_script_and_letters_show_the_language(language: str, text: str) -> None:
    assert language_of_document(text) == language


@pytest.mark.parametrize(
    ("text", "declared", "language"),
    [
        (GERMAN, "de_at", "de-AT"),  # the region that the text cannot show
        (GERMAN, "en-US", "de"),  # the language of the program that wrote the file
        (CATALAN, "ca", "ca"),  # a language that the text cannot show
        ("QX-7 42", "sv-SE", "sv-SE"),
        (GERMAN, "German", "de"),
        ("12.5 | 17", None, None),
    ],
)
def test_a_declared_language_counts_unless_the_text_shows_another(
    text: str, declared: str | None, language: str | None
) -> None:
    assert language_of_document(text, declared) == language


def test_code_and_addresses_show_no_language() -> None:
    code = "```python\n" + "for the value in this: return that and there\n" * 30 + "```\n"
    assert language_of_document(code + GERMAN) == "de"
    assert language_of_document(code) is None
    digits = hashlib.sha256(b"one").hexdigest() * 100
    assert language_of_document(f"Der Schlüssel folgt, und er ist in der Datei.\n\n{digits}") == "de"
    assert language_of_document(digits) is None


def test_a_few_foreign_words_at_the_start_do_not_decide() -> None:
    assert language_of_document("The name of this text is what it is about.\n\n" + (GERMAN + " ") * 200) == "de"


@pytest.mark.parametrize(
    ("tag", "written"),
    [("PT_br", "pt-BR"), ("zh-hant-tw", "zh-Hant-TW"), ("und", None), ("", None), ("english", None), ("d", None)],
)
def test_tags_are_written_as_bcp_47_has_them(tag: str, written: str | None) -> None:
    assert canonical(tag) == written


def test_stemmers_go_by_the_language_without_its_region() -> None:
    assert (stemmer_of("de-AT"), stemmer_of("nb"), stemmer_of("pl"), stemmer_of(None)) == (
        "german",
        "norwegian",
        "",
        "",
    )
    assert set(STEMMERS.values()) >= {"english", "french", "dutch"}
