"""Words whose exchange turns a question round. Pairs are `one/other`; either side may list several, by commas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

VERBS: Final = """
enable,activate/disable,deactivate increase,raise,grow/decrease,reduce,lower,shrink open/close,shut
start,begin/stop,end,finish,quit
add,insert,append/remove,delete,drop allow,permit/forbid,deny,block,prohibit accept,approve/reject,decline,refuse
upload/download install/uninstall import/export encrypt/decrypt buy,purchase/sell send/receive lend/borrow push/pull
deposit/withdraw lock/unlock freeze/unfreeze mount/unmount connect/disconnect attach/detach win/lose pass/fail
create/destroy,delete compress/decompress,extract hire/fire join/leave arrive/depart enter/exit,leave gain/lose
show/hide expand/collapse zip/unzip subscribe/unsubscribe follow/unfollow mute/unmute pause/resume cancel/renew
save/discard include/exclude load/unload charge/refund,discharge debit/credit earn/spend multiply/divide
"""

OTHERS: Final = """
before/after min,minimum/max,maximum safe,secure/unsafe,insecure,dangerous first/last up/down inside/outside
legal/illegal cheap,cheaper,cheapest/expensive,dearest more/less,fewer most/least,fewest best/worst better/worse
high,higher,highest/low,lower,lowest big,bigger,biggest,large,larger,largest/small,smaller,smallest
long,longer,longest/short,shorter,shortest fast,faster,fastest,quick/slow,slower,slowest early,earlier/late,later
old,older,oldest/new,newer,newest,young,younger hot,hotter/cold,colder warm/cool left/right north/south east/west
above,over/below,under with/without true/false positive/negative public/private incoming/outgoing input/output
sender/recipient,receiver buyer/seller employer/employee teacher/student parent/child male/female
day/night morning/evening summer/winter success/failure profit/loss pros/cons advantage,benefit/disadvantage,drawback
yesterday/tomorrow past/future oldest/newest always/never vertical/horizontal ascending/descending
"""

PARTICLES: Final = {"in": "out", "on": "off", "up": "down"}

PARTICLE_VERBS: Final = frozenset(
    "log logs logged logging sign signs signed signing turn turns turned turning switch switches switched switching "
    "opt opted opting check checks checked checking power powered clock plug plugged roll scale scaled scaling".split()
)

_IRREGULAR: Final = {
    "buy": "bought",
    "sell": "sold",
    "send": "sent",
    "lend": "lent",
    "win": "won",
    "lose": "lost",
    "begin": "began begun beginning",
    "leave": "left",
    "freeze": "froze frozen",
    "unfreeze": "unfrozen",
    "withdraw": "withdrew withdrawn withdrawal withdrawals",
    "forbid": "forbade forbidden",
    "grow": "grew grown",
    "shrink": "shrank shrunk",
    "hide": "hid hidden",
    "show": "shown",
    "spend": "spent",
    "deny": "denied denies",
    "open": "opening",
}
_DOUBLED: Final = frozenset("stop drop quit shut win zip unzip begin permit submit forbid".split())


def _forms(verb: str) -> Iterator[str]:
    yield verb
    yield from _IRREGULAR.get(verb, "").split()
    base = verb[:-1] if verb.endswith("e") else verb + verb[-1] if verb in _DOUBLED else verb
    yield from (f"{base}ing", f"{base}ed", f"{verb}es" if verb.endswith(("s", "sh", "ch", "x")) else f"{verb}s")
    if verb.endswith("y") and verb[-2] not in "aeou":
        yield from (f"{verb[:-1]}ies", f"{verb[:-1]}ied")


def _pairs(text: str, *, verbs: bool) -> Iterator[tuple[str, str, int]]:
    for pair in text.split():
        for side, words in enumerate(pair.split("/")):
            for word in words.split(","):
                for form in _forms(word) if verbs else (word, f"{word}s"):
                    yield form, pair, side


def _table() -> dict[str, tuple[tuple[str, int], ...]]:
    table: dict[str, set[tuple[str, int]]] = {}
    for text, verbs in ((VERBS, True), (OTHERS, False)):
        for word, pair, side in _pairs(text, verbs=verbs):
            table.setdefault(word, set()).add((pair, side))
    del table["left"]  # a side, and the past of leaving
    return {word: tuple(sides) for word, sides in table.items()}


SIDES: Final = _table()
"""A word's sides in the pairs that it belongs to."""
