"""A word without its commonest English endings: enough to find orders in order, never shown to anyone."""

from __future__ import annotations

from typing import Final

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
