"""Guard `foreign_opposites`: activer / désactiver, encender / apagar, an- / ausschalten.

Opposite words of other languages than English by how they begin, and prefixes and particles that turn a verb.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from api.guards.foreign.content import is_read
from api.guards.words import Words

_AXES: Final = """
öffn offen geöffnet / schließ schliess geschlossen
kauf einkauf gekauft / verkauf
hinzufüg hinzugefügt / entfern lösch gelöscht
erhöh steiger / senk reduzier verringer
erlaub gestatte / verbiet verboten untersag
verläng / kündig gekündigt
buchen buche gebucht reservier / stornier
beginn anfang start gestartet / ende endet beend stopp gestoppt
links linke / rechts rechte
größ gross groß höchst meiste / klein kleinst niedrigst wenigste
teuer teure teuerst / billig günstig
früh frühest / spät spätest
maxim / minim
erste ersten premier première / letzte letzten dernier dernière
primer primero primera primo prima primeir eerste / últim ultimo ultima laatste
import / export
senden sende gesendet verschick / empfang erhalte
mehr / weniger
oben / unten
warm heiß chaud calient caldo calda quente / kalt froid fría frío freddo freddo fredda frio fria koud
ouvr / ferm
achet / vend vente
ajout / supprim enlev retir effac
augment / rédu diminu baiss
autoris permet permis / interdi
gauche / droite
début commenc démarr / termin arrêt
accept / refus rechaz rifiut recus
réserv / annul
envoy / recev reçoi reçu
entrée entrata entrada ingang / sortie uscita salida saída uitgang
crédit credit crédito / débit debit débito
abro abre abrir abri / cierr cerr fecho fech
compr / vend
añad agreg / elimin borr quit
aument subir / reduc disminu bajar
permit / prohib proib
izquierd / derech
inici empez empiez comenz comienz / termin acab deten finaliz
encend enciend acend / apag
aprire apro apre aperto aperta / chiud chius
aggiung / rimuov elimin cancell
accend acces / spegn spent
prenot / annull
sinistra / destra
più mais más plus / meno menos moins
adicion inclu / remov exclu
começ / termin
esquerd / direit
ligar ligo liga / desligar desligo
openen open / sluit sluiten dicht
koop kopen / verkoop verkopen
toevoeg voeg / verwijder
verhoog verhogen / verlaag verlagen
toegestaan toestaan / verboden verbieden
boek boeken reserveer / annuleer annuleren
accepteer aanvaard / weiger
avant antes / après después depois
vorher davor / nachher danach
verlengen verleng / opzeggen opzeg
включ / выключ отключ
откры / закры
добав / удал
купить купи / продать прода
увелич / уменьш
разреш / запре
włącz / wyłącz
otwier otworz / zamyk zamkn
dodać dodaj / usunąć usuń
monter augment / baisser diminu
subo subir sube / bajo bajar baja
aument / diminu reduz riduc
accend acces / speng
alzo alzare / abbass
höher hoger / tiefer niedriger lager
aktiver / inaktiver deaktiver
öppn åbn åpn / stäng luk lukk
"""
CHARACTERS: Final = (
    ("有効", "無効"), ("启用", "禁用"), ("啟用", "停用"), ("打开", "关闭"), ("開始", "終了"), ("开始", "结束"),
    ("追加", "削除"),
    ("添加", "删除"), ("增加", "减少"), ("許可", "禁止"), ("允许", "禁止"), ("最大", "最小"), ("最初", "最後"),
    ("左", "右"),
    ("開く", "閉じ"), ("登录", "退出"), ("买", "卖"), ("購入", "販売"), ("取得", "返却"), ("入室", "退室"),
)  # fmt: skip
"""Opposites of Chinese and Japanese, which put no blanks between words."""
PREFIXES: Final = (
    ("", "des"), ("", "dés"), ("", "dé"), ("", "de"), ("", "dis"), ("", "in"), ("", "im"), ("", "ir"), ("", "mal"),
    ("", "un"), ("", "ent"), ("", "miss"), ("", "on"), ("", "ont"), ("", "s"), ("", "nicht"), ("", "anti"), ("", "o"),
    ("", "не"),
    ("ein", "aus"), ("an", "aus"), ("an", "ab"), ("auf", "ab"), ("auf", "zu"), ("ver", "ent"), ("be", "ent"),
    ("hoch", "herunter"), ("hinauf", "hinunter"), ("zu", "ab"), ("vor", "nach"), ("in", "ex"), ("im", "ex"),
    ("in", "uit"), ("aan", "uit"), ("aan", "af"), ("op", "af"), ("ver", "ont"), ("en", "dé"), ("em", "dés"),
    ("en", "des"), ("em", "des"), ("w", "wy"), ("в", "вы"), ("от", "за"), ("на", "с"), ("in", "ut"), ("på", "av"),
    ("ac", "dé"), ("aktiv", "deaktiv"), ("etkin", "devre"),
)  # fmt: skip
PARTICLES: Final = (
    ("an", "aus"), ("ein", "aus"), ("an", "ab"), ("auf", "zu"), ("auf", "ab"), ("hoch", "runter"), ("aan", "uit"),
    ("aan", "af"), ("op", "af"), ("in", "uit"), ("open", "dicht"), ("på", "av"), ("ein", "ab"), ("op", "neer"),
)  # fmt: skip
"""Verbs' particles at the end of a clause: schalte das Licht an / aus."""


def _by_beginning() -> dict[str, tuple[tuple[str, int], ...]]:
    found: dict[str, list[tuple[str, int]]] = {}
    for axis in filter(None, _AXES.splitlines()):
        for pole, words in enumerate(axis.split(" / ")):
            for word in words.split():
                found.setdefault(word, []).append((axis, pole))
    return {word: tuple(places) for word, places in found.items()}


BY_BEGINNING: Final = _by_beginning()
"""The axes and poles of words by how they begin."""
LONGEST: Final = max(map(len, BY_BEGINNING))


SHORTEST: Final = 4
"""Letters of a word behind a prefix that turns it."""
INFLECTED: Final = 3
"""Letters at a word's end that may differ: activar / desactivado."""
MAX_WORDS: Final = 60


@dataclass(frozen=True, slots=True)
class Opposites:
    """What a question names of opposite things, and its words."""

    poles: dict[str, frozenset[int]] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    characters: frozenset[str] = frozenset()


NONE: Final = Opposites()


def read(question: Words) -> Opposites:
    """Linear in the words."""
    if not is_read(question):
        return NONE
    words = question.words[:MAX_WORDS]
    poles: dict[str, set[int]] = {}
    for word in words:
        for axis, pole in _places(word):
            poles.setdefault(axis, set()).add(pole)
    text = "" if all(map(str.isascii, words)) else " ".join(words)
    characters = frozenset(one for pair in CHARACTERS for one in pair if one in text) if text else frozenset()
    return Opposites({axis: frozenset(found) for axis, found in poles.items()}, words, characters)


def _places(word: str) -> Iterator[tuple[str, int]]:
    for length in range(3, min(len(word), LONGEST) + 1):
        yield from BY_BEGINNING.get(word[:length], ())


def compare(one: Opposites, other: Opposites) -> str:
    """The opposite words, else an empty text."""
    for axis, poles in one.poles.items():
        against = other.poles.get(axis, poles)
        if poles.isdisjoint(against):
            return axis
    for left, right in CHARACTERS:
        if _turned(one.characters, other.characters, left, right):
            return f"{left} / {right}"
    return _particles(one.words, other.words) or _prefixed(one.words, other.words) or _prefixed(other.words, one.words)


def _turned(one: frozenset[str], other: frozenset[str], left: str, right: str) -> bool:
    ours, theirs = one & {left, right}, other & {left, right}
    return bool(ours) and bool(theirs) and ours.isdisjoint(theirs)


def _particles(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    if not one or not other or one[-1] == other[-1]:
        return ""
    ends = {one[-1], other[-1]}
    return next((f"{left} / {right}" for left, right in PARTICLES if ends == {left, right}), "")


def _prefixed(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    """A word of the one that is a word of the other behind an opposite prefix."""
    theirs = [word for word in other if word not in one]
    for word in one:
        if word in other:
            continue
        for prefix, opposite in PREFIXES:
            base = word[len(prefix) :]
            if len(base) < SHORTEST or not word.startswith(prefix):
                continue
            beginning = opposite + base[: max(SHORTEST, len(base) - INFLECTED)]
            turned = next((w for w in theirs if w.startswith(beginning) and _ends_alike(w, opposite + base)), "")
            if turned:
                return f"{word} / {turned}"
    return ""


def _ends_alike(word: str, expected: str) -> bool:
    return abs(len(word) - len(expected)) <= INFLECTED
