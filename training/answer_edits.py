"""Changes answers as models vary them: without a change of meaning (`reword`, `dress`), or of one fact (`falsify`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from random import Random
from typing import Final

_CODE: Final = re.compile(r"```.*?```|`[^`]*`|\[\d+\]|https?://\S+|\S+@\S+|^\d+\.(?= )", re.DOTALL | re.MULTILINE)
_NUMBER: Final = re.compile(r"(?<![\w.,:/-])\d+(?:[.,:]\d+)*(?![\w/-])")
_WORDS: Final = {
    "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10", "twelve": "12", "fifteen": "15", "twenty": "20", "thirty": "30", "forty": "40",
    "fifty": "50", "sixty": "60", "ninety": "90",
}  # fmt: skip
_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS: Final = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_COLORS: Final = ("red", "green", "blue", "yellow", "orange", "white", "black")
_UNITS: Final = (
    ("minutes", "hours", "days", "weeks", "months", "years"),
    ("minute", "hour", "day", "week", "month", "year"),
    ("daily", "weekly", "monthly", "annually"),
    ("mm", "cm", "km"),
    ("kg", "g"),
    ("GB", "MB", "TB"),
    ("million", "billion", "thousand"),
    ("first", "second", "third", "last"),
    ("twice", "once", "three times"),
)
_OPPOSITES: Final = (
    ("before", "after"), ("more", "less"), ("at least", "at most"), ("minimum", "maximum"), ("min.", "max."),
    ("left", "right"), ("above", "below"), ("over", "under"), ("earlier", "later"), ("higher", "lower"),
    ("included", "excluded"), ("includes", "excludes"), ("allowed", "forbidden"), ("permitted", "prohibited"),
    ("with", "without"), ("open", "closed"), ("opens", "closes"), ("increase", "decrease"), ("increases", "decreases"),
    ("always", "never"), ("must", "need not"), ("all", "some"), ("inside", "outside"),
    ("free", "not free"), ("only", "not only"), ("faster", "slower"), ("cheaper", "dearer"), ("up to", "more than"),
    ("from", "until"), ("start", "end"), ("starts", "ends"), ("enable", "disable"), ("on", "off"), ("hot", "cold"),
    ("warm", "cool"), ("safe", "unsafe"), ("possible", "impossible"), ("required", "optional"),
    ("mandatory", "optional"), ("accept", "refuse"), ("sender", "recipient"), ("buyer", "seller"),
    ("tenant", "landlord"), ("employee", "employer"), ("top", "bottom"), ("front", "rear"), ("adults", "children"),
    ("public", "private"), ("internal", "external"), ("new", "old"), ("short", "long"), ("small", "large"),
    ("online", "in person"), ("automatically", "manually"), ("best", "worst"), ("summer", "winter"),
    ("north", "south"), ("east", "west"), ("north", "west"), ("morning", "evening"), ("buy", "sell"),
)  # fmt: skip
_NEGATIONS: Final = (
    ("don't", "do"), ("doesn't", "does"), ("isn't", "is"), ("aren't", "are"), ("can't", "can"), ("cannot", "can"),
    ("won't", "will"), ("is not", "is"), ("are not", "are"), ("do not", "do"), ("does not", "does"),
    ("must not", "must"), ("may not", "may"), ("will not", "will"), ("not", ""),
)  # fmt: skip
_ASSERTIONS: Final = ("is", "are", "can", "may", "will", "must", "should", "works", "has", "was")
_REWORDED: Final = (
    ("roughly", "approximately", "about"), ("must", "have to", "need to"), ("also", "as well"),
    ("however", "but"), ("for example", "for instance", "e.g."), ("at most", "no more than", "a maximum of"),
    ("at least", "no less than", "a minimum of"), ("begins", "starts"), ("begin", "start"), ("ends", "finishes"),
    ("buy", "purchase"), ("get", "receive"), ("gets", "receives"), ("obtain", "get"), ("choose", "select", "pick"),
    ("phone", "telephone"), ("email", "e-mail"), ("is not", "isn't"), ("are not", "aren't"), ("do not", "don't"),
    ("does not", "doesn't"), ("cannot", "can't"), ("you will", "you'll"), ("it is", "it's"), ("we will", "we'll"),
    ("allowed", "permitted"), ("not allowed", "prohibited", "forbidden"), ("free of charge", "at no cost", "for free"),
    ("children", "kids"), ("employees", "staff"),
    ("holiday", "vacation"), ("shows", "displays"), ("use", "make use of"),
    ("large", "big"), ("quickly", "fast"), ("usually", "normally", "typically"), ("such as", "like"),
    ("needed", "required", "necessary"), ("delete", "remove"), ("annually", "every year", "once a year"),
    ("daily", "every day"), ("customers", "clients"), ("cost", "price"), ("each", "every"),
    ("immediately", "at once", "right away"), ("fill in", "complete"),
    ("percent", "per cent"), ("kilometres", "km"), ("metres", "meters"), ("hours", "hrs"), ("minutes", "min"),
    ("store", "shop"), ("mobile", "cell phone"), ("apartment", "flat"), ("trash", "rubbish"), ("car", "vehicle"),
)  # fmt: skip
_OPENINGS: Final = (
    "Sure! ", "Of course. ", "Good question! ", "Thanks for asking. ", "Happy to help. ", "Based on the documents: ",
    "According to the information I have: ", "In short: ", "Here is the answer: ", "From the documentation: ",
    "Certainly! ", "To answer your question: ",
)  # fmt: skip
_CLOSINGS: Final = (
    " Let me know if you have further questions.", " I hope this helps!", " Feel free to ask if anything is unclear.",
    " See the documentation for details.", " Please note that this is general information.", " Anything else?",
    "\n\nIs there anything else I can help with?", " For more, see the linked page.",
)  # fmt: skip
_CURRENCIES: Final = {"$": ("USD {}", "{} dollars", "${}"), "€": ("EUR {}", "{} euros", "€{}")}


def _alternatives(words: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(map(re.escape, words), key=len, reverse=True)
    return re.compile(rf"(?<![\w'-])(?:{'|'.join(longest_first)})(?![\w'-])", re.IGNORECASE)


_REWORDED_PATTERN: Final = _alternatives([word for group in _REWORDED for word in group])
_GROUP_OF: Final = {word: group for group in reversed(_REWORDED) for word in group}


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    """Changes what is neither code, a citation nor an address."""
    parts, place = [], 0
    for match in _CODE.finditer(text):
        parts += [change(text[place : match.start()]), match.group()]
        place = match.end()
    return "".join([*parts, change(text[place:])])


def _like(word: str, model: str) -> str:
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def reword(text: str, random: Random, rate: float = 0.4) -> str:
    """Replaces words by synonyms, and amounts by the same amounts in other formats."""

    def synonym(match: re.Match[str]) -> str:
        if random.random() > rate:
            return match.group()
        others = [word for word in _GROUP_OF[match.group().lower()] if word != match.group().lower()]
        return _like(random.choice(others), match.group())

    def change(part: str) -> str:
        part = _REWORDED_PATTERN.sub(synonym, part)
        for sign, forms in _CURRENCIES.items():
            if random.random() < rate:
                form = random.choice(forms)
                part = re.sub(rf"{re.escape(sign)} ?(\d[\d.,]*\d|\d)(?![\d.,]*[km])", lambda m, f=form: f.format(m[1]), part)  # type: ignore[misc]  # fmt: skip  # noqa: E501
        if random.random() < rate:
            part = re.sub(r"(\d) ?%", random.choice((r"\1 percent", r"\1%", r"\1 %")), part)
        if random.random() < rate:
            part = re.sub(r"\b(\d{1,2}) ?(?:p\.m\.|pm)", _afternoon, part)
        if random.random() < rate / 2:
            part = _spelled(part, random)
        return part

    return _outside_code(text, change)


def _afternoon(match: re.Match[str]) -> str:
    hour = int(match[1])
    return f"{hour + 12}:00" if hour < 12 else match.group()


def _spelled(text: str, random: Random) -> str:
    """Writes small numbers as figures, or as words."""
    if random.random() < 0.5:
        return _alternatives(list(_WORDS)[1:]).sub(lambda match: _WORDS[match.group().lower()], text)
    words = {figure: word for word, figure in _WORDS.items()}
    return re.sub(r"(?<![\w.,:$€-])\d{1,2}(?= (?!%)[a-z])", lambda match: words.get(match.group(), match.group()), text)


def dress(text: str, random: Random) -> str:
    """Adds or removes what says nothing: politeness, citations, Markdown, the layout as a list."""
    change = random.random()
    if change < 0.3:
        return random.choice(_OPENINGS) + text
    if change < 0.5:
        return text + random.choice(_CLOSINGS)
    if change < 0.65:
        return re.sub(r"(?<=\w)([.!])(?=\s|$)", lambda match: f" [{random.randint(1, 4)}]{match.group()}", text)
    if change < 0.75:
        return re.sub(r" ?\[\d+\]", "", text)
    sentences = sentences_of(text)
    if change < 0.9 and len(sentences) > 1 and "```" not in text:
        return "\n".join(f"- {one}" for one in sentences)
    if "\n" in text and "```" not in text:
        return " ".join(line.lstrip("-*0123456789. ") for line in text.splitlines())
    return text.replace("**", "")


def sentences_of(text: str) -> list[str]:
    """Splits prose into sentences."""
    return [one for one in re.split(r"(?<=[.!?])\s+(?=[A-Z\"])", text.strip()) if one]


def falsify(text: str, random: Random, names: Sequence[str]) -> str | None:
    """Changes one fact: a number, a unit, a direction, a negation, a name. None if the text has nothing to change.

    `names`: names to use instead of one in the text.
    """
    ways: list[Callable[[str, Random], str | None]] = [
        *(_other_number, _other_number, _other_unit, _opposite, _opposite, _negated, _negated, _other_day, _swapped)
    ]
    if names:
        ways.append(partial(_other_name, names=names))
    random.shuffle(ways)
    for way in ways:
        places = [match.span() for match in _CODE.finditer(text)]
        masked = _CODE.sub(lambda match: "\0" * len(match.group()), text)
        changed = way(masked, random)
        if changed is not None and changed != masked:
            return _unmasked(changed, [text[start:end] for start, end in places])
    return None


def _unmasked(text: str, pieces: Sequence[str]) -> str:
    rest = iter(pieces)
    return re.sub("\0+", lambda match: _next(rest, match.group()), text)


def _next(pieces: object, mask: str) -> str:
    found = ""
    while len(found) < len(mask):
        found += next(pieces)  # type: ignore[call-overload]
    return found


def _one(pattern: re.Pattern[str], text: str, random: Random, change: Callable[[str], str | None]) -> str | None:
    """Changes one match."""
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    match = random.choice(matches)
    new = change(match.group())
    return None if new is None else text[: match.start()] + _like(new, match.group()) + text[match.end() :]


def _other_number(text: str, random: Random) -> str | None:
    def change(number: str) -> str:
        digits = [place for place, one in enumerate(number) if one.isdigit()]
        place = random.choice(digits[:2])
        other = random.choice([one for one in "123456789" if one != number[place]])
        return number[:place] + other + number[place + 1 :]

    pattern = _NUMBER if random.random() < 0.7 and _NUMBER.search(text) else _alternatives(list(_WORDS)[1:])
    if pattern is _NUMBER:
        return _one(pattern, text, random, change)
    return _one(pattern, text, random, lambda word: random.choice([one for one in _WORDS if one != word.lower()][1:]))


def _other_of(groups: Sequence[Sequence[str]], text: str, random: Random) -> str | None:
    group_of = {word.lower(): group for group in groups for word in group}

    def other(word: str) -> str:
        return random.choice([one for one in group_of[word.lower()] if one.lower() != word.lower()])

    return _one(_alternatives(list(group_of)), text, random, other)


def _other_unit(text: str, random: Random) -> str | None:
    return _other_of(_UNITS, text, random)


def _opposite(text: str, random: Random) -> str | None:
    return _other_of(_OPPOSITES, text, random)


def _other_day(text: str, random: Random) -> str | None:
    return _other_of((_DAYS, _MONTHS, _COLORS), text, random)


_NEGATED: Final = _alternatives([negated for negated, _ in _NEGATIONS])
_ASSERTED: Final = _alternatives(_ASSERTIONS)


def _negated(text: str, random: Random) -> str | None:
    if _NEGATED.search(text):
        changed = _one(_NEGATED, text, random, lambda word: dict(_NEGATIONS)[word.lower()])
        return None if changed is None else changed.replace("  ", " ")
    return _one(_ASSERTED, text, random, lambda word: "does not have" if word == "has" else "fails" if word == "works" else f"{word} not")  # fmt: skip  # noqa: E501


def _swapped(text: str, random: Random) -> str | None:
    """Exchanges two numbers."""
    found = list(_NUMBER.finditer(text))
    pairs = [(one, two) for one, two in pairwise(found) if one.group() != two.group()]
    if not pairs:
        return None
    one, two = random.choice(pairs)
    return text[: one.start()] + two.group() + text[one.end() : two.start()] + one.group() + text[two.end() :]


_NAME: Final = re.compile(r"(?<=[a-z,;:] )[A-Z][a-z]{2,}(?![\w-])")


def names_of(text: str) -> list[str]:
    """Returns words that are typed as names inside a sentence."""
    return _NAME.findall(_CODE.sub("", text))


def _other_name(text: str, random: Random, names: Sequence[str]) -> str | None:
    return _one(_NAME, text, random, lambda word: random.choice([one for one in names if one != word] or [word]))


def shortened(text: str, random: Random) -> str | None:
    """Leaves out one item of a list; None if it has too few."""
    lines = text.splitlines()
    items = [place for place, line in enumerate(lines) if line.startswith(("- ", "* "))]
    if len(items) < 3 or "```" in text:
        return None
    gone = random.choice(items)
    return "\n".join(line for place, line in enumerate(lines) if place != gone)
