"""The steps of a rehearsal, in their order."""

from __future__ import annotations

from typing import Final

from ragherd.rehearsal import disruption_steps as disruptions
from ragherd.rehearsal import service_steps as service
from ragherd.rehearsal.steps import Step

STEPS: Final = (
    Step("apply", "every object is admitted at the namespace's Pod Security level", service.apply, vital=True),
    Step("ready", "every pod is ready within the time of its startup probe", service.become_ready, vital=True),
    Step("rights", "every pod is restricted, and a privileged one is refused", service.admitted),
    Step("paraphrase", "a question on one replica, its paraphrase on another: a hit", service.paraphrase),
    Step("breaker", "opened on one replica, open on all within 100 ms", service.breaker, tidy=service.close_breaker),
    Step("metrics", "a forwarded port shows the figures of a replica", service.metrics),
    Step("keys", "redis-cli shows documented keys only", service.redis_keys, disruptions.no_redis),
    Step("policies", "what must not connect cannot", service.policies),
    Step("restart", "every pod is replaced under load: 0 failed", disruptions.restart),
    Step("kill", "a killed pod is replaced; requests that it worked on may fail", disruptions.kill),
    Step(
        "drain",
        "a node is drained under load: its pods find another, 0 failed",
        disruptions.drain,
        disruptions.cannot_drain,
        disruptions.uncordon,
    ),
    Step(
        "autoscale",
        "the autoscaler adds and removes pods under load: 0 failed",
        disruptions.autoscale,
        disruptions.cannot_autoscale,
        disruptions.restore_autoscaler,
    ),
    Step(
        "primary",
        "Redis's primary is killed: the Sentinels choose another, 0 failed",
        disruptions.lose_primary,
        disruptions.no_sentinels,
    ),
    Step("redis", "all of Redis is killed at once: 0 failed", disruptions.lose_redis, disruptions.no_redis),
    Step("rotate", "an API key is replaced under load: 0 failed, the old one is refused", disruptions.rotate_keys),
    Step(
        "upgrade",
        "the second image is rolled out and back under load: 0 failed",
        disruptions.upgrade,
        disruptions.no_second_image,
        disruptions.undo_image,
    ),
    Step(
        "bad image",
        "an image that cannot start stops the rollout: 0 failed, every old pod stays",
        disruptions.bad_image,
        tidy=disruptions.undo_image,
    ),
)
DELETE: Final = Step("delete", "nothing is left", disruptions.delete, always=True)
REQUIRED: Final = frozenset({"apply", "ready"})


def chosen(names: frozenset[str]) -> tuple[Step, ...]:
    """Returns the steps with these names and those that every rehearsal needs. All, if there are no names."""
    return tuple(step for step in STEPS if not names or step.name in names | REQUIRED)
