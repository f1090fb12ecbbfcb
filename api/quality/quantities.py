"""Reads the quantities of a sentence: amounts with their units, dates and times of day, in one form for all spellings.

`1.5 hours`, `90 minutes` and `an hour and a half` are the same amount of time; `3 May 2024` and `2024-05-03` the same
day. Numbers that only order or refer (`1.` before a step, `[2]`) are not read; the caller removes them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from api.guards.vocabulary import ORDINALS, SCALES, SMALL, TENS, number_from
from api.languages.function_words import words_in
from api.quality.units import FACTORS, UNITS, Quantity

_TOKEN: Final = re.compile(
    r"(?P<date>\d{4}-\d{1,2}-\d{1,2}(?![\d-])|\d{1,2}[./]\d{1,2}[./]\d{4}(?!\d))"
    r"|(?P<clock>\d{1,2}:\d{2}(?::\d{2})?(?![\d:]))"
    r"|(?P<version>(?<![\w.])(?:v\d{1,9}(?:\.\d{1,9}){0,8}|\d{1,9}(?:\.\d{1,9}){2,8})(?!\d))"
    r"|(?P<fraction>(?<![\w./])\d{1,2}/\d{1,3}(?![\w/]))"
    r"|(?P<number>(?<!\d)(?:\d{1,3}(?:,\d{3}){1,5}|\d{1,15})(?:\.\d{1,30})?(?!\d))"
    r"|(?P<mark>[$€£¥₹%°~≈½¼¾/])"
    r"|(?P<dash>[-–—])"
    r"|(?P<word>[^\W\d_]+(?:[.'’](?=[^\W\d_])[^\W\d_]+)*\.?)"
)
_SIGNS: Final = {"$": "usd", "€": "eur", "£": "gbp", "¥": "jpy", "₹": "inr"}
_FRACTION_SIGNS: Final = {"½": 0.5, "¼": 0.25, "¾": 0.75}
_FRACTION_WORDS: Final = {
    "half": 0.5,
    "fourth": 0.25,
    "fourths": 0.25,
    "fifth": 0.2,
    "fifths": 0.2,
    "third": 1 / 3,
    "thirds": 1 / 3,
    "quarter": 0.25,
    "quarters": 0.25,
}
_HEDGES: Final = words_in("about around approximately roughly nearly almost approx circa some estimated ~ ≈ over just")
_TEENTHS: Final = number_from(
    "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth", start=13
)
_ORDINALS: Final = ORDINALS | _TEENTHS
_RANGE: Final = words_in("to and or through until - – —")
_SCALES: Final = {**SCALES, "m": 10**6, "mn": 10**6, "bn": 10**9, "dozen": 12}
_MONTH_NAMES: Final = "january jan,february feb,march mar,april apr,may,june jun,july jul,august aug,\
september sept sep,october oct,november nov,december dec"
_MONTHS: Final = {
    name: number for number, names in enumerate(_MONTH_NAMES.split(","), start=1) for name in names.split()
}
_LAST_DAY: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_BEFORE_MONTH: Final = words_in("in of by until till to from and or between through since before after during every")
_PERIODS: Final = {
    "hourly": "hour", "daily": "day", "nightly": "day", "weekly": "week", "biweekly": "fortnight", "monthly": "month",
    "yearly": "year", "annually": "year", "annual": "year", "annum": "year", "night": "day", "morning": "day",
    "evening": "day", "quarterly": "quarter", "quarter": "quarter",
}  # fmt: skip
"""Words that name how often, with the unit of time."""
_BETWEEN: Final = words_in(
    "business working vacation calendar paid consecutive full extra more additional whole further"
)
"""Words that may stand between a number and its unit: 5 business days."""
_EVERY: Final = words_in("per every each")
_DAY_PARTS: Final = {"morning": 0, "afternoon": 12, "evening": 12, "night": 12}

_BARE_UNITS: Final = words_in("c f s d k w v")
"""Letters that are units only right behind digits."""
_TIMES: Final = {"once": 1.0, "twice": 2.0, "thrice": 3.0}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int


def read_quantities(text: str) -> tuple[Quantity, ...]:
    """Returns the quantities of `text` in order. Time is linear in its length."""
    low = text.lower()
    tokens = [_Token(str(found.lastgroup), found[0], found.start()) for found in _TOKEN.finditer(low)]
    return _Reader(tokens, text).read() if tokens else ()


class _Reader:
    def __init__(self, tokens: Sequence[_Token], text: str) -> None:
        self._tokens = tokens
        self._text = text
        self._at = 0
        self._found: list[Quantity] = []
        self._ends: list[int] = []

    def read(self) -> tuple[Quantity, ...]:
        while self._at < len(self._tokens):
            begin = self._at
            quantity = self._period() or self._date() or self._clock() or self._amount()
            if quantity is None:
                self._at = begin + 1
            else:
                self._add(quantity, begin)
        return tuple(self._found)

    def _peek(self, ahead: int = 0) -> _Token:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else _Token("end", "", -9)

    def _word(self, ahead: int = 0) -> str:
        return self._peek(ahead).text.rstrip(".")

    def _add(self, quantity: Quantity, begin: int) -> None:
        """Adds a quantity. The unit of `5 to 10 days` also applies to the 5; `1 hour 30 minutes` is one amount."""
        if any(self._tokens[at].text in _HEDGES for at in range(max(0, begin - 2), begin)):
            quantity = replace(quantity, approximate=True)
        if self._found:
            before, between = self._found[-1], [one.text for one in self._tokens[self._ends[-1] : begin]]
            if before.kind == "number" and quantity.kind != "number" and len(between) == 1 and between[0] in _RANGE:
                self._found[-1] = _in_unit_of(before, quantity)
            elif self._is_counted(before, quantity, between):
                shown = f"{before.shown} {quantity.shown}"
                self._found[-1] = replace(quantity, value=quantity.value / before.value, shown=shown)
                self._ends[-1] = self._at
                return
            elif _is_continued(before, quantity, between):
                total = replace(before, value=before.value + quantity.value, shown=f"{before.shown} {quantity.shown}")
                self._found[-1] = replace(total, unit=quantity.unit)
                self._ends[-1] = self._at
                return
        self._found.append(quantity)
        self._ends.append(self._at)

    def _is_counted(self, before: Quantity, quantity: Quantity, between: Sequence[str]) -> bool:
        """Returns whether a number says how often something happens in a period: 3 per day, but not 3, every day."""
        if before.kind != "number" or quantity.kind != "period" or len(between) > 1 or before.value <= 0:
            return False
        last = self._tokens[self._ends[-1] - 1]
        return "," not in self._text[last.start + len(last.text) : quantity.start]

    def _period(self) -> Quantity | None:
        """Reads how often: per month, every 7 days, weekly; `a month` only behind an amount or `once`."""
        token, word, after = self._peek(), self._word(), self._word(1)
        begin, factor = self._at, 1.0
        if word in _PERIODS and (word.endswith("ly") or word == "annual"):
            self._at += 1
            return self._every(_PERIODS[word], 1.0, token)
        if token.text == "/" and after in UNITS:
            word = "per"
        behind = bool(self._ends) and begin - self._ends[-1] <= 5
        if word in _EVERY or (word in ("a", "an") and behind):
            self._at += 1
            if word == "every" and (number := self._number()) is not None:
                factor = number[0]
            unit = _PERIODS.get(self._word()) or UNITS.get(self._word(), "")
            if (FACTORS.get(unit) or ("", 1))[0] == "time":
                self._at += 1
                return self._every(unit, factor, token)
            self._at = begin
        return None

    def _every(self, unit: str, factor: float, token: _Token) -> Quantity:
        seconds = FACTORS[unit][1]
        return Quantity("period", factor * seconds, unit, f"every {factor:g} {unit}", token.start)

    # -- dates and times ----------------------------------------------------------------------------------------------

    def _date(self) -> Quantity | None:
        token = self._peek()
        if token.kind == "date":
            self._at += 1
            parts = [int(part) for part in re.split(r"[-./]", token.text)]
            year, month, day = parts if parts[0] > 31 else (parts[2], parts[1], parts[0])
            if month > 12:
                month, day = day, month
            return _day(year, month, day, token)
        if token.kind == "number" and token.text.isdigit() and int(token.text) <= 31:
            return self._day_first(token)
        if self._word() in _MONTHS and token.kind == "word":
            return self._month_first(token)
        return None

    def _day_first(self, token: _Token) -> Quantity | None:
        skip = 1
        if self._word(skip) in ("st", "nd", "rd", "th"):
            skip += 1
        if self._word(skip) == "of":
            skip += 1
        if self._peek(skip).kind != "word" or (month := _MONTHS.get(self._word(skip), 0)) == 0:
            return None
        if not self._is_month(self._peek(skip)):
            return None
        self._at += skip + 1
        return _day(self._year(), month, int(token.text), token)

    def _is_month(self, token: _Token) -> bool:
        """Returns whether `may` and `march` have a capital: nobody under 10 may enter."""
        return token.text not in ("may", "march") or self._text[token.start : token.start + 1].isupper()

    def _month_first(self, token: _Token) -> Quantity | None:
        month, after = _MONTHS[self._word()], self._peek(1)
        if not self._is_month(token):
            return None
        if after.kind != "number" or not after.text.isdigit():
            return self._month_alone(month, token)
        value = int(after.text)
        self._at += 2
        if value > 31:
            return _day(value, month, 0, token) if 1000 <= value <= 2999 else None
        if self._word() in ("st", "nd", "rd", "th"):
            self._at += 1
        return _day(self._year(), month, value, token)

    def _month_alone(self, month: int, token: _Token) -> Quantity | None:
        """Reads `in June`, and `the end of June` as its last day."""
        before = [one.text for one in self._tokens[max(0, self._at - 2) : self._at]]
        if (
            token.text in ("may", "march", "mar")
            and before[-1:] != ["of"]
            and not _BEFORE_MONTH.issuperset(before[-1:])
        ):
            return None
        if token.text == "may" and before[-1:] in (["and"], ["or"], []):
            return None
        self._at += 1
        return _day(self._year(), month, _LAST_DAY[month - 1] if before == ["end", "of"] else 0, token)

    def _year(self) -> int:
        after = self._peek()
        if after.kind == "number" and after.text.isdigit() and 1000 <= int(after.text) <= 2999:
            self._at += 1
            return int(after.text)
        return 0

    def _clock(self) -> Quantity | None:
        token = self._peek()
        if token.text in ("noon", "midday", "midnight") and token.kind == "word":
            self._at += 1
            return Quantity("clock", 0.0 if token.text == "midnight" else 720.0, "", token.text, token.start)
        hour = SMALL.get(self._word(), 0) or (int(token.text) if token.kind == "number" and token.text.isdigit() else 0)
        day_part = self._word(3) if (self._word(1), self._word(2)) == ("in", "the") else ""
        if 0 < hour <= 12 and day_part in _DAY_PARTS:
            self._at += 4
            return Quantity("clock", (hour % 12 + _DAY_PARTS[day_part]) * 60.0, "", f"{hour} {day_part}", token.start)
        if token.kind not in ("clock", "number") or (token.kind == "number" and not token.text.isdigit()):
            return None
        suffix = self._word(1).replace(".", "")
        if token.kind == "number" and suffix not in ("am", "pm"):
            return None
        hour, minute = [int(part) for part in [*token.text.split(":"), "0"][:2]]
        self._at += 1
        if suffix in ("am", "pm"):
            self._at += 1
            hour = hour % 12 + (12 if suffix == "pm" else 0)
        elif (self._word(), self._word(1)) == ("in", "the") and self._word(2) in _DAY_PARTS and hour < 12:
            hour += _DAY_PARTS[self._word(2)]
        return Quantity("clock", hour * 60.0 + minute, "", f"{token.text} {suffix}".strip(), token.start)

    # -- amounts ------------------------------------------------------------------------------------------------------

    def _amount(self) -> Quantity | None:
        token = self._peek()
        if token.kind == "version":
            self._at += 1
            return Quantity("version", _version(token.text), "", token.text, token.start)
        currency = ""
        if token.text in _SIGNS or (token.kind == "word" and _is_code(token.text) and self._peek(1).kind == "number"):
            currency = _SIGNS.get(token.text) or UNITS[token.text]
            self._at += 1
        number = self._number()
        if number is None:
            return None
        value, digits, weak = number
        value = self._scaled(value)
        unit = currency or self._unit(token)
        quantity = _quantity(value, "" if weak and unit == "thousand" else unit, token, digits)
        return replace(quantity, weak=True) if weak else quantity

    def _number(self) -> tuple[float, int, bool] | None:
        """Returns the value, its significant digits, and whether the word need not be a number."""
        token = self._peek()
        if token.kind == "number":
            self._at += 1
            plain = token.text.replace(",", "")
            value = float(plain)
            if self._peek().text in _FRACTION_SIGNS:
                value += _FRACTION_SIGNS[self._peek().text]
                self._at += 1
            elif self._peek().kind == "fraction":
                value += _fraction(self._peek().text)
                self._at += 1
            digits = len(plain.replace(".", "").strip("0")) if "." not in plain else len(plain.replace(".", ""))
            return value, digits, False
        if token.kind == "fraction":
            self._at += 1
            return _fraction(token.text), 9, False
        if token.text in _FRACTION_SIGNS:
            self._at += 1
            return _FRACTION_SIGNS[token.text], 9, False
        return self._number_in_words() if token.kind == "word" else None

    def _number_in_words(self) -> tuple[float, int, bool] | None:
        word = self._word()
        if word in ("a", "an"):
            return self._article()
        if word in _TIMES:
            self._at += 1
            return _TIMES[word], 9, True
        if word == "half":
            self._at += 2 if self._word(1) in ("a", "an") and self._word(2) in UNITS else 1
            return 0.5, 9, self._word() not in UNITS
        if word not in SMALL and word not in TENS:
            if word in _ORDINALS:
                self._at += 1
                return float(_ORDINALS[word]), 9, _ORDINALS[word] <= 3
            return None
        if word == "one" and self._word(1) == "in" and SMALL.get(self._word(2), 0) > 1:
            self._at += 3
            return 1 / SMALL[self._tokens[self._at - 1].text.rstrip(".")], 9, False
        value = self._cardinal()
        if self._word() in _FRACTION_WORDS and value < 10:
            value *= _FRACTION_WORDS[self._word()]
            self._at += 1
        elif self._word() == "and" and self._word(1) == "a" and self._word(2) == "half":
            value += 0.5
            self._at += 3
        return value, 9, word == "one" and self._word() not in UNITS and self._word() not in _SCALES

    def _article(self) -> tuple[float, int, bool] | None:
        """Reads `an hour`, `a hundred`, `an hour and a half`, but not the article before any other word."""
        after = self._word(1)
        if after in _FRACTION_WORDS and self._word(2) == "of":
            self._at += 2
            return _FRACTION_WORDS[after], 9, False
        if after in ("pair", "couple") and self._word(2) == "of":
            self._at += 2
            return 2.0, 9, True
        if after in ("hundred", "thousand", "million", "billion", "dozen"):
            self._at += 1
            return 1.0, 9, False
        known = UNITS.get(after, "")
        if known not in FACTORS or FACTORS[known][0] != "time" or after == "second":
            return None
        if [self._word(2), self._word(3), self._word(4)] == ["and", "a", "half"]:
            tokens = list(self._tokens)
            del tokens[self._at + 2 : self._at + 5]
            self._tokens = tokens
            self._at += 1
            return 1.5, 9, False
        self._at += 1
        return 1.0, 9, True

    def _cardinal(self) -> float:
        total = 0.0
        while True:
            word = self._word()
            if word in TENS:
                total += TENS[word]
                self._at += 1
                if self._peek().kind == "dash" and self._word(1) in SMALL:
                    self._at += 1
                if 0 < SMALL.get(self._word(), 0) < 10:
                    total += SMALL[self._word()]
                    self._at += 1
            elif word in SMALL:
                total += SMALL[word]
                self._at += 1
            if self._word() == "hundred":
                total *= 100
                self._at += 1
                if self._word() == "and" and (self._word(1) in SMALL or self._word(1) in TENS):
                    self._at += 1
                if self._word() in SMALL or self._word() in TENS:
                    continue
            return total

    def _scaled(self, value: float) -> float:
        while self._peek().kind == "word" and self._word() in _SCALES:
            if self._word() in ("m", "k") and not self._touches():
                break
            if self._word() == "m" and self._tokens[self._at - 1].kind == "number" and not self._is_money():
                break
            value *= _SCALES[self._word()]
            self._at += 1
        return value

    def _is_money(self) -> bool:
        return self._at > 1 and self._tokens[self._at - 2].text in _SIGNS

    def _touches(self) -> bool:
        """Returns whether the next token follows without a space."""
        last = self._tokens[self._at - 1]
        return last.start + len(last.text) == self._peek().start

    def _unit(self, number: _Token) -> str:
        token = self._peek()
        if self._word() in _BETWEEN and UNITS.get(self._word(1), "") in FACTORS:
            self._at += 1
        if token.kind == "dash" and self._touches() and self._word(1) in UNITS:  # a 30-day trial
            self._at += 1
        if self._peek().text == "°":
            self._at += 1
        word = self._word()
        if self._word() == "%":
            self._at += 1
            return "%"
        if token.text in _SIGNS and self._peek(1).kind != "number":  # 39 €
            self._at += 1
            return _SIGNS[token.text]
        if self._peek().kind != "word" or word not in UNITS:
            return self._degrees()
        degrees = word in ("c", "f") and self._tokens[self._at - 1].text == "°"
        if word in _BARE_UNITS and not degrees and not (self._touches() and number.kind == "number"):
            return ""
        self._at += 1
        if (UNITS[word] == "kilometre" and self._word() in ("h", "hour")) or (word == "km" and self._word() == "per"):
            self._at += 1 + (self._word() == "per")
            return "kmh"
        return UNITS[word]

    def _degrees(self) -> str:
        if self._word() == "degrees" and self._word(1) in ("celsius", "fahrenheit", "c", "f", "centigrade"):
            self._at += 2
            return UNITS[self._tokens[self._at - 1].text.rstrip(".")]
        if self._word() in ("st", "nd", "rd", "th"):
            self._at += 1
        return ""


def _is_code(word: str) -> bool:
    return word in ("usd", "eur", "gbp", "jpy", "inr", "chf", "cad", "aud")


def _fraction(text: str) -> float:
    above, _, below = text.partition("/")
    return int(above) / int(below) if int(below) else float(int(above))


def _version(text: str) -> float:
    """Returns a number that is the same for the same version only: four parts of up to 9,999 count."""
    value = 0.0
    for part in (text.lstrip("v").split(".") + ["0"] * 4)[:4]:
        value = value * 10_000 + min(int(part), 9_999)
    return value


def _day(year: int, month: int, day: int, token: _Token) -> Quantity:
    shown = "-".join(f"{part:02d}" for part in (year, month, day) if part)
    return Quantity("date", year * 10_000.0 + month * 100 + day, "", shown, token.start)


def _quantity(value: float, unit: str, token: _Token, digits: int) -> Quantity:
    shown = f"{value:g} {unit}".strip()
    if unit == "%":
        return Quantity("percent", value / 100, unit, shown, token.start, digits=digits, written=value)
    if unit in ("celsius", "fahrenheit"):
        celsius = value if unit == "celsius" else (value - 32) / 1.8
        return Quantity("temperature", celsius, unit, shown, token.start, digits=digits)
    kind, factor = FACTORS.get(unit) or ("", 1.0)
    if kind:
        return Quantity(kind, value * factor, unit, shown, token.start, digits=digits, written=value)
    if unit and unit != "thousand":
        return Quantity(f"money {unit}", value, unit, shown, token.start, digits=digits, written=value)
    return Quantity("number", value, "", shown, token.start, digits=digits)


def _in_unit_of(number: Quantity, other: Quantity) -> Quantity:
    """Returns `number` in the unit of the other end of the range."""
    if other.kind in ("date", "version", "temperature", "clock"):
        return number
    factor = 0.01 if other.kind == "percent" else (FACTORS.get(other.unit) or ("", 1.0))[1]
    return replace(number, kind=other.kind, value=number.value * factor, unit=other.unit)


def _is_continued(before: Quantity, after: Quantity, between: Sequence[str]) -> bool:
    """Returns whether `after` goes on with a smaller unit: 1 hour (and) 30 minutes."""
    if before.kind != after.kind or before.kind not in ("time", "length", "mass") or before.unit == after.unit:
        return False
    smaller = FACTORS.get(after.unit, ("", 1.0))[1] < FACTORS.get(before.unit, ("", 1.0))[1]
    return smaller and between in ([], ["and"])
