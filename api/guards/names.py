"""Guard `names`: every name, code, month, currency and unit of one question is the other's too.

Guard `scope`: for whom, for what and with what exception the answer is to hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from api.guards.vocabulary import AMBIGUOUS, CLASSES, MONTH_BEFORE, STRICT, stem
from api.guards.vocabulary import OTHER_NUMBERS as OTHER_NUMBERS
from api.guards.words import Words, squash
from api.languages.function_words import words_in

GIVEN: Final = words_in(
    """
    albert alexander alfred andrew angela anthony arnold arthur barack benjamin bernie bill bob boris brad bruce
    charles charlie christopher claude daniel david denzel donald douglas edward elon emmanuel eric ernest ferdinand
    frank franklin frederick galileo george gerald giuseppe hans harry henry hugh isaac jack jacques jair james jane
    jeff jeffrey jim jimmy joe johann john jonathan joseph julius justin karl keanu keir kim kurt larry leo leonardo
    lewis lionel louis ludwig marie mark martin matthew max meryl michael mike mohandas morgan napoleon narendra neil
    nelson nicolas nikola olaf oscar oprah pablo patrick paul peter philip pierre quentin rafael ralph ray recep richard
    rishi robert roger ronald sam samuel satya scott sergei sigmund simon stephen steve steven sundar ted theresa thomas
    tiger tim timothy tom tony usain vincent vladimir volodymyr walt walter warren william winston wolfgang xi
    """
)
"""First names of bearers known by their surnames alone. Not of their relatives (Michelle, Hillary, Melania)."""
TITLES: Final = words_in(
    "mr mrs ms miss dr doctor prof professor president chancellor senator sir lord lady dame pope mount minister"
)
MAKERS: Final = words_in("google microsoft adobe samsung mozilla atlassian sony nintendo meta")
"""Their products go by their own names too: Google Chrome, Chrome."""
BEFORE: Final = GIVEN | TITLES | MAKERS
SHORTEST: Final = 7
"""Letters of a name in which one wrong letter is a slip."""
OTHERS: Final = frozenset(
    map(
        frozenset,
        (
            ("columbia", "colombia"),
            ("stanford", "stamford"),
            ("johnson", "johnston"),
            ("peterson", "petersen"),
            ("anderson", "andersen"),
            ("dominica", "dominican"),
        ),
    )
)
"""Different names one letter apart."""


def is_part(missing: Sequence[str], words: Sequence[str], known: Sequence[str]) -> bool:
    """Whether each missing name only stands before one that both know: Donald Trump, Trump."""
    for name in missing:
        if name not in BEFORE or name not in words:
            return False
        after = words[words.index(name) + 1 :][:2]
        if not any(word in known and word not in BEFORE for word in after):
            return False
    return True


def is_slip(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether the only names that each lacks are one, with one letter wrong, left out, doubled or swapped."""
    if len(one) != 1 or len(other) != 1:
        return False
    left, right = one[0], other[0]
    if min(len(left), len(right)) < SHORTEST or left[0] != right[0] or not (left.isalpha() and right.isalpha()):
        return False
    return frozenset((left, right)) not in OTHERS and _one_edit(left, right)


def _one_edit(left: str, right: str) -> bool:
    """One letter more, less or another, or two neighbours swapped."""
    if len(left) > len(right):
        left, right = right, left
    start = 0
    while start < len(left) and left[start] == right[start]:
        start += 1
    if len(left) < len(right):
        return left[start:] == right[start + 1 :]
    swapped = left[start : start + 2] == right[start : start + 2][::-1]
    return left[start + 1 :] == right[start + 1 :] or (swapped and left[start + 2 :] == right[start + 2 :])


LETTERS: Final = frozenset("bcdefghjlopqvwz")
"""Alone they name something (vitamin c, plan b); the rest are chat or parts of words."""
NO_NAMES: Final = words_in("ok okay asap fyi please help thanks thank hi hello hey english urgent")
NOT_ASKED: Final = NO_NAMES | OTHER_NUMBERS.keys()
"""What is capitalised and no name: II is a number, and the guard `numbers`' matter."""
ALIASES: Final = {
    "usa": "us",
    "america": "us",
    "britain": "uk",
    "javascript": "js",
    "typescript": "ts",
    "tv": "television",
}

NO_WORDS: Final[frozenset[str]] = frozenset()
OTHERWISE: Final = {
    "united": words_in("us usa uk uae america britain"),
    "states": words_in("us usa america"),
    "kingdom": words_in("uk britain"),
    "us": words_in("states"),
    "uk": words_in("kingdom"),
}
"""Other words for the same."""

Names = tuple[dict[str, None], dict[str, set[str]], tuple[str, ...], Words]
"""Names, members by class, quoted phrases, and the words to look for the other's in."""


def read_names(question: Words) -> Names:
    """Names keep their order, for the detail shown."""
    words = question.words
    names = dict.fromkeys(name for name in question.names if name not in NOT_ASKED and name not in CLASSES)
    classes: dict[str, set[str]] = {}
    for place, word in enumerate(words):
        known = CLASSES.get(word)
        if known is not None and (word not in AMBIGUOUS or _dated(words, place)):
            classes.setdefault(known[0], set()).add(known[1])
        elif word in LETTERS and question.english:
            names[word] = None
    return names, classes, question.quoted, question


def compare_names(one: Names, other: Names) -> str:
    """The first name that the other does not know, else an empty text."""
    difference = _differing(one, other)
    if difference:
        return difference
    for kind in one[1].keys() | other[1].keys():
        left, right = one[1].get(kind, set()), other[1].get(kind, set())
        if left != right and (kind in STRICT or (left and right)):
            return f"{'+'.join(sorted(left)) or 'none'} / {'+'.join(sorted(right)) or 'none'}"
    return ""


def _differing(one: Names, other: Names) -> str:
    """The first names and quoted phrases that are in one only, but for parts of longer names and slips of typing."""
    missing, unknown = _missing(one, other), _missing(other, one)
    phrases = _unquoted(one, other), _unquoted(other, one)
    if not any(phrases):
        if not (missing or unknown) or is_slip(_typed(missing, one), _typed(unknown, other)):
            return ""
        if not (missing and unknown):
            longer, shorter = (one, other) if missing else (other, one)
            if is_part(missing or unknown, longer[3].words, shorter[3].words):
                return ""
    left, right = (*missing, phrases[0])[0], (*unknown, phrases[1])[0]
    return f"{left or 'none'} / {right or 'none'}"


def _missing(names: Names, other: Names) -> list[str]:
    known = other[3].words
    return [name for name in names[0] if name not in known and name not in other[0] and not _known(name, known)]


def _unquoted(names: Names, other: Names) -> str:
    """The first quoted phrase that the other does not have, quoted or not."""
    if not names[2]:
        return ""
    spaced = f" {' '.join(other[3].words)} "
    return next((phrase for phrase in names[2] if f" {phrase} " not in spaced), "")


def _typed(missing: Sequence[str], names: Names) -> Sequence[str]:
    """Those that are words; codes and identifiers are none, and are compared letter by letter."""
    return missing if all(name in names[3].words for name in missing) else ()


def _known(name: str, words: Sequence[str]) -> bool:
    """In another form: a plural, an alias, or in two or three words (abc 123)."""
    if not OTHERWISE.get(name, NO_WORDS).isdisjoint(words):
        return True
    form = stem(ALIASES.get(name, name))
    if any(stem(ALIASES.get(word, word)) == form for word in words):
        return True
    plain = squash(name)
    return any(
        plain.startswith(words[start]) and plain == "".join(words[start : start + length])
        for start in range(len(words))
        for length in range(1, 9)
    )


def _dated(words: Sequence[str], place: int) -> bool:
    before = words[place - 1] if place else ""
    after = words[place + 1] if place + 1 < len(words) else ""
    return before in MONTH_BEFORE or before[-1:].isdigit() or after[:1].isdigit()


_SETS: Final = """
full-time fulltime / part-time parttime
employee staff / contractor freelancer / intern / volunteer
visitor tourist / resident local / citizen
teacher / student pupil / parent
doctor / patient / nurse
driver / passenger / cyclist / pedestrian
child children kid / teenager teen / adult / senior pensioner / baby babies
online / paper / phone telephone / email / in-person in-branch / by-post by-letter
home / abroad overseas / office
gift present / gift-card gift-voucher
credit-card / debit-card / gift-card / sim-card / id-card
one-way / round-trip return-ticket
breakfast / lunch / dinner supper / brunch
car / motorcycle motorbike / bicycle / truck lorry / van / bus buses / train / boat / plane
cat kitten / dog puppy puppies / horse / rabbit / hamster / bird / fish
cow / pig / sheep / goat / chicken
red / blue / green / yellow / black / white / pink / purple / brown / grey gray
iron / steel / copper / aluminium aluminum / brass / lead / zinc
wood wooden / plastic / glass / metal / concrete
kitchen / bathroom / bedroom / garage / balcony / basement / attic
math / physics / chemistry / biology / history / geography
tea / coffee / beer / wine / milk / juice
arm / leg / knee / ankle / wrist / shoulder / elbow / hip
liver / kidney / lung / stomach / brain
mother mum mom / father dad / sister / brother / son / daughter / aunt / uncle
spring / summer / autumn / winter
north / south / east / west
morning / afternoon / evening / night
new brand-new / used second-hand
new / existing / former
single-room / double-room
rent renting rental / buy buying purchase
free / paid
express / standard
gas / electricity electric / water / oil
apple / banana / potato potatoes / tomato tomatoes / carrot / onion
football / tennis / basketball / golf / hockey / cricket / rugby
piano / guitar / violin / drums / flute
windows / linux / macos
android / ios iphone
monthly / weekly / daily / yearly annual annually / quarterly
national / international / local
individual / couple / group / family families
undergraduate / postgraduate
urban / rural
"""


def _members() -> Iterator[tuple[str, tuple[str, str]]]:
    """Each word or phrase with its set and its member, both named by their first words."""
    for line in filter(None, _SETS.splitlines()):
        members = [member.split() for member in line.split(" / ")]
        for member in members:
            for word in member:
                for form in (word, word + "s"):
                    yield form.replace("-", " "), (members[0][0], member[0].replace("-", " "))


def _table() -> tuple[dict[str, tuple[tuple[str, str], ...]], frozenset[str]]:
    table: dict[str, tuple[tuple[str, str], ...]] = {}
    for word, member in _members():
        if member not in table.get(word, ()):
            table[word] = (*table.get(word, ()), member)
    return table, frozenset(word.split()[0] for word in table if " " in word)


MEMBERS, PHRASE_STARTS = _table()
"""Sets and members by word or phrase of two words; the words that begin such a phrase."""


EXCEPT: Final = words_in("except excepting excluding besides barring")
EXCEPT_PHRASES: Final = frozenset(
    (("other", "than"), ("apart", "from"), ("aside", "from"), ("exception", "of"), ("not", "counting"))
)
QUALIFIERS: Final = words_in("again too also only else alone instead anymore together")
"""Change what is asked where all else is the same: when can I apply / when can I apply again."""
CHATTY: Final = words_in("want need like know wondering have would could can i tell please")
"""After `also` and `only`: I also want to know."""
JOINING: Final = words_in("and plus &")
ADDED: Final = 5
"""Words that are added with `and`, itself included."""
NO_THING: Final = words_in("now then yet so thanks thank please i we it you how what when where why not cannot help")
"""After an `and` that joins clauses or says nothing."""
NO_EXCEPTIONS: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Scope:
    """What a question's answer is to hold for."""

    members: dict[str, frozenset[str]] = field(default_factory=dict)
    """By set of alternatives those that are named."""
    exception: str = ""
    """As it was written."""
    qualifiers: frozenset[str] = NO_EXCEPTIONS
    words: tuple[str, ...] = ()
    """In order, qualifiers left out."""


def read_scope(question: Words) -> Scope:
    """One walk over the words; empty where English rules do not hold."""
    if not question.english:
        return Scope()
    words = question.words
    members: dict[str, set[str]] = {}
    qualifiers: set[str] = set()
    exception = ""
    for place, word in enumerate(words):
        if word in PHRASE_STARTS or word in MEMBERS:
            _name(members, words, place)
        if word in QUALIFIERS and not _idle(question, place):
            qualifiers.add(word)
        elif not exception and (word in EXCEPT or words[place : place + 2] in EXCEPT_PHRASES):
            exception = _exception(question, place)
    plain = tuple(word for word in words if word not in QUALIFIERS) if qualifiers else words
    named = {kind: frozenset(found) for kind, found in members.items()}
    return Scope(named, exception, frozenset(qualifiers), plain)


def compare_scope(one: Scope, other: Scope) -> str:
    """What the one holds for and the other does not, else an empty text."""
    if bool(one.exception) != bool(other.exception):
        return f"{one.exception or 'none'} / {other.exception or 'none'}"
    for kind in one.members.keys() & other.members.keys():
        if one.members[kind].isdisjoint(other.members[kind]):
            return f"{'+'.join(sorted(one.members[kind]))} / {'+'.join(sorted(other.members[kind]))}"
    if one.words == other.words:
        left, right = one.qualifiers - other.qualifiers, other.qualifiers - one.qualifiers
        return f"{'+'.join(sorted(left)) or 'none'} / {'+'.join(sorted(right)) or 'none'}" if left or right else ""
    added = _added(one.words, other.words)
    if added:
        return f"{added} / none"
    added = _added(other.words, one.words)
    return f"none / {added}" if added else ""


def _added(longer: Sequence[str], shorter: Sequence[str]) -> str:
    """What stands in the longer only, where that is all and `and` joins it: and bacteria."""
    more = len(longer) - len(shorter)
    if not 2 <= more <= ADDED:
        return ""
    start = 0
    while start < len(shorter) and longer[start] == shorter[start]:
        start += 1
    if longer[start + more :] != shorter[start:]:
        return ""
    block = longer[start : start + more]
    if block[0] in JOINING:
        return "" if block[1] in NO_THING else " ".join(block)
    return " ".join(block) if block[-1] in JOINING and block[0] not in NO_THING else ""


def _name(members: dict[str, set[str]], words: Sequence[str], place: int) -> None:
    """The phrase that begins here, else the word."""
    found = MEMBERS.get(" ".join(words[place : place + 2])) if words[place] in PHRASE_STARTS else None
    for kind, member in found or MEMBERS.get(words[place], ()):
        members.setdefault(kind, set()).add(member)


def _idle(question: Words, place: int) -> bool:
    """also, how do I; I only want to know; hello again."""
    words = question.words
    after = words[place + 1] if place + 1 < len(words) else ""
    return place in question.clause_starts or (words[place] in ("also", "only") and after in CHATTY)


def _exception(question: Words, place: int) -> str:
    """besides cash; not: besides, how do I pay."""
    words = question.words
    if (
        place + 1 in question.clause_starts
        or place + 1 >= len(words)
        or words[place + 1] in ("me", "us", "this", "that")
    ):
        return ""
    return " ".join(words[place : place + 3])
