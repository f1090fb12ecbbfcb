"""Guards `names` and `scope`.

`names` requires that both questions contain the same names, codes, months, currencies and units. `scope` requires that
both ask for the same people, things and exceptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from api.guards.vocabulary import AMBIGUOUS, CLASSES, MONTH_BEFORE, STRICT_CLASSES, stem
from api.guards.vocabulary import OTHER_NUMBERS as OTHER_NUMBERS
from api.guards.words import Words, squash
from api.languages.function_words import words_in

FIRST_NAMES: Final = words_in(
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
"""First names of people known by their surname alone. Omits names of their relatives (Michelle, Hillary, Melania)."""
TITLES: Final = words_in(
    "mr mrs ms miss dr doctor prof professor president chancellor senator sir lord lady dame pope mount minister"
)
COMPANIES: Final = words_in("google microsoft adobe samsung mozilla atlassian sony nintendo meta")
"""Companies whose products are also named without them: Google Chrome, Chrome."""
NAME_PREFIXES: Final = FIRST_NAMES | TITLES | COMPANIES
MIN_TYPO_LETTERS: Final = 7
"""Minimum letters of a name in which one wrong letter counts as a typo."""
DISTINCT_NAMES: Final = frozenset(
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
"""Distinct names that differ in one letter."""


def is_partial_name(missing: Sequence[str], words: Sequence[str], known: Sequence[str]) -> bool:
    """Returns whether each missing name only precedes a name that both questions contain: Donald Trump, Trump."""
    for name in missing:
        if name not in NAME_PREFIXES or name not in words:
            return False
        after = words[words.index(name) + 1 :][:2]
        if not any(word in known and word not in NAME_PREFIXES for word in after):
            return False
    return True


def is_typo(one: Sequence[str], other: Sequence[str]) -> bool:
    """Returns whether each side lacks one name and the two differ by a typo: one letter changed, missing, doubled or
    swapped.
    """
    if len(one) != 1 or len(other) != 1:
        return False
    left, right = one[0], other[0]
    if min(len(left), len(right)) < MIN_TYPO_LETTERS or left[0] != right[0] or not (left.isalpha() and right.isalpha()):
        return False
    return frozenset((left, right)) not in DISTINCT_NAMES and _one_edit(left, right)


def _one_edit(left: str, right: str) -> bool:
    """Returns whether one letter was added, removed or replaced, or two neighbors swapped."""
    if len(left) > len(right):
        left, right = right, left
    start = 0
    while start < len(left) and left[start] == right[start]:
        start += 1
    if len(left) < len(right):
        return left[start:] == right[start + 1 :]
    swapped = left[start : start + 2] == right[start : start + 2][::-1]
    return left[start + 1 :] == right[start + 1 :] or (swapped and left[start + 2 :] == right[start + 2 :])


NAMING_LETTERS: Final = frozenset("bcdefghjlopqvwz")
"""Name something when they stand alone (vitamin c, plan b). Other letters are chat or parts of words."""
CAPITALIZED_CHAT: Final = words_in("ok okay asap fyi please help thanks thank hi hello hey english urgent")
NOT_NAMES: Final = CAPITALIZED_CHAT | OTHER_NUMBERS.keys()
"""Capitalized words that are not names. The guard `numbers` reads II."""
ALIASES: Final = {
    "usa": "us",
    "america": "us",
    "britain": "uk",
    "javascript": "js",
    "typescript": "ts",
    "tv": "television",
}

NO_WORDS: Final[frozenset[str]] = frozenset()
SYNONYMS: Final = {
    "united": words_in("us usa uk uae america britain"),
    "states": words_in("us usa america"),
    "kingdom": words_in("uk britain"),
    "us": words_in("states"),
    "uk": words_in("kingdom"),
}
"""Other words for the same name."""

Names = tuple[dict[str, None], dict[str, set[str]], tuple[str, ...], Words]
"""Names, members by class, quoted phrases, and all words of the question."""


def read_names(question: Words) -> Names:
    """Returns the names of a question. They keep their order for the detail text."""
    words = question.words
    names = dict.fromkeys(name for name in question.names if name not in NOT_NAMES and name not in CLASSES)
    classes: dict[str, set[str]] = {}
    for index, word in enumerate(words):
        known = CLASSES.get(word)
        if known is not None and (word not in AMBIGUOUS or _is_date(words, index)):
            classes.setdefault(known[0], set()).add(known[1])
        elif word in NAMING_LETTERS and question.english:
            names[word] = None
    return names, classes, question.quoted, question


def compare_names(one: Names, other: Names) -> str:
    """Returns the first name that the other question lacks, else an empty string."""
    difference = _differing(one, other)
    if difference:
        return difference
    for kind in one[1].keys() | other[1].keys():
        left, right = one[1].get(kind, set()), other[1].get(kind, set())
        if left != right and (kind in STRICT_CLASSES or (left and right)):
            return f"{'+'.join(sorted(left)) or 'none'} / {'+'.join(sorted(right)) or 'none'}"
    return ""


def _differing(one: Names, other: Names) -> str:
    """Returns the first names and quoted phrases in one question only. Ignores partial names and typos."""
    missing, unknown = _missing(one, other), _missing(other, one)
    phrases = _unquoted(one, other), _unquoted(other, one)
    if not any(phrases):
        if not (missing or unknown) or is_typo(_plain_words(missing, one), _plain_words(unknown, other)):
            return ""
        if not (missing and unknown):
            longer, shorter = (one, other) if missing else (other, one)
            if is_partial_name(missing or unknown, longer[3].words, shorter[3].words):
                return ""
    left, right = (*missing, phrases[0])[0], (*unknown, phrases[1])[0]
    return f"{left or 'none'} / {right or 'none'}"


def _missing(names: Names, other: Names) -> list[str]:
    known = other[3].words
    return [name for name in names[0] if name not in known and name not in other[0] and not _known(name, known)]


def _unquoted(names: Names, other: Names) -> str:
    """Returns the first quoted phrase that the other question does not contain, quoted or not."""
    if not names[2]:
        return ""
    spaced = f" {' '.join(other[3].words)} "
    return next((phrase for phrase in names[2] if f" {phrase} " not in spaced), "")


def _plain_words(missing: Sequence[str], names: Names) -> Sequence[str]:
    """Returns the missing names if all are plain words. Codes and identifiers must match letter by letter."""
    return missing if all(name in names[3].words for name in missing) else ()


def _known(name: str, words: Sequence[str]) -> bool:
    """Returns whether the words contain the name in another form: plural, alias, or split (abc 123)."""
    if not SYNONYMS.get(name, NO_WORDS).isdisjoint(words):
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


def _is_date(words: Sequence[str], index: int) -> bool:
    before = words[index - 1] if index else ""
    after = words[index + 1] if index + 1 < len(words) else ""
    return before in MONTH_BEFORE or before[-1:].isdigit() or after[:1].isdigit()


_ALTERNATIVES: Final = """
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
    """Yields each word or phrase with its set and its member, both named by their first words."""
    for line in filter(None, _ALTERNATIVES.splitlines()):
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
"""Sets and members by word or two-word phrase; the words that begin such a phrase."""


EXCEPT: Final = words_in("except excepting excluding besides barring")
EXCEPT_PHRASES: Final = frozenset(
    (("other", "than"), ("apart", "from"), ("aside", "from"), ("exception", "of"), ("not", "counting"))
)
QUALIFIERS: Final = words_in("again too also only else alone instead anymore together")
"""Change the meaning when all else is the same: when can I apply / when can I apply again."""
CHAT_WORDS: Final = words_in("want need like know wondering have would could can i tell please")
"""After `also` or `only`, these begin chat: I also want to know."""
COORDINATORS: Final = words_in("and plus &")
MAX_ADDED_WORDS: Final = 5
"""Maximum words of an addition, including `and`."""
NOT_ADDITIONS: Final = words_in(
    "now then yet so thanks thank please i we it you how what when where why not cannot help"
)
"""After an `and` that joins clauses or says nothing."""
NO_EXCEPTIONS: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Scope:
    """Restrictions on what an answer must cover."""

    members: dict[str, frozenset[str]] = field(default_factory=dict)
    """The named members of each set of alternatives."""
    exception: str = ""
    """The exception as written."""
    qualifiers: frozenset[str] = NO_EXCEPTIONS
    words: tuple[str, ...] = ()
    """In order, without qualifiers."""


def read_scope(question: Words) -> Scope:
    """Returns the scope of a question; empty if another language prevails."""
    if not question.english:
        return Scope()
    words = question.words
    members: dict[str, set[str]] = {}
    qualifiers: set[str] = set()
    exception = ""
    for index, word in enumerate(words):
        if word in PHRASE_STARTS or word in MEMBERS:
            _add_member(members, words, index)
        if word in QUALIFIERS and not _is_filler(question, index):
            qualifiers.add(word)
        elif not exception and (word in EXCEPT or words[index : index + 2] in EXCEPT_PHRASES):
            exception = _exception(question, index)
    plain = tuple(word for word in words if word not in QUALIFIERS) if qualifiers else words
    named = {kind: frozenset(found) for kind, found in members.items()}
    return Scope(named, exception, frozenset(qualifiers), plain)


def compare_scope(one: Scope, other: Scope) -> str:
    """Returns the restriction that only one question has, else an empty string."""
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
    """Returns the words that only the longer question has, if `and` joins them (and bacteria), else an empty string."""
    more = len(longer) - len(shorter)
    if not 2 <= more <= MAX_ADDED_WORDS:
        return ""
    start = 0
    while start < len(shorter) and longer[start] == shorter[start]:
        start += 1
    if longer[start + more :] != shorter[start:]:
        return ""
    block = longer[start : start + more]
    if block[0] in COORDINATORS:
        return "" if block[1] in NOT_ADDITIONS else " ".join(block)
    return " ".join(block) if block[-1] in COORDINATORS and block[0] not in NOT_ADDITIONS else ""


def _add_member(members: dict[str, set[str]], words: Sequence[str], index: int) -> None:
    """Adds the phrase that begins here, else the word."""
    found = MEMBERS.get(" ".join(words[index : index + 2])) if words[index] in PHRASE_STARTS else None
    for kind, member in found or MEMBERS.get(words[index], ()):
        members.setdefault(kind, set()).add(member)


def _is_filler(question: Words, index: int) -> bool:
    """Returns whether a qualifier is filler: also, how do I; I only want to know; hello again."""
    words = question.words
    after = words[index + 1] if index + 1 < len(words) else ""
    return index in question.clause_starts or (words[index] in ("also", "only") and after in CHAT_WORDS)


def _exception(question: Words, index: int) -> str:
    """Returns the exception (besides cash), or an empty string for filler (besides, how do I pay)."""
    words = question.words
    if (
        index + 1 in question.clause_starts
        or index + 1 >= len(words)
        or words[index + 1] in ("me", "us", "this", "that")
    ):
        return ""
    return " ".join(words[index : index + 3])
