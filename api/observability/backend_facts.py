"""What a worker says of its backends, one by one: to Prometheus each second, to operators on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from api.model import BackendHealth
from api.observability.metrics import Metrics, OllamaGrowth


class _Pools(Protocol):
    def snapshot(self) -> Any: ...

    def by_backend(self) -> Mapping[str, Any]: ...


class _Budget(Protocol):
    retried: int


class BackendFacts:
    """Reads the pools of one worker, and what is known of the health of their backends."""

    def __init__(
        self,
        pools: _Pools,
        budget: _Budget,
        health: Callable[[str], BackendHealth | None],
        metrics: Metrics,
    ) -> None:
        self._pools = pools
        self._budget = budget
        self._health = health
        self._metrics = metrics
        self._counted: dict[tuple[str, str], float] = {}

    def snapshot(self) -> Any:
        """The pools of all backends together."""
        return self._pools.snapshot()

    def report(self) -> dict[str, object]:
        """By backend: its pool in the contract's field names, Ollama's own figures, and what the last probe found."""
        return {name: {**asdict(pool), **self._found(name)} for name, pool in self._pools.by_backend().items()}

    def _found(self, name: str) -> dict[str, object]:
        health = self._health(name)
        return {
            "reachable": None if health is None else health.reachable,
            "models": [] if health is None else sorted(health.models),
            "resident": [] if health is None else sorted(health.resident),
        }

    def measure(self) -> None:
        """Passes on to Prometheus what has grown."""
        self._metrics.retried(int(self._since("", "retries", self._budget.retried)))
        for name, pool in self._pools.by_backend().items():
            health = self._health(name)
            if health is not None:
                self._metrics.backend_is(name, up=health.reachable)
            self._metrics.ollama_worked(name, self._growth(name, pool.ollama))

    def _growth(self, name: str, now: Any) -> OllamaGrowth:
        def grown(field: str) -> Any:
            return self._since(name, field, getattr(now, field))

        return OllamaGrowth(
            generations=grown("generations"),
            seconds={phase: grown(f"{phase}_seconds") for phase in ("load", "prompt", "generation")},
            tokens={direction: grown(f"{direction}_tokens") for direction in ("prompt", "completion")},
            tokens_per_second=now.tokens_per_second,
        )

    def _since(self, name: str, field: str, total: float) -> float:
        """How much a total has grown since the last measurement."""
        grown = total - self._counted.get((name, field), 0)
        self._counted[name, field] = total
        return max(0, grown)
