"""Learns from the fleet's labels, and follows what was learned.

One worker has the lease: the keeper. It reads new labels, decides (`api.quality.assessment`) in a thread, and writes
the result. A write is refused if the lease or the stored epoch has changed, so a paused keeper cannot undo another's
work.

Every worker follows: it reads a new epoch when a message announces it, and looks each second in case the message was
lost. Both happen in the background, so look-ups cost no round trip. Models of scopes are loaded when a look-up first
needs them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, Final

import orjson
import structlog

from api.errors import StoreUnavailable
from api.ports.answer_quality import LabelStore, PolicyName, PooledLabel, QualityState, QualityStore, Versions
from api.ports.coordination import LeaderLease
from api.ports.experiment import Variant
from api.ports.telemetry import Telemetry
from api.quality.assessment import SCOPES as SCOPES_OF_A_ROUND
from api.quality.assessment import Assessment, ScopeModel, assess
from api.quality.calibration import Model, read_model
from api.quality.estimate import HALF_LIFE_MS
from api.quality.policies import (
    LAST_LEVEL,
    Published,
    QualitySettings,
    Rules,
    published_as_json,
    read_published,
    target_at,
    threshold_at,
)

POLL_SECONDS: Final = 1.0
LEASE_SECONDS: Final = 10.0
LABELS: Final = 20_000
"""Labels that the keeper holds: all that Redis keeps."""
BATCH: Final = 500
"""Labels that are read at once: 5 ms in which the worker answers nobody."""
SHARE: Final = 0.05
"""The share of its time that the keeper may spend on learning."""
RENEW_SECONDS: Final = 60.0
"""The figures are renewed this often even without new labels: old ones fade, and a fleet may loosen."""
SCOPES: Final = 1_000
"""Scopes whose models a worker remembers."""
VARIANTS: Final = 20
"""Variants of experiments whose rules a worker remembers."""
NEVER: Final = 2.0
"""A cosine that nothing reaches: the semantic tier is closed."""

Named = Callable[[], Awaitable[Versions]]
"""Returns the versions of this worker's embedder, verifier and comparator."""


class QualityView:
    """What this worker knows about the fleet's quality. No I/O.

    `by_threshold`: the cosine from which the policy `guarded` serves; None if another policy decides. A look-up reads
    this first, and `of_tenants`: the cosine for tenants that are tightened on their own. `observes`: nothing is served.
    """

    def __init__(self, settings: QualitySettings) -> None:
        self.settings = settings
        self.wanted: OrderedDict[str, None] = OrderedDict()
        """Scopes whose models are to be loaded."""
        self.published = Published()
        self._models: OrderedDict[str, ScopeModel | None] = OrderedDict()
        self._former: OrderedDict[str, ScopeModel | None] = OrderedDict()
        """Models of the epoch before, in use until those of this epoch are loaded."""
        self._before: Model | None = None
        """The prior's model, for as long as nothing is published."""
        self.observes = settings.policy is PolicyName.OBSERVE
        self.by_threshold: float | None = None
        self.of_tenants: Mapping[str, float] = {}
        self._variants: dict[tuple[str, PolicyName | None, float | None], VariantQuality] = {}
        self.adopt(Published())

    @property
    def epoch(self) -> int:
        """The epoch that this worker has."""
        return self.published.state.epoch

    def adopt(self, published: Published) -> None:
        """Adopts what is stored. With other versions or another policy, only the level and its start count."""
        settings = self.settings
        state = published.state
        if state.versions != settings.versions or state.policy is not settings.policy:
            mine = QualityState(
                state.epoch, state.at_ms, settings.policy, settings.versions, history=state.history,
                level=state.level, threshold=threshold_at(settings.threshold, state.level),
                target_error=target_at(settings.target, state.level), tenants=state.tenants,
            )  # fmt: skip
            published = replace(published, state=mine, model=None)
        self._former = self._kept(published)
        self._models = OrderedDict()
        self.published = published
        self._before = self._from_prior(published)
        plain = settings.policy is PolicyName.GUARDED or (
            settings.policy is PolicyName.VERIFIED and (published.model or self._before) is None
        )
        threshold = NEVER if published.state.level >= LAST_LEVEL else published.state.threshold
        self.by_threshold = threshold if plain else None
        self.of_tenants = {name: self._threshold(name) for name in published.state.tenants} if plain else {}

    def _threshold(self, tenant: str) -> float:
        level = self.published.state.level_of(tenant)
        return NEVER if level >= LAST_LEVEL else threshold_at(self.settings.threshold, level)

    def _from_prior(self, published: Published) -> Model | None:
        prior = self.settings.known_before
        if prior is None or published.model is not None or self.settings.policy is not PolicyName.VERIFIED:
            return None
        return prior.model(target_at(self.settings.target, published.state.level))

    def _kept(self, published: Published) -> OrderedDict[str, ScopeModel | None]:
        """Returns the models of scopes that allow no more than what is published now."""
        before, now = self.published.state, published.state
        if published.model is None or before.versions != now.versions or now.target_error < before.target_error:
            return OrderedDict()
        kept = self._former
        for scope, model in self._models.items():
            kept[scope] = model
            kept.move_to_end(scope)
        while len(kept) > SCOPES:
            kept.popitem(last=False)
        return kept

    def rules(self, scope: str, tenant: str = "") -> Rules:
        """Returns what is in force for a scope of a tenant. Its model is loaded soon if it is not known."""
        state = self.published.state
        if scope in self._models:
            self._models.move_to_end(scope)
        elif self.published.model is not None and len(self.wanted) < SCOPES:
            self.wanted[scope] = None
        own = self._models[scope] if scope in self._models else self._former.get(scope)
        scored = bool(self.settings.versions.verifier)
        if tenant in state.tenants:
            return self._stricter(state.level_of(tenant), own, scored=scored)
        model = own.model if own is not None else self.published.model or self._before
        return Rules(self.settings.policy, state.threshold, state.level, model, scored)

    def _stricter(self, level: int, own: ScopeModel | None, *, scored: bool) -> Rules:
        """Returns the rules of a tenant that is tightened. Without a model for its level it decides as `guarded`."""
        settings = self.settings
        fits = own is not None and own.target <= target_at(settings.target, level) * 1.001
        model = own.model if own is not None and fits else None
        return Rules(settings.policy, threshold_at(settings.threshold, level), level, model, scored)

    def note(self, scope: str, text: bytes | None) -> None:
        """Stores the model of a scope as it was loaded; None if it has none."""
        self._models[scope] = self._usable(text)
        if len(self._models) > SCOPES:
            self._models.popitem(last=False)

    def _usable(self, text: bytes | None) -> ScopeModel | None:
        """Returns None for a model of other versions, or one that allows more than the fleet does now."""
        if text is None:
            return None
        with suppress(ValueError, TypeError, KeyError):
            said = orjson.loads(text)
            state = self.published.state
            if Versions(**said["versions"]) == state.versions and said["target_error"] <= state.target_error * 1.001:
                model = read_model(said["model"])
                return ScopeModel(model, said["target_error"]) if model is not None else None
        return None

    def state(self) -> QualityState:
        """Returns what is shown."""
        return self.published.state

    def of(self, variant: Variant) -> QualityView | VariantQuality:
        """Returns the rules of a variant of an experiment: these, unless it has another policy or threshold."""
        if not variant.deviates:
            return self
        key = (variant.label, variant.policy, variant.threshold)
        if key not in self._variants:
            if len(self._variants) >= VARIANTS:
                self._variants.clear()
            self._variants[key] = VariantQuality(self, variant)
        return self._variants[key]


class VariantQuality:
    """The same for a variant with another policy or threshold. It has a separate level, at least the fleet's."""

    def __init__(self, view: QualityView, variant: Variant) -> None:
        self._view = view
        self._label = variant.label
        self._policy = variant.policy or view.settings.policy
        self._threshold = variant.threshold if variant.threshold is not None else view.settings.threshold
        self._from_prior: dict[int, Model | None] = {}
        """The prior's model at each level, for the policy `verified`."""
        self.observes = self._policy is PolicyName.OBSERVE

    @property
    def _own_level(self) -> int:
        own: int = self._view.published.state.variant_levels.get(self._label, (0,))[0]
        return own

    @property
    def by_threshold(self) -> float | None:
        """As that of `QualityView`."""
        level = max(self._view.published.state.level, self._own_level)
        if self._policy is PolicyName.VERIFIED and (self._view.published.model or self._prior(level)) is not None:
            return None
        if self._policy not in (PolicyName.GUARDED, PolicyName.VERIFIED):
            return None
        return self._threshold_at(level)

    @property
    def of_tenants(self) -> Mapping[str, float]:
        """As that of `QualityView`."""
        state, own = self._view.published.state, self._own_level
        if not state.tenants or self.by_threshold is None:
            return {}
        return {name: self._threshold_at(max(state.level_of(name), own)) for name in state.tenants}

    def _threshold_at(self, level: int) -> float:
        return NEVER if level >= LAST_LEVEL else threshold_at(self._threshold, level)

    def rules(self, scope: str, tenant: str = "") -> Rules:
        """Returns what is in force for a scope of a tenant."""
        usual = self._view.rules(scope, tenant)
        level = max(usual.level, self._own_level)
        model = usual.model
        if self._policy is PolicyName.VERIFIED:
            model = model or self._prior(level)
            if model is not None and level > usual.level:
                model = replace(model, level=target_at(model.level, level - usual.level))
        return replace(
            usual, policy=self._policy, threshold=threshold_at(self._threshold, level), level=level, model=model
        )

    def _prior(self, level: int) -> Model | None:
        settings = self._view.settings
        if level not in self._from_prior:
            known = settings.known_before if self._policy is PolicyName.VERIFIED else None
            self._from_prior[level] = known.model(target_at(settings.target, level)) if known is not None else None
        return self._from_prior[level]


class QualityKeeper:
    """Follows for this worker, and learns for the fleet while it has the lease. `changed` is set by messages."""

    def __init__(
        self,
        view: QualityView,
        store: QualityStore,
        labels: LabelStore,
        lease: LeaderLease,
        telemetry: Telemetry,
        versions: Named,
        changed: asyncio.Event | None = None,
    ) -> None:
        self._view = view
        self._store = store
        self._store_of_labels = labels
        self._lease = lease
        self._telemetry = telemetry
        self._versions = versions
        self._changed = changed or asyncio.Event()
        self._memory = _Memory()
        self._log = structlog.get_logger("ragherd.quality")
        self.rest = self._try_next = 0.0
        """Monotonic time of the next round."""

    async def keep_following(self) -> None:
        """Follows and learns forever. Runs as a task of the worker."""
        learns = 0.0
        while True:
            self._changed.clear()
            try:
                await self.follow()
                if time.monotonic() >= learns:
                    learns = time.monotonic() + POLL_SECONDS
                    await self.learn_if_due()
            except StoreUnavailable:
                pass  # the client reports it
            except Exception:  # noqa: BLE001 - a bug in learning must not stop the worker from following
                self._log.exception("quality_failed")
                self.rest = time.monotonic() + RENEW_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._changed.wait()

    async def follow(self) -> None:
        """Adopts what is stored, and loads the models that look-ups wanted. Raises `StoreUnavailable`."""
        view = self._view
        view.settings = replace(view.settings, versions=await self._versions())
        is_mine = view.published.state.versions == view.settings.versions  # else other parts of it count now
        stored = await self._store.read(view.epoch if is_mine else 0)
        if stored.epoch != view.epoch or not is_mine:
            self._adopt(stored.epoch, stored.text)
        wanted = list(view.wanted)
        view.wanted.clear()
        if wanted:
            for scope, text in zip(wanted, await self._store.of_scopes(wanted), strict=True):
                view.note(scope, text)

    def _adopt(self, epoch: int, text: bytes | None) -> None:
        published = Published()
        if text is not None:
            with suppress(ValueError, TypeError, KeyError):  # of another release: as if nothing were known
                published = read_published(text)
        self._view.adopt(replace(published, state=replace(published.state, epoch=epoch)))

    async def learn_if_due(self) -> None:
        """Learns if this worker has the lease and there is something to learn. Raises `StoreUnavailable`."""
        if time.monotonic() < self._try_next:
            return
        if not await self._lease.acquire(LEASE_SECONDS):
            self._memory = _Memory()
            self._try_next = time.monotonic() + LEASE_SECONDS / 3 * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
            return
        fresh = await self._read_labels()
        if time.monotonic() < self.rest or not (fresh or self._memory.is_due):
            return
        began, written = time.monotonic(), None
        try:
            written = await self.learn()
        finally:
            if written is not False:  # it rests after a failed write too, as while Redis is full
                self.rest = time.monotonic() + (time.monotonic() - began) / SHARE

    async def _read_labels(self) -> bool:
        """Reads new labels, and which were deleted since. Returns whether there were some since the last round."""
        memory = self._memory
        while True:
            found, memory.after = await self._store_of_labels.pooled(memory.after, BATCH)
            memory.add(found)
            if len(found) < BATCH:
                break
        retracted, memory.retracted_after = await self._store_of_labels.retracted(memory.retracted_after)
        memory.remove(retracted)
        return bool(memory.changed)

    async def learn(self) -> bool:
        """Runs one round and writes its result. Returns whether it was written. Raises `StoreUnavailable`."""
        memory, view = self._memory, self._view
        if memory.epoch is None:
            memory.epoch = view.epoch
            memory.before = view.published
        now_ms = await self._store.now_ms()
        before = _with_served(memory.before, await self._store.served(), now_ms)
        changed = Counter(dict(memory.changed.most_common(SCOPES_OF_A_ROUND)))
        found = await self._holding(
            asyncio.to_thread(assess, list(memory.labels), changed, before, view.settings, now_ms, before.served)
        )
        epoch = await self._store.publish(memory.epoch, published_as_json(found.published), _scopes_as_json(found))
        if epoch is None:  # another keeper has written, or all keys were lost: begin again
            self._memory = _Memory()
            return False
        memory.done(changed, epoch, found)
        for event in found.events:
            self._telemetry.quality_event(event)
        await self.follow()
        return True

    async def _holding(self, learning: Coroutine[Any, Any, Assessment]) -> Assessment:
        """Renews the lease meanwhile. Else on slow processors each round would outlast it, and none be written."""
        task = asyncio.create_task(learning)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=LEASE_SECONDS / 3)
                await self._lease.acquire(LEASE_SECONDS)
            return task.result()
        finally:
            task.cancel()
            del task  # it holds its error, which refers to this frame


class _Memory:
    """What the keeper holds between two rounds: the labels, and what it wrote last."""

    def __init__(self) -> None:
        self.labels: deque[PooledLabel] = deque(maxlen=LABELS)
        self.changed: Counter[str] = Counter()
        self.after = self.retracted_after = ""
        self.epoch: int | None = None
        self.before = Published()
        self._due = time.monotonic() + RENEW_SECONDS

    @property
    def is_due(self) -> bool:
        """Whether the figures are old."""
        return bool(self.labels) and time.monotonic() >= self._due

    def add(self, found: Sequence[PooledLabel]) -> None:
        """Takes new labels."""
        for one in found:
            self.labels.append(one)
            self.changed[one.scope] += 1

    def remove(self, retracted: Sequence[str]) -> None:
        """Forgets labels that were deleted, such as that of a vote that another one has replaced."""
        if gone := set(retracted):
            self.changed += Counter(one.scope for one in self.labels if one.id in gone)
            self.labels = deque((one for one in self.labels if one.id not in gone), LABELS)

    def done(self, changed: Counter[str], epoch: int, found: Assessment) -> None:
        """Ends a round. All scopes are changed whose level has changed, and else those that this round left out."""
        self.changed -= changed
        moved = {event.tenant for event in found.events if event.change in ("tightened", "loosened")}
        if moved:
            self.changed += Counter(one.scope for one in self.labels if "" in moved or one.tenant in moved)
        self.epoch = epoch
        self.before = found.published
        self._due = time.monotonic() + RENEW_SECONDS


def _with_served(before: Published, totals: Mapping[str, int], now_ms: int) -> Published:
    """Adds what was served since the last round. Earlier answers fade as labels do."""
    fade = 0.5 ** (max(0, now_ms - before.state.at_ms) / HALF_LIFE_MS) if before.state.at_ms else 0.0
    served = {}
    for tier, total in totals.items():
        former = before.totals.get(tier, 0)
        added = total - former if total >= former else total  # the counters were lost
        served[tier] = before.served.get(tier, 0.0) * fade + added
    return replace(before, served=served, totals=dict(totals))


def _scopes_as_json(found: Assessment) -> dict[str, bytes]:
    versions = asdict(found.published.state.versions)
    return {
        scope: orjson.dumps({"versions": versions, "target_error": one.target, "model": one.model.as_json()})
        for scope, one in found.scopes.items()
    }
