"""Units, and amounts in the base unit of their kind. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from api.guards.vocabulary import CLASSES

_FACTOR_TABLE: Final = """
    time: second 1, minute 60, hour 3600, day 86400, week 604800, month 2629800, year 31557600, decade 315576000,
      century 3155760000, millisecond 0.001, fortnight 1209600, quarter 7889400
    length: mile 1609.344, kilometre 1000, metre 1, centimetre 0.01, millimetre 0.001, inch 0.0254, foot 0.3048,
      yard 0.9144
    mass: kilogram 1000, gram 1, milligram 0.001, ounce 28.3495, lb 453.592, pound 453.592, tonne 1000000
    volume: litre 1, millilitre 0.001, gallon 3.78541, pint 0.473176, quart 0.946353, cup 0.236588, tablespoon
      0.0147868, teaspoon 0.00492892
    data: kilobyte 1000, megabyte 1000000, gigabyte 1000000000, terabyte 1e+12, byte 1,
      mebibyte 1048576, gibibyte 1073741824
    money usd: cent 0.01
    speed: mph 1.609344, kmh 1
    power: watt 1, kilowatt 1000, megawatt 1000000
    voltage: volt 1
    current: ampere 1
"""
FACTORS: Final = {
    name: (kind, float(factor))
    for line in _FACTOR_TABLE.replace("\n      ", " ").strip().splitlines()
    for kind, _, units in (line.strip().partition(": "),)
    for name, factor in (unit.split() for unit in units.split(", "))
}
"""The kind of each unit, and its size in the base unit of that kind."""
_MORE_UNITS: Final = """
    second = s sec secs second seconds; millisecond = ms; minute = min mins; hour = h; day = d; week = wk;
    fortnight = fortnight; metre = m; litre = l; gram = g; foot = ft feet foot; kilobyte = kb; watt = w watts
    watt; kilowatt = kw kilowatts; megawatt = mw megawatts; volt = v volts volt; ampere = amps; mebibyte = mib;
    gibibyte = gib; pound = pounds pound; cup = cups cup; % = percent percentage; celsius = c; fahrenheit = f; kmh
    = kph; thousand = k; cent = cent cents
"""
UNITS: Final = {
    **{word: member for word, (kind, member) in CLASSES.items() if kind not in ("month", "weekday", "continent")},
    **{
        word: unit
        for unit, _, words in (line.strip().partition(" = ") for line in " ".join(_MORE_UNITS.split()).split(";"))
        for word in words.split()
    },
}
"""The unit that a word names."""
_NEAR: Final = 0.02
"""Relative difference that a conversion between units may have."""
_ROUNDED: Final = 0.05
"""Relative difference that `about` allows."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """An amount in the base unit of its kind, such as seconds for `time`.

    `digits`: significant digits as written. `start`: where it stands in the text. `weak`: a word such as `one` or
    `first`, which need not be a number.
    """

    kind: str
    value: float
    unit: str
    shown: str
    start: int
    approximate: bool = False
    weak: bool = False
    digits: int = 9
    written: float | None = None
    """The number before it is converted, where it has a unit."""

    def matches(self, other: Quantity) -> bool:
        """Returns whether both can be the same amount: equal, converted, or one the rounded form of the other."""
        if {self.kind, other.kind} == {"mass", "money gbp"} and "pound" in (self.unit, other.unit):
            pounds, money = (self, other) if self.unit == "pound" else (other, self)
            return abs(pounds.value / FACTORS["pound"][1] - money.value) < 1e-6 * money.value
        if self.kind != other.kind:
            return _is_elliptic(self, other) or _is_elliptic(other, self)
        if abs(self.value - other.value) <= 1e-9 * max(abs(self.value), abs(other.value), 1.0):
            return True
        if self.kind == "date":
            return _same_day(int(self.value), int(other.value))
        if self.kind in ("version", "clock"):
            return False
        if self.kind == "period":
            return abs(self.value - other.value) <= 0.03 * max(self.value, other.value)
        if self.kind == "temperature":
            return self.unit != other.unit and abs(self.value - other.value) <= 0.6
        larger = max(abs(self.value), abs(other.value))
        distance = abs(self.value - other.value) / larger
        if self.unit != other.unit and self.kind != "number":
            return distance <= _NEAR
        if self.approximate or other.approximate:
            return distance <= _ROUNDED
        return not self.kind.startswith("money") and self._is_rounded(other)

    def _is_rounded(self, other: Quantity) -> bool:
        """Returns whether one is the other with fewer digits, at least three: 3.14 and 3.14159."""
        fewer, more = (self, other) if self.digits <= other.digits else (other, self)
        if fewer.digits < 3 or fewer.digits == more.digits:
            return False
        return float(f"{more.value:.{fewer.digits}g}") == float(f"{fewer.value:.{fewer.digits}g}")


def _is_elliptic(number: Quantity, other: Quantity) -> bool:
    """Returns whether `number` leaves out the unit of `other`: 30 litres and 45, or is its share: half, 50 %."""
    if number.kind != "number" or other.kind in ("date", "clock", "version", "period"):
        return False
    if other.kind == "percent" and abs(number.value - other.value) < 1e-9:
        return True
    return other.written is not None and number.value == other.written and not number.weak


def _same_day(one: int, other: int) -> bool:
    """Compares the year, month and day that both give."""
    parts = ((one // 10_000, other // 10_000), (one // 100 % 100, other // 100 % 100), (one % 100, other % 100))
    return all(left == right or not (left and right) for left, right in parts)
