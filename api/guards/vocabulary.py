"""Word lists and rules that several guards share: function words, numbers, classes such as months and units, stems.

Also maps phrases with the same meaning to one form before any guard compares them (2FA, ATMs, time spans).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from api.languages.function_words import BY_WORD, SHARED, words_in
from api.languages.function_words import ENGLISH as GRAMMAR

FUNCTION_WORDS: Final = words_in(
    """
    a an the this that these those my your his her its our their i me we us you he she it they them him is are was
    were be been being am do does did done have has had can could will would shall should may might must of to in
    on at by for from with as into onto about over under and or but nor so if then than not no what which who whom
    whose when where why how there here please just also too very really some any all get got tell explain show
    give let know want need like would
    """
)
"""English function words: they carry grammar, not content."""

AUXILIARIES: Final = words_in(
    "is are am was were do does did can could will would shall should may might must has have had"
)
ASKING_WORDS: Final = words_in("who how what when where why which")
REQUESTS: Final = words_in(
    """
    tell explain show describe give help let provide list name define write find locate advise suggest recommend guide
    walk clarify teach answer check look confirm say please kindly assist know remind inform share
    """
)
"""Requests addressed to the assistant: can you tell me."""
SUBJECT_PRONOUNS: Final = words_in("i we you they he she")
ASKING_VERBS: Final = words_in("know me wondering ask explain tell understand out see about")

ENGLISH: Final = words_in(
    """
    the is are was were do does did have has can could will would should what which who when where why how my your
    his her our their you they it this that these those and of to for from with not about i
    """
)
GERMAN: Final = words_in(
    """
    der das und ist ich wie ein eine einen einem einer mein meine meinen meiner meinem nicht für mit auf sind kann
    wo warum wann wer von vom zum zur den dem des im ihr ihre es sich wird werden haben hat gibt man bei aus
    """
)
OTHERS: Final = words_in(
    """
    el la los las una uno del por para con qué cómo cuál dónde cuándo quién es está mi su que como cual donde le
    les des du et est une comment quel quelle quels où pourquoi combien je mon ma mes pour dans avec puis il lo
    gli della nel come cosa dove quando perché quanto posso sono mio mia os as um uma não você meu minha faço
    fazer em na nas ao até een het van hoe wat waar ik mijn de en och jag hur vad är inte det som jak co gdzie
    kiedy jest się mam moje nie
    """
)
FOREIGN: Final = (GERMAN | OTHERS | BY_WORD.keys()) - ENGLISH - GRAMMAR - SHARED


def number_from(text: str, start: int) -> dict[str, int]:
    """Maps words to consecutive numbers from `start`."""
    return {word: value for value, word in enumerate(text.split(), start)}


SMALL: Final = number_from(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""",
    start=0,
)
TENS: Final = {
    word: 10 * value
    for word, value in number_from("twenty thirty forty fifty sixty seventy eighty ninety", start=2).items()
}
SCALES: Final = {"hundred": 100, "thousand": 1000, "k": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
ORDINALS: Final = number_from(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth", start=1
)
OTHER_NUMBERS: Final = {
    "half": "0.5",
    "zero": "0",
    "dozen": "12",
    "ii": "2",
    "iii": "3",
    "iv": "4",
    "vii": "7",
    "viii": "8",
    "ix": "9",
}
AMBIGUOUS_NUMBERS: Final = {"one": "1", "second": "2", "twice": "2", "once": "1"}
"""Ambiguous: a number (two of one kind) or not (which one, wait a second). Dropped if the questions then agree."""
ORDINAL_SUFFIXES: Final = words_in("st nd rd th")
AM_PM: Final = words_in("am pm")
NUMBER_WORDS: Final = frozenset((*SMALL, *TENS, *SCALES, *ORDINALS, *OTHER_NUMBERS, *AMBIGUOUS_NUMBERS, "minus"))


STRICT_CLASSES: Final = frozenset(("month", "weekday", "currency", "continent"))
"""Classes that both questions must name if one does."""

_MEMBERS: Final = {
    "month": """january jan; february feb; march; april apr; may; june jun; july jul; august aug; september sept sep;
        october oct; november nov; december dec""",
    "weekday": """monday mondays; tuesday tuesdays; wednesday wednesdays; thursday thursdays; friday fridays;
        saturday saturdays; sunday sundays""",
    "currency": """usd dollar dollars bucks; eur euro euros; gbp pound pounds sterling quid; jpy yen; inr rupee rupees;
        chf franc francs; cny yuan renminbi rmb; cad; aud; peso pesos mxn; rub ruble rubles; krw won; btc bitcoin
        bitcoins; eth ethereum; cent cents; pence penny pennies; sek krona; nok krone; pln zloty; brl real reais;
        try lira; zar rand""",
    "length": """mile miles mi; kilometre kilometres kilometer kilometers km kms; metre metres meter meters; centimetre
        centimetres centimeter centimeters cm; millimetre millimetres millimeter millimeters mm; inch inches; foot feet
        ft; yard yards""",
    "mass": """kilogram kilograms kilogramme kilogrammes kg kgs kilo kilos; gram grams gramme grammes; milligram
        milligrams mg; ounce ounces oz; lb lbs; tonne tonnes ton tons; stone""",
    "volume": """litre litres liter liters; millilitre millilitres milliliter milliliters ml; gallon gallons; pint
        pints; cup cups; tablespoon tablespoons tbsp; teaspoon teaspoons tsp; quart quarts""",
    "temperature": "celsius centigrade; fahrenheit; kelvin",
    "data": """kilobyte kilobytes kb; megabyte megabytes mb; gigabyte gigabytes gb; terabyte terabytes tb; bit bits;
        byte bytes""",
    "speed": "mph; kmh kph; knots",
    "time": """second seconds secs sec; minute minutes min mins; hour hours hr hrs hourly; day days daily;
        week weeks weekly; month months monthly; year years yr yrs yearly annually annual; decade decades;
        century centuries""",
    "continent": "africa african; europe european eu; asia asian; antarctica; australia australian",
}
AMBIGUOUS: Final = words_in("may march won real try rand stone min second sec foot cup")
"""Usually mean something else. They are months, currencies or units only next to a number or a preposition of time."""
MONTH_BEFORE: Final = words_in("in of by since until last next this early late mid and through from to")

CLASSES: Final = {
    word: (kind, member.split()[0])
    for kind, members in _MEMBERS.items()
    for member in members.split(";")
    for word in member.split()
    if word not in AMBIGUOUS or kind == "month"
}


VOWELS: Final = frozenset("aeiouy")


REMEMBERED: Final = 2_048
"""Words whose stems are remembered."""


class Stems(dict[str, str]):
    """The stems of words that were seen. Only words of letters are kept: there is no end of numbers and codes."""

    def __missing__(self, word: str) -> str:
        found = _stem_of(word)
        if word.isalpha():
            if len(self) >= REMEMBERED:
                self.clear()
            self[word] = found
        return found


stem: Final[Callable[[str], str]] = Stems().__getitem__
"""Returns the stem: transfer for transfers, transferred and transferring. Words of up to three letters stay."""


def _stem_of(word: str) -> str:
    if len(word) < 4:
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-2] if word.endswith(("sses", "shes", "ches", "xes", "zes")) else word[:-1]
    for ending in ("ing", "ed"):
        base = word.removesuffix(ending)
        if base != word and len(base) > 2 and not VOWELS.isdisjoint(base):
            return _undouble(base)
    return word.removesuffix("e") if len(word) > 4 else word


def _undouble(base: str) -> str:
    """Undoes a doubled consonant (stopp becomes stop) and turns a final i into y."""
    if base[-1] == base[-2] and base[-1] not in "ls":
        return base[:-1]
    return base[:-1] + "y" if base[-1] == "i" else base


def inflections(verb: str) -> tuple[str, ...]:
    """Returns the regular forms of a verb or noun. Forms that do not exist do no harm."""
    if verb.endswith("e"):
        return verb, verb + "s", verb + "d", verb[:-1] + "ing"
    if verb.endswith("y") and verb[-2] not in VOWELS:
        return verb, verb[:-1] + "ies", verb[:-1] + "ied", verb + "ing"
    plural = verb + ("es" if verb.endswith(("s", "sh", "ch", "x", "z")) else "s")
    forms: tuple[str, ...] = (verb, plural, verb + "ed", verb + "ing")
    if len(verb) > 2 and verb[-1] not in "aeiouywx" and verb[-2] in "aeiou" and verb[-3] not in "aeiou":
        forms += (verb + verb[-1] + "ed", verb + verb[-1] + "ing")
    return forms


_PHRASES: Final = """
mfa = 2fa
two factor authentication = 2fa
2 factor authentication = 2fa
multi factor authentication = 2fa
multifactor authentication = 2fa
two step verification = 2fa
2 step verification = 2fa
two factor = 2fa
2 factor = 2fa
cashpoint = atm
cashpoints = atms
cash machine = atm
cash machines = atms
cash point = atm
cash points = atms
mon fri = weekdays
mon to fri = weekdays
monday to friday = weekdays
monday through friday = weekdays
monday friday = weekdays
mondays to fridays = weekdays
say no to = decline
says no to = declines
saying no to = declining
said no to = declined
noon = 12 pm
midday = 12 pm
midnight = 12 am
half an hour = 30 minutes
an hour and a half = 90 minutes
a fortnight = 14 days
one fortnight = 14 days
"""
DAY_PARTS: Final = {
    ("in", "the", "morning"): "am",
    ("in", "the", "afternoon"): "pm",
    ("in", "the", "evening"): "pm",
    ("at", "night"): "pm",
}
"""After an hour: seven in the morning."""
WEEKS: Final = words_in("week weeks")
YEARS: Final = words_in("year years")
HOUR_WORDS: Final = words_in("hour hours hr hrs")
SPANS: Final = WEEKS | YEARS | HOUR_WORDS


def _phrases() -> dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]]:
    """Returns the phrases by first word, longest first."""
    table: dict[str, list[tuple[tuple[str, ...], tuple[str, ...]]]] = {}
    for line in filter(None, _PHRASES.splitlines()):
        phrase, _, same = line.partition(" = ")
        words = tuple(phrase.split())
        table.setdefault(words[0], []).append((words, tuple(same.split())))
    for phrases in table.values():
        phrases.sort(key=lambda one: -len(one[0]))
    return table


PHRASES: Final = _phrases()
TRIGGERS: Final = (
    frozenset({"factor", "step", "mfa", "multi", "multifactor", "fri", "friday", "fridays", "say", "says", "saying"})
    | {"said", "noon", "midday", "midnight", "fortnight", "hour", "machine", "machines", "cashpoint", "cashpoints"}
    | {"point", "points", "morning", "afternoon", "evening", "night"}
    | SPANS
)
"""A text without any of these needs no rewriting."""


@dataclass(slots=True)
class NormalizedWords:
    """`words` in normalized form. `indexes`: the new index of each old word. `spans`: time spans as written."""

    words: list[str] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    spans: dict[int, str] = field(default_factory=dict)


def normalize_phrases(words: Sequence[str]) -> NormalizedWords:
    """Normalizes phrases, hours and time spans in one pass over the words."""
    result = NormalizedWords()
    index = 0
    while index < len(words):
        taken, same = _phrase(words, index)
        if not taken:
            taken, same = _hour(words, index)
        if not taken:
            taken, same = _span(words, index)
            if taken:
                result.spans[len(result.words)] = " ".join(words[index : index + taken])
        result.indexes += [len(result.words)] * max(taken, 1)
        result.words += same if taken else (words[index],)
        index += max(taken, 1)
    return result


def remap_indexes(indexes: Iterable[int], result: NormalizedWords) -> frozenset[int]:
    """Maps indexes of old words to indexes of new words."""
    return frozenset(result.indexes[index] if index < len(result.indexes) else len(result.words) for index in indexes)


def _phrase(words: Sequence[str], index: int) -> tuple[int, tuple[str, ...]]:
    for phrase, same in PHRASES.get(words[index], ()):
        if tuple(words[index : index + len(phrase)]) == phrase:
            return len(phrase), same
    return 0, ()


def _hour(words: Sequence[str], index: int) -> tuple[int, tuple[str, ...]]:
    """Normalizes an hour: seven in the morning and seven am become 7 am."""
    value, size = _value(words, index)
    if not size or not 1 <= value <= 12 or value != int(value):
        return 0, ()
    index += size
    for day_part, mark in DAY_PARTS.items():
        if tuple(words[index : index + len(day_part)]) == day_part:
            return size + len(day_part), (f"{value:g}", mark)
    if words[index : index + 1] and words[index] in ("am", "pm") and not words[index - 1][0].isdigit():
        return size + 1, (f"{value:g}", words[index])
    return 0, ()


def _span(words: Sequence[str], index: int) -> tuple[int, tuple[str, ...]]:
    """Normalizes a time span: weeks to days, years to months, hours to minutes or days."""
    value, size = _value(words, index)
    unit = words[index + size] if size and index + size < len(words) else ""
    if unit not in SPANS:
        return 0, ()
    if unit in WEEKS:
        return size + 1, (f"{7 * value:g}", "days")
    if unit in YEARS:
        return size + 1, (f"{12 * value:g}", "months")
    if value % 24 == 0:
        return size + 1, (f"{value / 24:g}", "days")
    return size + 1, (f"{60 * value:g}", "minutes")


def _value(words: Sequence[str], index: int) -> tuple[float, int]:
    """Reads the number at `index`; returns its value and word count. Reads up to four digits, or words up to
    ninety-nine.
    """
    word = words[index]
    if word[0].isdigit():
        plain = len(word) <= 5 and word.isascii() and word.replace(".", "", 1).isdigit() and word[-1] != "."
        return (float(word), 1) if plain else (0.0, 0)
    if word in TENS:
        unit = SMALL.get(words[index + 1], 0) if index + 1 < len(words) else 0
        return (float(TENS[word] + unit), 2) if 0 < unit < 10 else (float(TENS[word]), 1)
    return (float(SMALL[word]), 1) if word in SMALL else (0.0, 0)
