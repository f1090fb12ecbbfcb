"""Alternatives: of each set a question names one, and another question another (full-time / part-time).

A line is a set, its members apart by ` / `. Words of one member are not claimed to mean the same; phrases have hyphens;
each also has its regular plural.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

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
