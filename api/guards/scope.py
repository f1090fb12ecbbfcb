"""Guard `scope`: for whom, for what and with what exception the answer is to hold.

Alternatives: of each set a question names one, and another question another (full-time / part-time).

A line is a set, its members apart by ` / `. Words of one member are not claimed to mean the same; phrases have hyphens;
each also has its regular plural.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from api.guards.words import Words
from api.languages.function_words import words_in

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
NONE: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Scope:
    """What a question's answer is to hold for."""

    members: dict[str, frozenset[str]] = field(default_factory=dict)
    """By set of alternatives those that are named."""
    exception: str = ""
    """As it was written."""
    qualifiers: frozenset[str] = NONE
    words: tuple[str, ...] = ()
    """In order, qualifiers left out."""


def read(question: Words) -> Scope:
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


def compare(one: Scope, other: Scope) -> str:
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
