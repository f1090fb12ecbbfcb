"""Words of closed classes (months, weekdays, currencies, units): the class of each and its usual form."""

from __future__ import annotations

from typing import Final

from api.languages.function_words import words_in

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
