"""A/B experiments: gives each query the settings of a variant, follows the fleet's experiment, starts and stops it.

The variant of a unit (a client or a question of a tenant) depends on nothing but a hash of the unit and the shares, so
every worker of every replica assigns it alike. A change of shares moves as few units as possible.

Settings that change what an answer is (model, prompt, `top_k`) are part of the cache key in any case. Threshold and
policy only decide whether a stored answer is served. Even so, variants share no answers by default: what one variant
stores would change the hit rate of the other, and the two could not be compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import structlog

from api.errors import ExperimentConflict, NotFound, SettingsError, StoreUnavailable
from api.ports.answer_quality import PolicyName, QualityState
from api.ports.experiment import (
    GROUPS,
    OUTSIDE,
    WHOLE,
    Experiment,
    ExperimentStore,
    Segment,
    Variant,
    VariantSpec,
)
from api.ports.question import RAW, Query
from api.query.cache_key import question_digest
from api.query.prompt import parse_template

POLL_SECONDS: Final = 1.0
TRIES: Final = 5
"""Attempts to start an experiment while others start or stop one."""
DEFAULT_TOP_K: Final = 4
"""`top_k` of a request that does not set it."""
CHANGES_ANSWERS: Final = ("LLM_MODEL", "PROMPT_TEMPLATE", "TOP_K")
"""Settings that an answer depends on."""
CHANGES_CACHE: Final = ("SEMANTIC_CACHE_ENABLED", "SEMANTIC_CACHE_POLICY", "SEMANTIC_CACHE_SIMILARITY_THRESHOLD")
"""Settings that decide which cached answers are served."""


# -- assignment --------------------------------------------------------------------------------------------------------


def laid_out(before: Sequence[Segment], shares: Sequence[int]) -> tuple[Segment, ...]:
    """Returns segments in which each variant has its share. Moves no more units out of `before` than shares shrink."""
    wanted = [*shares, WHOLE - sum(shares)]  # the last one, OUTSIDE, is what is left
    kept: list[tuple[int, int, int]] = []
    free: list[tuple[int, int]] = []
    for start, end, variant in _pieces(before or [Segment(WHOLE, OUTSIDE)]):
        own = min(end - start, wanted[variant]) if before else 0
        wanted[variant] -= own
        kept.append((start, start + own, variant))
        free.append((start + own, end))
    for start, end in free:
        for variant in (*range(len(shares)), OUTSIDE):
            taken = min(end - start, wanted[variant])
            wanted[variant] -= taken
            kept.append((start, start + taken, variant))
            start += taken
    return _joined(sorted(piece for piece in kept if piece[0] < piece[1]))


def _pieces(segments: Sequence[Segment]) -> list[tuple[int, int, int]]:
    starts = [0, *(segment.end for segment in segments[:-1])]
    return [(start, segment.end, segment.variant) for start, segment in zip(starts, segments, strict=True)]


def _joined(pieces: Sequence[tuple[int, int, int]]) -> tuple[Segment, ...]:
    joined: list[Segment] = []
    for _, end, variant in pieces:
        if joined and joined[-1].variant == variant:
            joined.pop()
        joined.append(Segment(end, variant))
    return tuple(joined)


def unit_of(query: Query, unit: str) -> str:
    """Returns what is assigned to a variant. A client without an ID is assigned question by question."""
    if unit == "client" and query.client:
        return f"{query.tenant}\0client\0{query.client}"
    return f"{query.tenant}\0question\0{question_digest(query.question)}"


def place_of(experiment: str, unit: str) -> tuple[int, int]:
    """Returns the place of a unit in the `WHOLE`, and its group. Other experiments place it independently."""
    hashed = hashlib.blake2b(f"{experiment}\0{unit}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(hashed[:4]) * WHOLE >> 32, int.from_bytes(hashed[4:]) % GROUPS


def effective(experiment: Experiment, spec: VariantSpec) -> Variant:
    """Returns the settings of a variant as requests use them. Raises `SettingsError` for those of another release."""
    given = spec.settings
    if unknown := given.keys() - {*CHANGES_ANSWERS, *CHANGES_CACHE}:
        raise SettingsError(f"{min(unknown)}: this release cannot vary it")
    prompt, policy = given.get("PROMPT_TEMPLATE"), given.get("SEMANTIC_CACHE_POLICY")
    try:
        return Variant(
            experiment=experiment.name,
            name=spec.name,
            label=f"{experiment.name}/{spec.name}",
            namespace="" if experiment.share_answers else f"{experiment.name}/{spec.name}/{experiment.started_ms}",
            caches=given.get("SEMANTIC_CACHE_ENABLED", True),
            policy=PolicyName(policy) if policy is not None else None,
            threshold=given.get("SEMANTIC_CACHE_SIMILARITY_THRESHOLD"),
            model=given.get("LLM_MODEL"),
            top_k=given.get("TOP_K"),
            prompt=prompt,
            prompt_scope=parse_template(prompt).scope if prompt is not None else "",
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error


class RunningExperiment:
    """Assigns queries to variants. `ends_at`: by this worker's monotonic clock."""

    def __init__(self, experiment: Experiment, default_model: str, ends_at: float) -> None:
        self.experiment = experiment
        self.ends_at = ends_at
        self._default_model = default_model
        self._ends = [segment.end for segment in experiment.segments]
        made = [effective(experiment, spec) for spec in experiment.variants]
        self._variants = [[replace(one, group=group) for group in range(GROUPS)] for one in made]

    def assigned(self, query: Query) -> Query:
        """Returns the query with the settings of its variant; unchanged if it is outside of all shares.

        A request that asks for another model or another `top_k` than the default keeps it, and so does a client of an
        imitated API, which names its model and words its prompt itself.
        """
        place, group = place_of(self.experiment.name, unit_of(query, self.experiment.unit))
        index = self.experiment.segments[bisect_right(self._ends, place)].variant
        if index == OUTSIDE:
            return query
        variant = self._variants[index][group]
        model, top_k = query.model, query.top_k
        if query.template != RAW:
            model = variant.model if variant.model is not None and model == self._default_model else model
            top_k = variant.top_k if variant.top_k is not None and top_k == DEFAULT_TOP_K else top_k
        return replace(query, variant=variant, model=model, top_k=top_k)


# -- following ---------------------------------------------------------------------------------------------------------


class ExperimentView:
    """The experiment that this worker knows to be running, if any. No I/O."""

    def __init__(self) -> None:
        self.running: RunningExperiment | None = None


class ExperimentFollower:
    """Keeps a worker's view up to date. Without Redis the last known experiment runs on until its end.

    `changed` is set by messages. The worker also looks each second, in case a message is lost.
    """

    def __init__(
        self, view: ExperimentView, store: ExperimentStore, default_model: str, changed: asyncio.Event
    ) -> None:
        self._view = view
        self._store = store
        self._default_model = default_model
        self._changed = changed
        self._epoch = 0
        self._log = structlog.get_logger("ragherd.experiments")

    async def keep_following(self) -> None:
        """Follows forever. Runs as a task of the worker."""
        while True:
            self._changed.clear()
            with suppress(StoreUnavailable):  # the client reports it
                await self.follow()
            running = self._view.running
            left = POLL_SECONDS if running is None else min(POLL_SECONDS, max(0.0, running.ends_at - time.monotonic()))
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()
            self._end_if_over()

    async def follow(self) -> None:
        """Adopts what is stored. Raises `StoreUnavailable`."""
        stored = await self._store.follow(self._epoch)
        if stored is None:
            return
        self._epoch = stored.epoch
        before, found = self._view.running, stored.experiment
        running = None
        if found is not None and found.state(stored.now_ms) == "running":
            running = self._runnable(found, time.monotonic() + (found.ends_ms - stored.now_ms) / 1000)
        self._view.running = running
        self._note(before, running)

    def _runnable(self, experiment: Experiment, ends_at: float) -> RunningExperiment | None:
        """Returns None for an experiment of a later release: this worker answers as without one."""
        try:
            return RunningExperiment(experiment, self._default_model, ends_at)
        except SettingsError as error:
            self._log.warning("experiment_not_understood", experiment=experiment.name, error=str(error))
            return None

    def _end_if_over(self) -> None:
        running = self._view.running
        if running is not None and time.monotonic() >= running.ends_at:
            self._view.running = None
            self._note(running, None)

    def _note(self, before: RunningExperiment | None, now: RunningExperiment | None) -> None:
        names = [one.experiment.name if one is not None else None for one in (before, now)]
        if names[0] != names[1]:
            self._log.info("experiment_changed", before=names[0], now=names[1])


# -- for operators -----------------------------------------------------------------------------------------------------

Validate = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Returns the settings of a variant, validated. Raises `SettingsError`."""
Report = Callable[[Experiment, Mapping[str, int], QualityState, int], dict[str, Any]]
"""Returns an experiment's figures and verdict as JSON, given its counts and the time."""
Summary = Callable[[Experiment, str], dict[str, Any]]
"""Returns what an experiment is as JSON, given its state."""


class ExperimentControl:
    """Starts, stops and shows experiments. Every method raises `StoreUnavailable`. `worker`: this one's ID.

    `validated` checks the settings of a variant.
    """

    def __init__(
        self,
        store: ExperimentStore,
        follower: ExperimentFollower,
        validated: Validate,
        report: Report,
        summary: Summary,
        quality: Callable[[], QualityState],
        worker: str,
    ) -> None:
        self._store = store
        self._follower = follower
        self.validated = validated
        self._report = report
        self._summary = summary
        self._quality = quality
        self._worker = worker

    async def start(self, wanted: Experiment, lasts_ms: int) -> bool:
        """Starts an experiment. Returns False if it was running: then only its shares and its end change.

        Raises `ExperimentConflict` if another one is running, or this one with other settings.
        """
        for _ in range(TRIES):
            known = await self._store.follow(-1)
            assert known is not None, "no epoch is below 0"
            found = known.experiment
            running = found if found is not None and found.state(known.now_ms) == "running" else None
            if running is not None and running.name == wanted.name and not running.is_like(wanted):
                raise ExperimentConflict(
                    f"The experiment {wanted.name} is running with other settings. Stop it, or choose another name."
                )
            before = running.segments if running is not None and running.name == wanted.name else ()
            shares = [one.share for one in wanted.variants]
            begun = replace(wanted, segments=laid_out(before, shares), by=self._worker)
            refused = await self._store.start(begun, lasts_ms, known.epoch)
            if refused:
                raise ExperimentConflict(f"The experiment {refused} is running. Only one can: stop it first.")
            if refused is None:
                await self._follower.follow()
                return not before
        raise ExperimentConflict("Others start and stop experiments at the same time. Try again.")

    async def stop(self, name: str | None) -> dict[str, Any]:
        """Stops an experiment, by default the running one, and returns its report. Raises `NotFound`."""
        if name is None:
            known = await self._store.follow(-1)
            if known is None or known.experiment is None or known.experiment.state(known.now_ms) != "running":
                raise NotFound("No experiment is running.")
            name = known.experiment.name
        await self._store.stop(name, self._worker)
        await self._follower.follow()
        return await self.report(name)

    async def report(self, name: str) -> dict[str, Any]:
        """Returns the figures and the verdict of an experiment. Raises `NotFound`."""
        found = await self._store.find(name)
        if found is None:
            raise NotFound(f"There is no experiment {name}. Experiments are kept for 30 days after their end.")
        figures = await self._store.figures(name)
        return await asyncio.to_thread(self._report, found, figures, self._quality(), await self._store.now_ms())

    async def all(self) -> list[dict[str, Any]]:
        """Returns what the kept experiments are, newest first."""
        now_ms = await self._store.now_ms()
        return [self._summary(one, one.state(now_ms)) for one in await self._store.all()]
