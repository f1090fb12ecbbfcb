"""What is a name however it is typed: currencies, units, days, months. One word stands for all of its forms."""

from __future__ import annotations

from typing import Final

_FORMS: Final = """
usd:dollar,dollars,usd,$ eur:euro,euros,eur,€ gbp:pound,pounds,gbp,sterling,£ jpy:yen,jpy,¥ cny:yuan,cny,renminbi
inr:rupee,rupees,inr chf:franc,francs,chf cad:cad aud:aud btc:bitcoin,bitcoins,btc eth:ethereum,eth peso:peso,pesos
percent:%,percent mile:mile,miles,mi km:kilometer,kilometers,kilometre,kilometres,km,kms
metre:meter,meters,metre,metres cm:centimeter,centimeters,centimetre,centimetres,cm mm:millimeter,millimeters,mm
inch:inch,inches foot:foot,feet,ft yard:yard,yards kg:kilogram,kilograms,kilo,kilos,kg gram:gram,grams
lb:lb,lbs ounce:ounce,ounces,oz litre:liter,liters,litre,litres gallon:gallon,gallons ml:ml,milliliter,milliliters
celsius:celsius,centigrade fahrenheit:fahrenheit kelvin:kelvin
hour:hour,hours,hr,hrs minute:minute,minutes second:seconds week:week,weeks,weekly month:month,months,monthly
year:year,years,yearly,annual,annually day:days,daily decade:decade,decades century:century,centuries
kb:kb,kilobyte,kilobytes mb:mb,megabyte,megabytes gb:gb,gigabyte,gigabytes tb:tb,terabyte,terabytes
mon:monday,mondays tue:tuesday,tuesdays wed:wednesday,wednesdays thu:thursday,thursdays fri:friday,fridays
sat:saturday,saturdays sun:sunday,sundays jan:january feb:february apr:april jun:june jul:july aug:august
sep:september oct:october nov:november dec:december
today:today tomorrow:tomorrow yesterday:yesterday tonight:tonight
"""

KNOWN: Final = {
    form: entry.partition(":")[0] for entry in _FORMS.split() for form in entry.partition(":")[2].split(",")
}
"""A word, as the name that it is a form of."""
