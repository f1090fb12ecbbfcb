"""Checks whether a history of concurrent operations could have happened one at a time (Wing and Gong, with memo).

J. M. Wing, C. Gong: Testing and Verifying Concurrent Objects, 1993. G. Lowe: Testing for Linearizability, 2017: states
that were reached with the same operations are not searched again. Each key is checked by itself, which is enough:
M. Herlihy, J. M. Wing: Linearizability, 1990.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Final

State = Hashable
NEVER: Final = math.inf
OBSERVERS: Final = ("read", "find")
"""Names of the operations that see a value and change nothing."""


@dataclass(frozen=True)
class Operation:
    """One operation as its client saw it. Times are of one clock (s).

    `end` is `NEVER` if the client got no reply: the operation may take effect at any later time, or not at all.
    """

    key: str
    name: str
    value: Hashable
    begin: float
    end: float


Specification = Callable[[State, Operation], Sequence[State]]
"""The states that an operation may lead to from a state; none if it is impossible there."""


def register(state: State, operation: Operation) -> Sequence[State]:
    """A value that is written and read. It begins as None."""
    if operation.name == "write":
        return (operation.value,)
    return (state,) if state == operation.value else ()


def cache(state: State, operation: Operation) -> Sequence[State]:
    """An answer that is stored, found and deleted. It may also be missing at any time, which says nothing."""
    if operation.name == "find":
        return (state,) if state == operation.value else ()
    return (operation.value if operation.name == "store" else None,)


def faults(history: Iterable[Operation], specification: Specification) -> list[str]:
    """Returns the keys whose operations have no order that explains them."""
    by_key: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    return [key for key, found in sorted(by_key.items()) if not is_linearizable(found, specification)]


def is_linearizable(history: Iterable[Operation], specification: Specification, first: State = None) -> bool:
    """Returns whether the operations of one key could have happened one at a time, in an order that respects time."""
    states = {first}
    for operations in _apart(sorted(_ended(history), key=lambda one: one.begin)):
        states = _states_after(operations, specification, states)
    return bool(states)


def _ended(history: Iterable[Operation]) -> list[Operation]:
    """Gives operations without a reply an end where the others tell it.

    One whose value nobody saw may as well not have happened. If no other operation wrote the value, it took effect
    before the value was first seen.
    """
    known = [one for one in history if one.end != NEVER or one.name not in OBSERVERS]
    writers = Counter(one.value for one in known if one.name not in OBSERVERS)
    seen: dict[Hashable, float] = {}
    for one in known:
        if one.name in OBSERVERS:
            seen[one.value] = min(one.end, seen.get(one.value, NEVER))
    return [
        replace(one, end=seen[one.value]) if one.end == NEVER and writers[one.value] == 1 else one
        for one in known
        if one.end != NEVER or one.value in seen
    ]


def _apart(operations: Sequence[Operation]) -> Iterator[list[Operation]]:
    """Parts the operations where all before had ended, so that a long history is not searched as a whole."""
    part: list[Operation] = []
    last_end = -NEVER
    for operation in operations:
        if part and operation.begin > last_end:
            yield part
            part = []
        part.append(operation)
        last_end = max(last_end, operation.end)
    yield part


def _states_after(operations: Sequence[Operation], specification: Specification, first: Set[State]) -> set[State]:
    """Returns the states in which operations can leave a key that was in one of the first states.

    Returns at most one if an operation has no end: nothing comes after such a part.
    """
    is_last = any(one.end == NEVER for one in operations)
    required = sum(1 << number for number, one in enumerate(operations) if one.end != NEVER)
    searched: set[tuple[int, State]] = set()
    stack: list[tuple[int, State]] = [(0, state) for state in first]
    while stack:
        place = stack.pop()
        if place in searched:
            continue
        searched.add(place)
        done, state = place
        if is_last and done & required == required:
            return {state}
        for number in _next(operations, done):
            stack += [(done | 1 << number, after) for after in specification(state, operations[number])]
    return {state for done, state in searched if done & required == required}


def _next(operations: Sequence[Operation], done: int) -> list[int]:
    """Returns the operations that may come next: those that began before any other of the rest had ended."""
    first_end = NEVER
    found: list[int] = []
    for number, operation in enumerate(operations):
        if operation.begin > first_end:
            break
        if not done >> number & 1:
            found.append(number)
            first_end = min(first_end, operation.end)
    return found


def counts(history: Iterable[Operation]) -> Mapping[str, int]:
    """Returns how many operations of each name a history has."""
    found: defaultdict[str, int] = defaultdict(int)
    for operation in history:
        found[operation.name] += 1
    return dict(found)
