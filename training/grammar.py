"""Makes pairs of questions from concepts, so that their labels are right by construction.

A question is a meaning (frame, verb, object, circumstances) in one of its many surface forms. Two forms of one meaning
are a positive pair; a meaning and its copy with one changed concept are a negative pair. vocabulary.toml has the words.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple, TypeAlias

from training.numbers import MONTHS, duration, minutes, spoken
from training.pairs import Pair
from training.surface import vary

Concept: TypeAlias = Sequence[str]
Say: TypeAlias = Callable[[Random], str]

FACTS: Final = 0.25
SCOPES: Final = 0.25
POSITIVE: Final = 0.45
FRAME_WEIGHTS: Final[Mapping[str, float]] = {"how": 8, "can": 2, "long": 1.5, "cost": 1.5}
VAGUE: Final = frozenset(("freq", "time", "light"))
"""Circumstances that often leave the answer as it is: no trap adds or drops one."""
DOUBLED: Final = frozenset(
    ("get", "set", "put", "run", "stop", "cancel", "transfer", "swap", "plan", "drop", "wrap", "cut", "submit", "log")
)
"""Verbs whose last letter is doubled before -ing."""


@cache
def vocabulary() -> Mapping[str, Any]:
    """Returns the words, read once."""
    return tomllib.loads(Path(__file__).with_name("vocabulary.toml").read_text("utf-8"))


@dataclass(frozen=True)
class Circumstance:
    """What an answer depends on besides the action. Equal keys mean the same."""

    kind: str
    key: object
    say: Say


@dataclass(frozen=True)
class Meaning:
    """What a question asks. `verb` and `thing` are places in the lists of the domain."""

    domain: Mapping[str, Any]
    frame: str
    verb: int
    thing: int
    circumstances: tuple[Circumstance, ...]

    @property
    def key(self) -> object:
        """Equal for questions with one answer."""
        extras = sorted(repr((one.kind, one.key)) for one in self.circumstances)
        return self.frame, self.verb, self.thing, tuple(extras)

    def say(self, random: Random, form: str | None = None) -> str:
        """Returns one of the meaning's surface forms, or one of the frame's `form`."""
        verb = random.choice(self.domain["verbs"][self.verb])
        thing = random.choice(self.domain["objects"][self.thing])
        extras = random.sample(self.circumstances, len(self.circumstances))
        said = [one.say(random) for one in extras]
        form = form or random.choice(vocabulary()["frames"][self.frame])
        parts = {"vo": f"{verb} {thing}", "ving": f"{_gerund(verb)} {thing}"}
        if said and random.random() < 0.12:  # the circumstance first: the same words in another order
            first, *rest = said
            text = form.format(**parts, x="".join(f" {one}" for one in rest))
            return f"{first[:1].upper()}{first[1:]}, {_lower_first(text)}"
        return form.format(**parts, x="".join(f" {one}" for one in said))


def grammar_pairs(count: int, seed: int) -> list[Pair]:
    """Returns `count` pairs, 45 % of them positive."""
    random = Random(seed)
    pairs: list[Pair] = []
    while len(pairs) < count:
        made = _fact_pair(random) if random.random() < FACTS else _action_pair(random)
        if made is not None and made.first.lower().strip(" ?.") != made.second.lower().strip(" ?."):
            pairs.append(made)
    return pairs


def _action_pair(random: Random) -> Pair | None:
    part = "scopes" if random.random() < SCOPES / (1 - FACTS) else "domains"
    meaning = _draw(random.choice(list(vocabulary()[part].values())), random)
    if random.random() < POSITIVE:
        return Pair(vary(meaning.say(random), random), vary(meaning.say(random), random), True, f"grammar-{part}")
    change = random.choice(_changes(meaning, scope=part == "scopes"))
    other = change(meaning, random)
    if other is None or other.key == meaning.key or _may_agree(meaning, other):
        return None
    first, second = _near_forms(meaning, other, random)
    return Pair(vary(first, random), vary(second, random), False, f"grammar-{part}")


def _near_forms(meaning: Meaning, other: Meaning, random: Random) -> tuple[str, str]:
    """Half of the time both questions have one surface form and differ in the changed concept only."""
    if random.random() < 0.5:
        return meaning.say(random), other.say(random)
    form = random.choice(vocabulary()["frames"][meaning.frame])
    state = random.getstate()
    first = meaning.say(random, form)
    random.setstate(state)
    return first, other.say(random, form if other.frame == meaning.frame else None)


def _draw(domain: Mapping[str, Any], random: Random) -> Meaning:
    frames: list[str] = domain["frames"]
    frame = random.choices(frames, [FRAME_WEIGHTS.get(one, 1) for one in frames])[0]
    kinds = random.sample(domain["extras"], random.choices((0, 1, 2), (0.42, 0.46, 0.12))[0])
    return Meaning(
        domain,
        frame,
        random.randrange(len(domain["verbs"])),
        random.randrange(len(domain["objects"])),
        tuple(_circumstance(kind, random) for kind in kinds),
    )


Change: TypeAlias = Callable[[Meaning, Random], Meaning | None]


def _changes(meaning: Meaning, *, scope: bool) -> list[Change]:
    """Returns the ways to change one concept; a repeated one is more likely."""
    changes: list[Change] = [_change_verb, _change_frame, *[_change_thing] * (6 if scope else 1)]
    if len(meaning.circumstances) < 2:
        changes += [_add] * 2
    if meaning.circumstances:
        changes += [_replace, _replace, _replace, _drop]
    if any(one.kind == "route" for one in meaning.circumstances):
        changes += [_reverse] * 3
    return changes


def _change_verb(meaning: Meaning, random: Random) -> Meaning:
    return replace(meaning, verb=random.randrange(len(meaning.domain["verbs"])))


def _change_thing(meaning: Meaning, random: Random) -> Meaning:
    return replace(meaning, thing=random.randrange(len(meaning.domain["objects"])))


def _change_frame(meaning: Meaning, random: Random) -> Meaning:
    return replace(meaning, frame=random.choice(meaning.domain["frames"]))


def _add(meaning: Meaning, random: Random) -> Meaning | None:
    have = {one.kind for one in meaning.circumstances} | VAGUE
    kinds = [kind for kind in meaning.domain["extras"] if kind not in have]
    if not kinds:
        return None
    return replace(meaning, circumstances=(*meaning.circumstances, _circumstance(random.choice(kinds), random)))


def _drop(meaning: Meaning, random: Random) -> Meaning | None:
    one = random.choice(meaning.circumstances)
    if one.kind in VAGUE:
        return None
    return replace(meaning, circumstances=tuple(other for other in meaning.circumstances if other is not one))


def _replace(meaning: Meaning, random: Random) -> Meaning:
    old = random.choice(meaning.circumstances)
    new = _circumstance(old.kind, random)
    return replace(meaning, circumstances=tuple(new if one is old else one for one in meaning.circumstances))


def _reverse(meaning: Meaning, random: Random) -> Meaning:
    """Travels the other way: the same words, another answer."""
    return replace(
        meaning,
        circumstances=tuple(
            _route(*reversed(one.key)) if one.kind == "route" and isinstance(one.key, tuple) else one
            for one in meaning.circumstances
        ),
    )


def _may_agree(meaning: Meaning, other: Meaning) -> bool:
    frames = {meaning.frame, other.frame}
    return any(frames == set(pair) for pair in vocabulary()["near_frames"]["pairs"])


def _circumstance(kind: str, random: Random) -> Circumstance:
    listed: Sequence[Concept] | None = vocabulary()["extras"].get(kind)
    if listed is None:
        return _NUMERIC[kind](random)
    place = random.randrange(len(listed))
    forms = listed[place]
    return Circumstance(kind, place, lambda random: random.choice(forms))


def _within(random: Random) -> Circumstance:
    count, unit = (
        random.choice((1, 2, 3, 5, 7, 10, 14, 24, 30, 60, 90)),
        random.choice(("day", "week", "hour", "month")),
    )
    late = random.random() < 0.33
    words = ("after",) if late else ("within", "in under", "inside")
    return Circumstance(
        "within",
        (late, minutes(count, unit)),
        lambda random: f"{random.choice(words)} {duration(count, unit, random)}",
    )


def _minutes(random: Random) -> Circumstance:
    count, unit = random.choice((1, 2, 3, 5, 10, 15, 20, 30, 45, 60, 90)), random.choice(("minute", "minute", "hour"))
    return Circumstance("minutes", minutes(count, unit), lambda random: f"for {duration(count, unit, random)}")


def _amount(random: Random) -> Circumstance:
    count = random.choice((5, 10, 20, 50, 100, 150, 200, 250, 500, 1000, 1500, 2000, 5000, 10000))
    money = random.choice((("£{}", "{} pounds"), ("€{}", "{} euros"), ("${}", "{} dollars")))
    words = random.choice((("more than ", "over ", "above "), ("less than ", "under ", "below "), ("",)))

    def say(random: Random) -> str:
        figure = random.choice((str(count), f"{count:,}"))
        return f"with {random.choice(words)}{random.choice(money).format(figure)}"

    return Circumstance("amount", (count, money, words), say)


def _age(random: Random) -> Circumstance:
    years = random.choice((12, 14, 15, 16, 17, 18, 21, 25, 30, 50, 60, 65, 70))
    forms = random.choice(
        (
            ("at {}", "at age {}", "if I am {}", "when I'm {} years old"),
            ("if I'm under {}", "when younger than {}"),
            ("if I'm over {}", "when older than {}"),
        )
    )
    return Circumstance("age", (years, forms), lambda random: random.choice(forms).format(years))


def _people(random: Random) -> Circumstance:
    count = random.choice((1, 2, 3, 4, 5, 6, 8, 10, 12, 20, 50))
    noun = ("person",) if count == 1 else ("people", "persons")
    return Circumstance("people", count, lambda random: f"for {spoken(count, random)} {random.choice(noun)}")


def _degrees(random: Random) -> Circumstance:
    count = random.choice((100, 120, 150, 160, 170, 180, 190, 200, 220, 250))
    units = random.choice((("°C", " degrees Celsius", " C"), ("°F", " degrees Fahrenheit", " F")))
    return Circumstance("temp", (count, units), lambda random: f"at {count}{random.choice(units)}")


def _version(random: Random) -> Circumstance:
    number = random.choice(
        ["2", "3", "3.8", "3.9", "3.10", "3.11", "3.12", "11", "12", "14", "16", "17", "18", "20", "21", "22"]
    )
    forms = (f"(version {number})", f"version {number}", f"v{number}")
    return Circumstance("version", number, lambda random: random.choice(forms))


def _route(start: str, end: str) -> Circumstance:
    forms = (f"from {start} to {end}", f"to {end} from {start}")
    return Circumstance("route", (start, end), lambda random: random.choice(forms))


def _any_route(random: Random) -> Circumstance:
    start, end = random.sample(vocabulary()["groups"]["cities"][0], 2)
    return _route(start, end)


def _date(random: Random) -> Circumstance:
    day, month = random.randrange(1, 29), random.choice(MONTHS)
    forms = (f"on {month} {day}", f"on {day} {month}", f"on {month[:3]} {day}", f"for {day} {month}")
    return Circumstance("date", (day, month), lambda random: random.choice(forms))


def _hour(random: Random) -> Circumstance:
    hour, late = random.randrange(1, 12), random.random() < 0.5
    half = "pm" if late else "am"
    spoken_half = ("in the afternoon" if hour < 6 else "in the evening") if late else "in the morning"
    forms = (
        f"{hour} {half}",
        f"{hour}{half}",
        f"{hour}:00 {half}",
        f"{hour + 12 * late:02}:00",
        f"{hour} {spoken_half}",
    )
    return Circumstance("hour", (hour, late), lambda random: f"at {random.choice(forms)}")


_NUMERIC: Final[Mapping[str, Callable[[Random], Circumstance]]] = {
    "within": _within,
    "minutes": _minutes,
    "amount": _amount,
    "age": _age,
    "people": _people,
    "temp": _degrees,
    "version": _version,
    "route": _any_route,
    "date": _date,
    "hour": _hour,
}


class Fact(NamedTuple):
    """A relation and the names that fill its slots."""

    relation: int
    names: tuple[str, ...]

    def say(self, random: Random) -> str:
        """Returns one of the relation's surface forms."""
        relation = vocabulary()["facts"][self.relation]
        return str(random.choice(relation["forms"])).format(**dict(zip(_slots(relation), self.names, strict=True)))

    @property
    def key(self) -> object:
        """Equal for facts with one answer."""
        symmetric = vocabulary()["facts"][self.relation].get("symmetric")
        return self.relation, tuple(sorted(self.names)) if symmetric else self.names


def _fact_pair(random: Random) -> Pair | None:
    facts = vocabulary()["facts"]
    relation = random.randrange(len(facts))
    fact = Fact(relation, _names(facts[relation], random))
    if random.random() < POSITIVE:
        return Pair(vary(fact.say(random), random), vary(fact.say(random), random), True, "grammar-facts")
    other = _other_fact(fact, random)
    if other.key == fact.key:
        return None
    return Pair(vary(fact.say(random), random), vary(other.say(random), random), False, "grammar-facts")


def _slots(relation: Mapping[str, Any]) -> Sequence[str]:
    if "group" not in relation:
        return list(relation["slots"])
    return ["a", "b", "number"] if relation["group"] == "units" else ["a", "b"]


def _names(relation: Mapping[str, Any], random: Random) -> tuple[str, ...]:
    words = vocabulary()
    if "group" not in relation:
        return tuple(random.choice(words["pools"][slot]) for slot in relation["slots"])
    pair = random.sample(random.choice(words["groups"][relation["group"]]), 2)
    return (*pair, random.choice(words["pools"]["number"])) if relation["group"] == "units" else tuple(pair)


def _other_fact(fact: Fact, random: Random) -> Fact:
    """Returns the fact with another relation, with one other name, or the other way round."""
    facts = vocabulary()["facts"]
    relation = facts[fact.relation]
    same_slots = [place for place, one in enumerate(facts) if _fillers(one) == _fillers(relation)]
    chance = random.random()
    if chance < 0.4:
        return Fact(random.choice(same_slots), fact.names)
    first, *rest = fact.names
    if chance < 0.7 and "group" in relation:
        return Fact(fact.relation, (rest[0], first, *rest[1:]))
    fresh = _names(relation, random)
    if "group" in relation:
        group = next(one for one in vocabulary()["groups"][relation["group"]] if first in one and rest[0] in one)
        return Fact(fact.relation, (first, random.choice([one for one in group if one != first]), *rest[1:]))
    slot = random.randrange(len(fresh))
    return Fact(fact.relation, tuple(fresh[i] if i == slot else name for i, name in enumerate(fact.names)))


def _fillers(relation: Mapping[str, Any]) -> object:
    return relation.get("group") or tuple(relation["slots"])


def _gerund(verb: str) -> str:
    head, blank, rest = verb.partition(" ")
    if head in ("be", "see") or head.endswith("ee"):
        stem = head
    elif head in DOUBLED:
        stem = head + head[-1]
    else:
        stem = head.removesuffix("e")
    return f"{stem}ing{blank}{rest}"


def _lower_first(text: str) -> str:
    return text if text.startswith(("I ", "I'")) else text[:1].lower() + text[1:]
