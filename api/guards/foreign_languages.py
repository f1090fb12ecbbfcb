"""Guards for German, French, Spanish, Italian, Portuguese and Dutch, with basic rules for a few other languages.

They read questions in which English function words do not prevail. They compare content words, negation, antonyms and
word order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from api.guards.words import Words
from api.languages.function_words import BY_WORD, ENGLISH, SHARED, words_in
from api.languages.identify import ANY_SCRIPT, LATIN, script_of

UNSPACED: Final = frozenset(["HAN", "KANA", "THAI", "LAO", "KHMER", "MYANMAR"])
"""Scripts without spaces between words. The guards compare these character by character."""
GRAMMAR_CHARACTERS: Final = frozenset(
    "的了吗嗎呢吧啊我你您他她它们們是在有和与與或怎么麼样樣如何什甚哪里裡儿兒请請问問可以能会會要想需应應该該把被给給对對为為这這那个個一方法"
)
"""Chinese characters with a grammatical role. In Japanese, hiragana have it."""
HIRAGANA: Final = ("\u3040", "\u309f")
STEM_LETTERS: Final = 5
"""Letters that identify an inflected word."""
MAX_WORDS: Final = 60


def read_foreign_words(question: Words) -> frozenset[str]:
    """Returns the stems of words, or the characters in scripts without spaces. Empty for Latin text."""
    found: set[str] = set()
    for word in question.words[:MAX_WORDS]:
        if word.isascii():
            continue
        script = script_of(word[0])
        if script in UNSPACED:
            found.update(one for one in word if _has_meaning(one))
        elif script not in (LATIN, ANY_SCRIPT):
            found.add(word[:STEM_LETTERS])
    return frozenset(found)


def _has_meaning(character: str) -> bool:
    return (
        character not in GRAMMAR_CHARACTERS and not HIRAGANA[0] <= character <= HIRAGANA[1] and not character.isascii()
    )


def compare_foreign_words(one: frozenset[str], other: frozenset[str]) -> str:
    """Returns the words that differ if each question has words the other lacks, else an empty string."""
    ours, theirs = one - other, other - one
    return f"{' '.join(sorted(ours))} / {' '.join(sorted(theirs))}" if ours and theirs else ""


def is_foreign_question(question: Words) -> bool:
    """Returns whether these guards apply: another language prevails, or no English function word appears."""
    return not question.english or ENGLISH.isdisjoint(question.words)


NEGATORS: Final = words_in(
    """
    nicht kein keine keinen keiner keinem keines nie niemals nichts niemand ne n pas jamais rien aucun aucune non no
    nunca jamás ningún ninguna ninguno nada nadie tampoco mai niente nulla nessun nessuno nessuna não nem nenhum nenhuma
    ninguém niet geen nooit niets nie nigdy nic żaden żadna inte aldrig ingen inga inget ikke intet ne není nejsou
    не нет нельзя никогда ничего нету değil yok ei eivät nem nincs
    """
)
WITHOUT: Final = words_in("ohne sans sin senza sem zonder bez utan uden uten без olmadan")
OR: Final = words_in("oder ou o oppure of lub czy eller или veya")
"""Before `not`, these ask "whether or not"."""
AMBIGUOUS_NEGATORS: Final = words_in("no non ne n nada mai nic ei sans sin")
"""Not negators unless another language prevails."""
JAPANESE: Final = re.compile(r"ません|ない|なく|なかった|ずに|不可|禁止")
CHINESE: Final = re.compile(r"[不没沒未别別勿]")
KANA: Final = re.compile(r"[\u3040-\u30ff]")
A_NOT_A: Final = re.compile(r"(\w)[不没沒]\1")
"""The Chinese A-not-A question: 能不能 means "can or cannot" and negates nothing."""
TURKISH: Final = re.compile(r"m[ıiuü]yor|\wm[ae]z(?:\b|s)")


@dataclass(frozen=True, slots=True)
class ForeignNegation:
    """The negation found in a question."""

    negated: bool = False
    without: bool = False


NO_NEGATION: Final = ForeignNegation()
NO_WORDS: Final[frozenset[str]] = frozenset()
PORTUGUESE_IN: Final = words_in("no")
"""The Portuguese contraction of `em` and `o` (in the)."""


def read_foreign_negation(question: Words) -> ForeignNegation:
    """Returns the negation in the question, in time linear in its words."""
    if not is_foreign_question(question):
        return NO_NEGATION
    words = question.words
    ignored = AMBIGUOUS_NEGATORS if question.english else PORTUGUESE_IN if _is_portuguese(words) else NO_WORDS
    return ForeignNegation(_is_negated(words, ignored), any(word in WITHOUT and word not in ignored for word in words))


def _is_portuguese(words: tuple[str, ...]) -> bool:
    found = Counter(language for word in words for language in BY_WORD.get(word, ()))
    return found["pt"] > found["es"]


def _is_negated(words: tuple[str, ...], ignored: frozenset[str]) -> bool:
    for index, word in enumerate(words):
        if word in NEGATORS and word not in ignored:
            if index and words[index - 1] in OR:
                continue
            return True
        if not word.isascii() and _has_inner_negation(word):
            return True
    return False


def _has_inner_negation(word: str) -> bool:
    """Detects negation inside a word, for agglutinative languages and scripts without spaces."""
    if KANA.search(word):
        return JAPANESE.search(word) is not None
    return CHINESE.search(A_NOT_A.sub(r"\1", word)) is not None or TURKISH.search(word) is not None


def compare_foreign_negation(one: ForeignNegation, other: ForeignNegation) -> str:
    """Returns the negation that only one question has, else an empty string."""
    if one == other:
        return ""
    return f"{_shown(one)} / {_shown(other)}"


def _shown(negation: ForeignNegation) -> str:
    return (
        " ".join(word for word, is_so in (("not", negation.negated), ("without", negation.without)) if is_so) or "none"
    )


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
CHARACTER_ANTONYMS: Final = (
    ("有効", "無効"), ("启用", "禁用"), ("啟用", "停用"), ("打开", "关闭"), ("開始", "終了"), ("开始", "结束"),
    ("追加", "削除"),
    ("添加", "删除"), ("增加", "减少"), ("許可", "禁止"), ("允许", "禁止"), ("最大", "最小"), ("最初", "最後"),
    ("左", "右"),
    ("開く", "閉じ"), ("登录", "退出"), ("买", "卖"), ("購入", "販売"), ("取得", "返却"), ("入室", "退室"),
)  # fmt: skip
"""Chinese and Japanese antonyms. These languages have no spaces between words."""
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
"""Particles of separable verbs at the end of a clause: schalte das Licht an / aus."""


def _poles_by_prefix() -> dict[str, tuple[tuple[str, int], ...]]:
    found: dict[str, list[tuple[str, int]]] = {}
    for axis in filter(None, _AXES.splitlines()):
        for pole, words in enumerate(axis.split(" / ")):
            for word in words.split():
                found.setdefault(word, []).append((axis, pole))
    return {word: tuple(poles) for word, poles in found.items()}


POLES_BY_PREFIX: Final = _poles_by_prefix()
"""The axis and pole of each antonym by the beginning of the word."""
MAX_PREFIX: Final = max(map(len, POLES_BY_PREFIX))


MIN_BASE_LETTERS: Final = 4
"""Minimum letters in a word after its negative prefix."""
MAX_ENDING_LETTERS: Final = 3
"""Final letters that may differ: activar / desactivado."""


@dataclass(frozen=True, slots=True)
class Opposites:
    """The antonyms in a question, and its words."""

    poles: dict[str, frozenset[int]] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    characters: frozenset[str] = frozenset()


NO_OPPOSITES: Final = Opposites()


def read_foreign_opposites(question: Words) -> Opposites:
    """Returns the antonyms in the question, in time linear in its words."""
    if not is_foreign_question(question):
        return NO_OPPOSITES
    words = question.words[:MAX_WORDS]
    poles: dict[str, set[int]] = {}
    for word in words:
        for axis, pole in _poles(word):
            poles.setdefault(axis, set()).add(pole)
    text = "" if all(map(str.isascii, words)) else " ".join(words)
    characters = frozenset(one for pair in CHARACTER_ANTONYMS for one in pair if one in text) if text else frozenset()
    return Opposites({axis: frozenset(found) for axis, found in poles.items()}, words, characters)


def _poles(word: str) -> Iterator[tuple[str, int]]:
    for length in range(3, min(len(word), MAX_PREFIX) + 1):
        yield from POLES_BY_PREFIX.get(word[:length], ())


def compare_foreign_opposites(one: Opposites, other: Opposites) -> str:
    """Returns the opposite words, else an empty string."""
    for axis, poles in one.poles.items():
        other_poles = other.poles.get(axis, poles)
        if poles.isdisjoint(other_poles):
            return axis
    for left, right in CHARACTER_ANTONYMS:
        if _are_opposite(one.characters, other.characters, left, right):
            return f"{left} / {right}"
    return _particles(one.words, other.words) or _prefixed(one.words, other.words) or _prefixed(other.words, one.words)


def _are_opposite(one: frozenset[str], other: frozenset[str], left: str, right: str) -> bool:
    ours, theirs = one & {left, right}, other & {left, right}
    return bool(ours) and bool(theirs) and ours.isdisjoint(theirs)


def _particles(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    if not one or not other or one[-1] == other[-1]:
        return ""
    ends = {one[-1], other[-1]}
    return next((f"{left} / {right}" for left, right in PARTICLES if ends == {left, right}), "")


def _prefixed(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    """Returns a word and its opposite that differ only in a negative prefix, else an empty string."""
    theirs = [word for word in other if word not in one]
    for word in one:
        if word in other:
            continue
        for prefix, opposite in PREFIXES:
            base = word[len(prefix) :]
            if len(base) < MIN_BASE_LETTERS or not word.startswith(prefix):
                continue
            beginning = opposite + base[: max(MIN_BASE_LETTERS, len(base) - MAX_ENDING_LETTERS)]
            opposite_word = next((w for w in theirs if w.startswith(beginning) and _ends_alike(w, opposite + base)), "")
            if opposite_word:
                return f"{word} / {opposite_word}"
    return ""


def _ends_alike(word: str, expected: str) -> bool:
    return abs(len(word) - len(expected)) <= MAX_ENDING_LETTERS


PREPOSITIONS: Final = words_in(
    """
    in nach von zu zum zur auf als für über vor gegen aus durch en à a au de du des vers par que pour avant après contre
    por para antes después hasta da dal di per che prima dopo em ao aos até naar van tot dan voor na op uit till från än
    före efter do od niż przed po w в на из от до чем перед после к til fra før etter
    """
)
"""Prepositions: swapping the words around one changes the meaning."""
AND_IN_DUTCH: Final = "en"
DUTCH: Final = words_in("ik het een van hoe waar mijn naar niet voor zijn wat kan")


def read_foreign_order(question: Words) -> tuple[str, ...]:
    """Returns the words in order; empty if these guards do not apply."""
    return question.words[:MAX_WORDS] if is_foreign_question(question) else ()


def compare_foreign_order(one: tuple[str, ...], other: tuple[str, ...]) -> str:
    """Returns two words that changed places around a preposition, else an empty string."""
    if one == other or len(one) != len(other):
        return ""
    moved = [index for index, (left, right) in enumerate(zip(one, other, strict=True)) if left != right]
    if len(moved) != 2:
        return ""
    first, last = moved
    if (one[first], one[last]) != (other[last], other[first]) or _is_grammar(one[first]) or _is_grammar(one[last]):
        return ""
    between = {word for word in one[first + 1 : last] if word in PREPOSITIONS}
    if AND_IN_DUTCH in between and not DUTCH.isdisjoint(one):
        between.discard(AND_IN_DUTCH)
    return f"{' '.join(one[first : last + 1])} / {' '.join(other[first : last + 1])}" if between else ""


def _is_grammar(word: str) -> bool:
    return word in BY_WORD or word in SHARED
