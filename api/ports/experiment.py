"""Values and protocols of A/B experiments: variants of settings, each for a share of the requests.

At most one experiment runs at a time. It is stored in Redis, and every worker follows it. Requests outside the shares
of all variants are answered as without an experiment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from api.ports.answer_quality import PolicyName

Unit = Literal["client", "question"]
"""What is assigned to a variant: a client of a tenant (without a client ID, the tenant's question), or a question."""
ExperimentState = Literal["running", "stopped", "ended"]
GROUPS: Final = 64
"""Groups of units within a variant. Requests of one unit resemble each other, so what varies between groups counts."""
WHOLE: Final = 10_000
"""All units. A share is a number of these: 0.01 percent is the smallest."""


OUTSIDE: Final = -1
"""The index of units that have no variant."""


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """A variant as it was defined. `share`: of the `WHOLE`. `settings`: validated, by name."""

    name: str
    share: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the units, up to `end` of the `WHOLE`, and the index of its variant; `OUTSIDE` for none."""

    end: int
    variant: int


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment as all workers know it. The first variant is the control. Times are of Redis's clock.

    `segments`: which part of the units has which variant. `stopped_ms`: when somebody stopped it, else 0.
    """

    name: str
    variants: tuple[VariantSpec, ...]
    segments: tuple[Segment, ...]
    unit: Unit = "client"
    share_answers: bool = False
    started_ms: int = 0
    ends_ms: int = 0
    stopped_ms: int = 0
    by: str = ""

    def state(self, now_ms: int) -> ExperimentState:
        """Returns whether it runs at a time."""
        if self.stopped_ms:
            return "stopped"
        return "running" if now_ms < self.ends_ms else "ended"

    def is_like(self, other: Experiment) -> bool:
        """Returns whether both differ in shares and end only."""
        mine, theirs = ([(one.name, one.settings) for one in this.variants] for this in (self, other))
        return (self.unit, self.share_answers, mine) == (other.unit, other.share_answers, theirs)


@dataclass(frozen=True, slots=True)
class Variant:
    """The effective settings of one request in an experiment. What is None is as without the experiment.

    `label`: `<experiment>/<variant>`. `group`: of its unit, below `GROUPS`. `namespace`: a part of the cache key that
    keeps its answers apart; empty if variants share answers. `prompt`: the text of a prompt template, and
    `prompt_scope` its part of the cache key.
    """

    experiment: str
    name: str
    label: str
    group: int = 0
    namespace: str = ""
    caches: bool = True
    policy: PolicyName | None = None
    threshold: float | None = None
    model: str | None = None
    top_k: int | None = None
    prompt: str | None = None
    prompt_scope: str = ""

    @property
    def deviates(self) -> bool:
        """Whether it decides by other rules which cached answers it serves."""
        return self.policy is not None or self.threshold is not None


@dataclass(frozen=True, slots=True)
class FollowedExperiment:
    """What is stored. `epoch`: grows with each change; 0 if nothing is stored. `now_ms`: Redis's clock."""

    epoch: int
    now_ms: int = 0
    experiment: Experiment | None = None


class ExperimentStore(Protocol):
    """The fleet's experiments in Redis. Every method raises `StoreUnavailable`."""

    async def follow(self, known: int) -> FollowedExperiment | None:
        """Returns the running experiment; None if the reader knows this epoch."""

    async def start(self, experiment: Experiment, lasts_ms: int, after: int) -> str | None:
        """Starts an experiment, or changes its shares if it is running. `after`: the epoch that the caller knows.

        Returns None, the name of another one that is running, or "" if another epoch is stored.
        """

    async def stop(self, name: str, by: str) -> bool:
        """Stops a running experiment. Returns False if it is not running."""

    async def find(self, name: str) -> Experiment | None:
        """Returns an experiment, running or not."""

    async def all(self) -> Sequence[Experiment]:
        """Returns those that are kept, newest first."""

    async def figures(self, name: str) -> Mapping[str, int]:
        """Returns what was counted for an experiment. The names begin with a variant's."""

    async def now_ms(self) -> int:
        """Returns Redis's clock."""
