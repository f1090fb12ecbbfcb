"""Extracted text is repaired: divided words, ligatures; garbage is noticed."""

from __future__ import annotations

import pytest

from api.knowledge.repair import HYPHEN_AT_LINE_END, PART, garbage, repaired

ENGLISH = (
    "employees request annual leave from their team lead at least seven days before they want to travel. requests "
    "without supporting documents are rejected by the department that handles personnel matters, which also keeps "
    "records about training, equipment and parking. managers answer within three working days."
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the reim-\nbursement of costs", "the reimbursement of costs"),
        (f"the reim{HYPHEN_AT_LINE_END}bursement", "the reimbursement"),
        ("the co\u00ad\noperation", "the cooperation"),
        ("a well-\nknown fact", "a well-known fact"),
        ("the under-\nstanding", "the understanding"),
        ("an up-\nto-date list", "an up-to-date list"),
        ("Rhein-\nMain", "Rhein-Main"),
        ("KX-\n4471 and 10-\n12", "KX-\n4471 and 10-\n12"),
        ("the re-\nsort opens; re-sort the list", "the re-sort opens; re-sort the list"),
        ("- one\n- two", "- one\n- two"),
        ("a dash -\nand more", "a dash -\nand more"),
        ("Übungs-\n   aufgabe", "Übungsaufgabe"),
    ],
)
def test_words_divided_at_a_line_end_are_joined(text: str, expected: str) -> None:
    assert repaired(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Oﬃce certiﬁcate of ﬂoor", "Office certificate of floor"),
        ("ＱＺ－１１０８", "QZ-1108"),
        ("10² m³ H₂O ½ №", "10² m³ H₂O ½ №"),
    ],
)
def test_ligatures_and_wide_letters_become_plain_letters(text: str, expected: str) -> None:
    assert repaired(text) == expected


def test_a_long_text_is_repaired_in_parts_and_loses_nothing() -> None:
    line = "The com-\npany pays the oﬃce.\n\n"
    assert repaired(line * (3 * PART // len(line))) == "The company pays the office.\n\n" * (3 * PART // len(line))
    solid = "x" * (2 * PART + 7)
    assert repaired(solid) == solid


@pytest.mark.parametrize(
    "text",
    [
        "\ue001\ue002\ue003 \ue004\ue005" * 10,
        "\ufffd\ufffd\ufffd" * 9 + "readable",
        "".join(chr((ord(one) - 94) % 26 + 97) if one.isalpha() else one for one in ENGLISH),
        ENGLISH.translate(str.maketrans("aeopc", "аеорс")),
    ],
    ids=["private", "replaced", "shifted", "mixed scripts"],
)
def test_garbage_is_noticed(text: str) -> None:
    assert garbage(text) is not None


@pytest.mark.parametrize(
    "text",
    [
        "The pool closes at nine in the evening. " * 20,
        "Urlop zatwierdza kierownik zespołu, a wniosek składa się wcześniej. " * 20,
        "Strč prst skrz krk, zmrzl v chladnu a potom odešel domů do tepla. " * 20,
        "休暇の申請は課長が承認します。 " * 40,
        "휴가 신청은 팀장이 승인합니다. PDF문서 " * 40,
        "พนักงานที่ต้องการลาพักร้อนต้องส่งคำขอ " * 40,
        "إجازة الموظفين تتطلب موافقة المدير. " * 40,
        "QZ-1107 12.40 PPR-9040 HTTP XML TLS DNS SSH 310.00 KX-4471 " * 40,
        "∀x ∈ ℝ: x² ≥ 0 → f(x) ≤ g(x) " * 40,
        "",
    ],
    ids=["English", "Polish", "Czech", "Japanese", "Korean", "Thai", "Arabic", "codes", "formulas", "empty"],
)
def test_real_text_is_not_garbage(text: str) -> None:
    assert garbage(text) is None
