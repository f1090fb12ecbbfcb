"""The one figure that the master itself counts for Prometheus: workers replaced, by reason."""

from __future__ import annotations

from typing import Any

from api.observability.metric_names import WORKERS_REPLACED as SPEC
from worker_config.succession import Reason


class ReplacementCount:
    """Made once PROMETHEUS_MULTIPROC_DIR is set. Shows every reason at zero from the start."""

    def __init__(self) -> None:
        # Not before the variable is set, which prometheus_client reads when it is imported.
        from prometheus_client import CollectorRegistry, Counter

        counter = Counter(SPEC.name, SPEC.help, SPEC.labels, registry=CollectorRegistry())
        self._series: dict[Reason, Any] = {reason: counter.labels(reason.value) for reason in Reason}

    def add(self, reason: Reason) -> None:
        """A successor has taken over."""
        self._series[reason].inc()
