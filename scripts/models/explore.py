"""Explores every interleaving of the workers of a model, breadth first, and checks the invariants after each step.

A step is one Redis command of one worker, a movement of the clock, the death of a worker, or a reply that is lost on
its way. States that are equal are explored once: the same keys in Redis, and workers that have seen the same.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, Literal, Protocol, TypeVar
from unittest.mock import patch

from api.errors import StoreUnavailable
from scripts.models.hand import Choice, Command, Note, registered
from scripts.models.model_redis import Contents, ModelRedis

Ghost = TypeVar("Ghost", bound=Hashable)
Program = Callable[[str], Coroutine[Any, Any, None]]
"""What a worker of this name does."""


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Step:
    """One step. `name`: the operation, `move`, `kill` or `lose`."""

    worker: int
    name: str
    command: Command | None = None

    def __str__(self) -> str:
        return self.name if self.worker < 0 else f"worker {self.worker}: {self.name}"


class Model(Protocol[Ghost]):
    """A protocol to check. The ghost is what an all-knowing observer remembers; it is part of the state."""

    name: str
    programs: Sequence[Program]
    setup: Sequence[Program]
    """Run one after another before anything else."""
    moves: Sequence[int]
    """Milliseconds by which the clock may move."""
    repair: Program | None
    """What must succeed once all others have ended and `repair_after` milliseconds have passed."""
    repair_after: int

    def begin(self, contents: Contents) -> Ghost:
        """Returns the ghost after the setup."""

    def noted(self, ghost: Ghost, worker: str, note: Note, contents: Contents) -> Ghost:
        """Takes in what a worker has learned. Raises `Violation`."""

    def stepped(self, ghost: Ghost, step: Step, before: Contents, after: Contents) -> Ghost:
        """Takes in a step. Raises `Violation`."""

    def is_local(self, command: Command) -> bool:
        """Returns whether a command neither sees nor changes what others see, so that its moment does not matter."""

    def repaired(self, contents: Contents) -> None:
        """Checks the state after `repair`. Raises `Violation`."""


@dataclass(frozen=True)
class Worker:
    """A worker's place: what it has seen so far, and what it waits for."""

    status: Literal["new", "waits", "ended", "dead"] = "new"
    seen: tuple[Any, ...] = ()
    digest: bytes = b""
    waits_for: Command | Choice | None = None


@dataclass(frozen=True)
class State(Generic[Ghost]):
    """A state, with the steps that led to it."""

    contents: Contents
    workers: tuple[Worker, ...]
    ghost: Ghost
    faults: int
    moves: int
    trace: tuple[Step, ...] = ()

    @property
    def key(self) -> Hashable:
        """Equal for states that cannot be told apart."""
        places = tuple((one.status, one.digest) for one in self.workers)
        return self.contents.digest, places, self.ghost, self.faults, self.moves


@dataclass
class Explored:
    """What was explored. `depth`: all states up to this many steps; `complete`: there are no others."""

    model: str
    states: int = 0
    steps: int = 0
    ends: int = 0
    depth: int = 0
    complete: bool = False
    seconds: float = 0.0
    violation: str | None = None
    trace: Sequence[str] = field(default_factory=list)

    def __str__(self) -> str:
        extent = "complete" if self.complete else f"all up to {self.depth} steps"
        counts = f"{self.states} states, {self.steps} steps, {self.ends} ends, {extent}, {self.seconds:.1f} s"
        fault = "" if self.violation is None else "\n  ".join((f"\n  {self.violation}", *self.trace))
        return f"{self.model}: {counts}{fault}"


AFTER_SETUP: Final = 50
"""Milliseconds between the setup and everything else."""
LOST: Final = "lost"
"""Seen in place of a reply that did not arrive."""


class Explorer(Generic[Ghost]):
    """Explores one model. `faults`: deaths and lost replies in one run; `moves`: movements of the clock."""

    def __init__(self, model: Model[Ghost], redis: ModelRedis, faults: int = 1, moves: int = 2) -> None:
        self._model = model
        self._redis = redis
        self._budget = (faults, moves)
        self._resumptions: dict[tuple[int, bytes], tuple[Command | Choice | None, list[Note]]] = {}

    def explore(self, depth: int = 100, seconds: float = 3600) -> Explored:
        """Explores up to `depth` steps, for about `seconds`. The first violation ends it."""
        began, found = time.monotonic(), Explored(self._model.name)
        with _same_tokens():
            frontier: list[State[Ghost]] = [self._first()]
            seen = {frontier[0].key}
            try:
                while frontier and found.depth < depth:
                    after: list[State[Ghost]] = []
                    for state in frontier:
                        if time.monotonic() - began > seconds:
                            raise TimeoutError
                        fresh = self._unseen(state, seen, found)
                        after += fresh
                    frontier = after
                    found.depth += 1
                found.complete = not frontier
            except TimeoutError:
                pass
            except _Violated as violated:
                found.violation, found.trace = str(violated.__cause__), [*map(str, violated.trace)]
        found.states, found.seconds = len(seen), time.monotonic() - began
        return found

    def _unseen(self, state: State[Ghost], seen: set[Hashable], found: Explored) -> list[State[Ghost]]:
        fresh: list[State[Ghost]] = []
        is_end = True
        for step in self._steps(state):
            is_end = is_end and step.name == "move"
            found.steps += 1
            try:
                reached = self._after(state, step)
            except Violation as error:
                raise _Violated((*state.trace, step)) from error
            if reached.key not in seen:
                seen.add(reached.key)
                fresh.append(reached)
        if is_end:
            found.ends += 1
            self._repair(state)
        return fresh

    def _first(self) -> State[Ghost]:
        contents = self._redis.read()
        for program in self._model.setup:
            contents = self._alone(program, contents)
        contents = self._redis.move(contents, AFTER_SETUP)
        workers = (Worker(),) * len(self._model.programs)
        return State(contents, workers, self._model.begin(contents), *self._budget)

    def _steps(self, state: State[Ghost]) -> Iterator[Step]:
        for number, worker in enumerate(state.workers):
            if isinstance(worker.waits_for, Choice):  # nobody else sees a choice: it needs no interleaving
                yield from (Step(number, f"chooses {option}") for option in worker.waits_for.options)
                return
        for number, worker in enumerate(state.workers):
            command = worker.waits_for
            if worker.status == "new":
                yield Step(number, "begins")
            elif isinstance(command, Command):
                yield Step(number, command.name, command)
                if state.faults:
                    yield Step(number, "lose", command)
                    yield Step(number, "kill")
        if state.moves:
            yield from (Step(-1, "move", Command((milliseconds,))) for milliseconds in self._model.moves)

    def _after(self, state: State[Ghost], step: Step) -> State[Ghost]:
        state = replace(state, trace=(*state.trace, step))
        if step.name == "move":
            assert step.command is not None
            contents = self._redis.move(state.contents, step.command.parts[0])
            ghost = self._model.stepped(state.ghost, step, state.contents, contents)
            return replace(state, contents=contents, ghost=ghost, moves=state.moves - 1)
        worker = state.workers[step.worker]
        if step.name == "kill":
            dead = Worker("dead")
            return replace(state, workers=_with(state.workers, step.worker, dead), faults=state.faults - 1)
        if step.name == "begins":
            return self._resume(state, step.worker, worker)
        if isinstance(worker.waits_for, Choice):
            chosen = next(one for one in worker.waits_for.options if step.name == f"chooses {one}")
            return self._resume(state, step.worker, _saw(worker, chosen))
        reply, state = self._run(state, step.worker, step)
        if step.name == "lose":
            return self._resume(replace(state, faults=state.faults - 1), step.worker, _saw(worker, LOST))
        return self._resume(state, step.worker, _saw(worker, reply))

    def _run(self, state: State[Ghost], number: int, step: Step) -> tuple[Any, State[Ghost]]:
        assert step.command is not None
        reply, contents = self._redis.run(state.contents, step.command, len(state.workers[number].seen))
        ghost = self._model.stepped(state.ghost, step, state.contents, contents)
        return reply, replace(state, contents=contents, ghost=ghost)

    def _resume(self, state: State[Ghost], number: int, worker: Worker) -> State[Ghost]:
        """Lets a worker go on to its next command; commands that nobody else sees are run at once."""
        while True:
            waits_for, notes = self._resumed(number, worker)
            ghost = state.ghost
            for note in notes:
                ghost = self._model.noted(ghost, str(number), note, state.contents)
            status: Literal["waits", "ended"] = "ended" if waits_for is None else "waits"
            worker = replace(worker, status=status, waits_for=waits_for)
            state = replace(state, ghost=ghost, workers=_with(state.workers, number, worker))
            if not isinstance(waits_for, Command) or not self._model.is_local(waits_for):
                return state
            reply, state = self._run(state, number, Step(number, waits_for.name, waits_for))
            worker = _saw(worker, reply)

    def _resumed(self, number: int, worker: Worker) -> tuple[Command | Choice | None, list[Note]]:
        """A program that has seen the same goes on in the same way, so it is run again once."""
        key = (number, worker.digest)
        if key not in self._resumptions:
            self._resumptions[key] = _resumed(self._model.programs[number], str(number), worker.seen)
        return self._resumptions[key]

    def _alone(self, program: Program, contents: Contents) -> Contents:
        """Runs a program without interruption."""
        worker = Worker()
        while True:
            waits_for, _ = _resumed(program, "alone", worker.seen)
            if waits_for is None:
                return contents
            assert isinstance(waits_for, Command), "a program that runs alone has nothing to choose"
            reply, contents = self._redis.run(contents, waits_for, len(worker.seen))
            worker = _saw(worker, reply)

    def _repair(self, state: State[Ghost]) -> None:
        if self._model.repair is None:
            return
        contents = self._alone(self._model.repair, self._redis.move(state.contents, self._model.repair_after))
        try:
            self._model.repaired(contents)
        except Violation as error:
            raise _Violated((*state.trace, Step(-1, "all have ended"))) from error


class _Violated(Exception):
    def __init__(self, trace: Sequence[Step]) -> None:
        super().__init__("an invariant does not hold")
        self.trace = trace


def _with(workers: tuple[Worker, ...], number: int, worker: Worker) -> tuple[Worker, ...]:
    return (*workers[:number], worker, *workers[number + 1 :])


def _saw(worker: Worker, reply: Any) -> Worker:
    digest = hashlib.blake2b(worker.digest + repr(reply).encode(), digest_size=16).digest()
    return replace(worker, seen=(*worker.seen, reply), digest=digest)


def _resumed(program: Program, name: str, seen: Sequence[Any]) -> tuple[Command | Choice | None, list[Note]]:
    """Runs a program again from its beginning, with the replies it has seen.

    Returns what it waits for, and what it has noted since the last of them.
    """
    _Tokens.begin(name)
    running = program(name)
    notes: list[Note] = []
    replies = iter(seen)
    answer: Any = None
    try:
        while True:
            is_lost = isinstance(answer, str) and answer == LOST
            if is_lost:
                asked = running.throw(StoreUnavailable("The reply was lost."))
            elif isinstance(answer, Exception):
                asked = running.throw(answer)
            else:
                asked = running.send(answer)
            if isinstance(asked, Note):
                notes.append(asked)
                answer = None
                continue
            try:
                answer = next(replies)
            except StopIteration:
                return asked, notes
            notes = []
    except StopIteration:
        return None, notes
    finally:
        running.close()


class _Tokens:
    """Random names, the same each time that a program is run again."""

    _worker = ""
    _count = 0

    @classmethod
    def begin(cls, worker: str) -> None:
        cls._worker, cls._count = worker, 0

    @classmethod
    def next(cls, size: int = 8) -> str:
        cls._count += 1
        return f"{cls._worker}-{cls._count}"


async def _in_turn(calls: Any) -> list[Any]:
    return [await call for call in calls]


@contextmanager
def _same_tokens() -> Iterator[None]:
    """Takes what cannot be repeated from the stores: random names, tasks of an event loop, and batches."""
    with (
        patch("secrets.token_hex", _Tokens.next),
        patch("api.redis_store.stores.cache.sweep.on_all", _in_turn),
        patch("api.redis_store.scripts.BatchedScript", registered),
    ):
        yield
