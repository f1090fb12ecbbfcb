"""English antonyms. Each pair is an axis with two poles; module import adds the inflected forms.

Each line is one axis: the words of one pole, a slash, the words of the other. Words of one pole need not mean the same.
An axis marked `~` separates two questions only if they share no pole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from api.guards.vocabulary import inflections, stem
from api.languages.function_words import words_in

VERBS: Final = """
enable activate unblock reactivate turn-on switch-on power-on / disable deactivate block turn-off switch-off power-off
increase raise grow rise / decrease reduce lower shrink drop fall
open reopen / close
add insert append include attach / remove delete exclude subtract detach
create make / delete destroy remove
start begin launch resume / stop end quit halt pause finish
upload / download
install / uninstall
log-in sign-in log-on / log-out sign-out log-off
sign-in log-in / sign-up
check-in / check-out
import / export
buy purchase / sell
send / receive
deposit top-up pay-in / withdraw
freeze / unfreeze thaw
lock / unlock
accept approve allow permit / decline reject deny refuse forbid prohibit ban
cover include / exclude
remember recall / forget
love adore / hate dislike detest
praise / criticise criticize
admit / deny
agree / object
encourage / discourage
require / waive
strengthen / weaken
lengthen / shorten
appear / vanish
build construct / demolish
inflate / deflate
fasten / unfasten
attract / repel
reward / punish
lend / borrow
encrypt / decrypt
encode / decode
compress zip / decompress unzip extract
push / pull
connect link pair / disconnect unlink unpair
mount / unmount
subscribe opt-in / unsubscribe opt-out
follow / unfollow
mute / unmute
hide / show unhide reveal
expand / collapse
win / lose
born birth / die death
pass / fail
save gain earn / spend
join enter / leave exit
arrive / depart
hire / fire dismiss
inhale / exhale
attack / defend
upgrade / downgrade
zoom-in / zoom-out
scale-up / scale-down
speed-up accelerate / slow-down decelerate brake
sell-short / buy-long
multiply / divide
merge / split
load / unload
cancel / reinstate
wake / sleep
gain / lose
teach / learn
credit / debit
question / answer
employer / employee
"""
OTHERS: Final = """
before prior until / after following since
minimum min least lowest smallest fewest / maximum max most highest largest biggest greatest
first earliest / last latest
earliest oldest / latest newest
cheap cheaper cheapest / expensive pricier dearer
best better good / worst worse bad
safe safely / unsafe unsafely dangerous
fast faster fastest quick quicker / slow slower slowest
high higher / low lower
big bigger large larger / small smaller little
long longer longest tall taller tallest / short shorter shortest
wide wider widest / narrow narrower narrowest
deep deeper deepest / shallow shallower shallowest
thick thicker thickest / thin thinner thinnest
old older oldest / young younger youngest
singular / plural
rich richer richest / poor poorer poorest
easy easier easiest / difficult harder hardest
wet / dry
loud louder / quiet quieter
clean / dirty
alive / dead
adult adults / child children kids
compulsory mandatory obligatory required / optional voluntary
guilty / innocent
sharp / blunt
full / empty
rough / smooth
major / minor
urgent / routine
maximal / minimal
sweet / sour
sober / drunk
asleep / awake
guest / host
employed / jobless
winning / losing
ancient / modern
broad / narrow
shared / exclusive
single / married
hot hotter hottest warm / cold colder coldest cool
heavy heavier heaviest / light lighter lightest
strong stronger strongest / weak weaker weakest
near nearest nearby closest / far farthest furthest
early earlier / late later
public publicly / private privately
legal legally / illegal illegally
true / false
male men man boy / female women woman girl
husband / wife
father / mother
son / daughter
brother / sister
king / queen
inside indoor indoors internal inbound incoming / outside outdoor outdoors external outbound outgoing
above / below beneath
over / under
left / right
north northern / south southern
east eastern / west western
northern / southern
morning / evening
day / night
today / yesterday tomorrow
yesterday / tomorrow today
tomorrow / today yesterday
next upcoming / previous past
summer / winter
spring / autumn
future / past
always / never
more / less fewer
positive / negative
advantage advantages pros benefit benefits / disadvantage disadvantages cons drawbacks risk risks danger dangers
success successful successfully / failure failed unsuccessful
profit / loss
supply / demand
input / output
import / export
front / back rear
top / bottom
buyer / seller
sender / receiver recipient
landlord / tenant
lender / borrower
winner / loser
beginner / expert
ancestor / descendant
vertical vertically / horizontal horizontally
synchronous sync / asynchronous async
ascending / descending
domestic / foreign international overseas
temporary temporarily / permanent permanently
manual manually / automatic automatically
odd / even
physical / virtual
online / offline
careful / careless
useful / useless
personal / business
arrival arrivals / departure departures
weekday weekdays / weekend weekends
~ with / without
~ within / after
~ up / down
~ on / off
~ upstairs / downstairs
~ most / least
~ old older / new newer
"""
IRREGULAR: Final = {
    "began": "begin", "begun": "begin", "beginning": "begin", "bought": "buy", "sold": "sell", "sent": "send",
    "withdrew": "withdraw", "withdrawn": "withdraw", "withdrawal": "withdraw", "withdrawals": "withdraw",
    "froze": "freeze", "frozen": "freeze", "unfroze": "unfreeze", "unfrozen": "unfreeze", "grew": "grow",
    "grown": "grow", "rose": "rise", "risen": "rise", "fell": "fall", "fallen": "fall", "made": "make",
    "lent": "lend", "borrowed": "borrow", "hidden": "hide", "hid": "hide", "shown": "show", "won": "win",
    "lost": "lose", "spent": "spend", "left": "leave", "deletion": "delete", "removal": "remove",
    "creation": "create", "installation": "install", "activation": "activate", "deactivation": "deactivate",
    "acceptance": "accept", "approval": "approve", "rejection": "reject", "denied": "deny", "taught": "teach",
    "forbade": "forbid", "forgot": "forget", "forgotten": "forget", "built": "build", "coverage": "cover",
    "banned": "ban", "exclusion": "exclude", "inclusion": "include", "forbidden": "forbid",
    "opening": "open", "closing": "close", "closure": "close", "encryption": "encrypt", "decryption": "decrypt",
    "subscription": "subscribe",
}  # fmt: skip
_AMBIGUOUS_AXES: Final = """
left / right
may might / must
like enjoy / hate dislike
show display / hide conceal
light / dark
front / back
give / take
come / go
ask / answer
hard / soft
help / harm
fix repair / break
inner / outer
upper / lower
sit / stand
laugh / cry
friend / enemy
here / there
always / sometimes
could / should
all / some
some / every
many / few
everyone everybody / someone somebody
heat / cool
lead / follow
rising / falling
ever / never
"""
"""Ambiguous antonyms. They separate two questions only if all other content words are the same."""
AMBIGUOUS: Final = words_in(
    """
    made make making makes ended ends end left fall show shows light even well past back
    """
)
"""Words too ambiguous to separate two questions."""
PARTICLES: Final = words_in("on off in out up down")
PREFIXES: Final = ("un", "dis", "de", "in", "im", "ir", "il", "non", "mis")
FALSE_PREFIXES: Final = words_in(
    """
    inform invoice discount display discover discard design detail debit under invest increas input inside income
    install intest deposit depart demand depend derive describ desir develop device devic until united unit unite
    into indoor intend intent internal important import improve impress imply illness irate demand despite impart
    inbound depress discuss distance district distant insure ensure incom invent devote defin decline declin deal
    dear dead deck detest mister misty mistak missing inline involve invalue inlet innate disappear mission indeed invit
    """
)


def _poles(lines: str) -> Iterator[tuple[str, str, str]]:
    """Yields axis, pole and word. The first word of a pole names it."""
    for line in filter(None, lines.strip().splitlines()):
        weak, line = line.startswith("~"), line.removeprefix("~ ")
        sides = [side.split() for side in line.split(" / ")]
        axis = ("~" if weak else "") + "/".join(side[0] for side in sides)
        for side in sides:
            for word in side:
                yield axis, side[0], word


def _table() -> tuple[dict[str, tuple[tuple[str, str], ...]], dict[str, tuple[tuple[str, str], ...]], dict[str, str]]:
    singles: dict[str, dict[tuple[str, str], None]] = {}
    phrases: dict[str, tuple[tuple[str, str], ...]] = {}
    particle_verbs: dict[str, str] = {}
    for axis, pole, word in _poles(VERBS):
        verb, _, particle = word.partition("-")
        if particle:
            phrases[f"{verb} {particle}"] = (*phrases.get(f"{verb} {particle}", ()), (axis, pole))
            particle_verbs |= dict.fromkeys(inflections(verb), verb)
        else:
            forms = (*inflections(verb), *(form for form, base in IRREGULAR.items() if base == verb))
            for form in forms:
                singles.setdefault(form, {})[axis, pole] = None
    for axis, pole, word in _poles(OTHERS):
        singles.setdefault(word, {})[axis, pole] = None
    kept = {word: tuple(poles) for word, poles in singles.items() if word not in AMBIGUOUS}
    return kept, phrases, particle_verbs


def _ambiguous_pairs() -> frozenset[tuple[str, str]]:
    pairs: set[tuple[str, str]] = set()
    for line in filter(None, _AMBIGUOUS_AXES.splitlines()):
        one, other = (map(stem, side.split()) for side in line.split(" / "))
        theirs = tuple(other)
        for word in one:
            pairs.update((word, counterpart) for counterpart in theirs)
            pairs.update((counterpart, word) for counterpart in theirs)
    return frozenset(pairs)


POLES, PHRASES, PARTICLE_VERBS = _table()
AMBIGUOUS_ANTONYMS: Final = _ambiguous_pairs()
"""Pairs of stems in both orders."""
AMBIGUOUS_STEMS: Final = frozenset(word for pair in AMBIGUOUS_ANTONYMS for word in pair)
