"""The guards in other languages, on pairs that an embedder considers similar."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.guards.agreement import disagreement, verdicts

SIX = ("de", "fr", "es", "it", "pt", "nl")


def rows(name: str) -> list[list[str]]:
    lines = Path(__file__).with_name(name).read_text("utf-8").splitlines()[1:]
    return [line.split("\t") for line in lines]


FOREIGN = rows("foreign_pairs.tsv")
OTHERS = rows("foreign_guard_pairs.tsv")


@pytest.mark.parametrize(("first", "second"), [row[2:] for row in FOREIGN if row[0] in SIX])
def test_pairs_in_the_six_languages_are_rejected(first: str, second: str) -> None:
    assert disagreement(first, second) is not None


@pytest.mark.parametrize(("verdict", "first", "second"), [row[1:] for row in OTHERS])
def test_held_out_pairs_and_paraphrases(verdict: str, first: str, second: str) -> None:
    assert ("same" if disagreement(first, second) is None else "different") == verdict


def test_most_pairs_in_ten_languages_are_rejected() -> None:
    """A multilingual embedder finds all pairs similar. Four of 50 remain, all in languages without guards."""
    served = [row for row in FOREIGN if disagreement(row[2], row[3]) is None]
    assert len(FOREIGN) == 50
    assert len(served) <= 4
    assert {row[0] for row in served} <= {"pl", "sv", "tr"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Почему я могу войти?", "Почему я не могу войти?"),
        ("Как включить уведомления?", "Как выключить уведомления?"),
        ("ここで喫煙できますか", "ここで喫煙できませんか"),
        ("通知を有効にする方法", "通知を無効にする方法"),
        ("这里可以停车吗", "这里不可以停车吗"),
        ("如何启用通知", "如何禁用通知"),
        ("Neden giriş yapabiliyorum?", "Neden giriş yapamıyorum?"),
        ("Alarm einschalten", "Alarm ausschalten"),
    ],
)
def test_a_few_other_languages_and_short_texts(first: str, second: str) -> None:
    assert disagreement(first, second) is not None
    assert disagreement(second, first) is not None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("门几点开", "门几点关"),
        ("谁负责采购", "谁负责销售"),
        ("休暇の申請方法は？", "休暇の取消方法は？"),
        ("วิธีเพิ่มผู้ใช้", "วิธีลบผู้ใช้"),
        ("उपयोगकर्ता कैसे जोड़ें", "उपयोगकर्ता कैसे हटाएं"),
        ("متى يفتح الباب", "متى يغلق الباب"),
        ("How do I reset 密码?", "How do I reset 账号?"),
        ("Кто утверждает отпуск?", "Кто утверждает расходы?"),
    ],
)
def test_words_in_other_scripts_are_compared(first: str, second: str) -> None:
    said = {one.guard for one in verdicts(first, second) if not one.agrees}
    assert "foreign_words" in said


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("如何申请休假", "怎么申请休假？"),
        ("休暇を申請できますか", "休暇は申請できますか"),
        ("谁批准请假", "请问谁批准请假"),
        ("Кто утверждает отпуск?", "А кто утверждает отпуска?"),
    ],
)
def test_paraphrases_of_the_same_words_agree(first: str, second: str) -> None:
    assert disagreement(first, second) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("能不能停车", "能停车吗"),
        ("Entro no sistema pelo site como eu faço?", "Como eu faço para entrar no sistema pelo site?"),
        ("Ist das erlaubt oder nicht?", "Ist das erlaubt?"),
        ("Je peux pas me connecter, pourquoi ?", "Pourquoi est-ce que je ne peux pas me connecter ?"),
        ("Waar koop ik brood en melk?", "Waar koop ik melk en brood?"),
    ],
)
def test_apparent_differences_are_ignored(first: str, second: str) -> None:
    said = {one.guard for one in verdicts(first, second) if not one.agrees}
    assert not {guard for guard in said if guard.startswith("foreign")}


@pytest.mark.parametrize("text", ["Is there a way to pay or not?", "What's my no-claims bonus?", "Log in, no?"])
def test_english_questions_are_left_to_the_english_guards(text: str) -> None:
    other = text.replace("or not", "").replace("no", "")
    said = {one.guard for one in verdicts(text, other) if not one.agrees}
    assert not {guard for guard in said if guard.startswith("foreign")}
