"""Which words are English glue, and whether a question is in English at all.

English words for numbers.

Words of closed classes (months, weekdays, currencies, units): the class of each and its usual form.

A word without its commonest English endings: enough to find orders in order, never shown to anyone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from api.languages.function_words import BY_WORD, SHARED, words_in
from api.languages.function_words import ENGLISH as GRAMMAR
from api.languages.identify import ANY_SCRIPT, LATIN, script_of

FUNCTION_WORDS: Final = words_in(
    """
    a an the this that these those my your his her its our their i me we us you he she it they them him is are was
    were be been being am do does did done have has had can could will would shall should may might must of to in
    on at by for from with as into onto about over under and or but nor so if then than not no what which who whom
    whose when where why how there here please just also too very really some any all get got tell explain show
    give let know want need like would
    """
)
"""Words that carry grammar rather than matter."""

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


def is_foreign(words: Iterable[str]) -> bool:
    """More words of other languages' glue than of English glue, or another script."""
    english = foreign = 0
    for word in words:
        if word in ENGLISH or word in GRAMMAR:
            english += 1
        elif word in FOREIGN or not (word.isascii() or script_of(word[0]) in (LATIN, ANY_SCRIPT)):
            foreign += 1
    return foreign > english


def is_german(words: Iterable[str]) -> bool:
    """Nouns have capitals there: a capital names nothing."""
    english = german = 0
    for word in words:
        english += word in ENGLISH
        german += word in GERMAN
    return german > english


def ranked(text: str, start: int) -> dict[str, int]:
    """Words that count up from `start`."""
    return {word: value for value, word in enumerate(text.split(), start)}


SMALL: Final = ranked(
    """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""",
    start=0,
)
TENS: Final = {
    word: 10 * value for word, value in ranked("twenty thirty forty fifty sixty seventy eighty ninety", start=2).items()
}
SCALES: Final = {"hundred": 100, "thousand": 1000, "k": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
ORDINALS: Final = ranked("first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth", start=1)
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
SOFT: Final = {"one": "1", "second": "2", "twice": "2", "once": "1"}
"""May be a number (two of one kind) or not (which one, wait a second): dropped where that makes the two agree."""
SUFFIXES: Final = words_in("st nd rd th")
HOURS: Final = words_in("am pm")
WORDS: Final = frozenset((*SMALL, *TENS, *SCALES, *ORDINALS, *OTHER_NUMBERS, *SOFT, "minus"))


STRICT: Final = frozenset(("month", "weekday", "currency", "continent"))
"""Classes in which one question may not name what the other leaves out."""

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
"""Mostly something else: a month, a coin or a unit only after a number or such a word."""
MONTH_BEFORE: Final = words_in("in of by since until last next this early late mid and through from to")

CLASSES: Final = {
    word: (kind, member.split()[0])
    for kind, members in _MEMBERS.items()
    for member in members.split(";")
    for word in member.split()
    if word not in AMBIGUOUS or kind == "month"
}


VOWELS: Final = frozenset("aeiouy")


def stem(word: str) -> str:
    """transfers, transferred, transferring: transfer. Words of up to three letters are left alone."""
    if len(word) < 4:
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-2] if word.endswith(("sses", "shes", "ches", "xes", "zes")) else word[:-1]
    for ending in ("ing", "ed"):
        base = word.removesuffix(ending)
        if base != word and len(base) > 2 and not VOWELS.isdisjoint(base):
            return _bare(base)
    return word.removesuffix("e") if len(word) > 4 else word


def _bare(base: str) -> str:
    """stopp is stop, enabl stays: `enable` loses its e as well."""
    if base[-1] == base[-2] and base[-1] not in "ls":
        return base[:-1]
    return base[:-1] + "y" if base[-1] == "i" else base


def inflections(verb: str) -> tuple[str, ...]:
    """The regular forms of a verb or noun; harmless where one does not exist."""
    if verb.endswith("e"):
        return verb, verb + "s", verb + "d", verb[:-1] + "ing"
    if verb.endswith("y") and verb[-2] not in VOWELS:
        return verb, verb[:-1] + "ies", verb[:-1] + "ied", verb + "ing"
    plural = verb + ("es" if verb.endswith(("s", "sh", "ch", "x", "z")) else "s")
    forms: tuple[str, ...] = (verb, plural, verb + "ed", verb + "ing")
    if len(verb) > 2 and verb[-1] not in "aeiouywx" and verb[-2] in "aeiou" and verb[-3] not in "aeiou":
        forms += (verb + verb[-1] + "ed", verb + verb[-1] + "ing")
    return forms
