"""The series of one metric, each looked up once."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from api.observability.metric_spec import MetricSpec


class MetricFamily(dict[tuple[str, ...], Any]):
    """The series of one metric by their label values: `labels()` is slow, so each is asked for once."""

    def __init__(self, spec: MetricSpec, registry: CollectorRegistry) -> None:
        super().__init__()
        self._metric = _make(spec, registry)

    def __missing__(self, values: tuple[str, ...]) -> Any:
        series = self[values] = self._metric.labels(*values) if values else self._metric
        return series

    def begin(self, *values: str) -> None:
        """Shows a series at zero before it is first used: a rate needs a zero to rise from."""
        self[values]


def _make(spec: MetricSpec, registry: CollectorRegistry) -> Any:
    if spec.type == "counter":
        return Counter(spec.name, spec.help, spec.labels, registry=registry)
    if spec.type == "gauge":
        return Gauge(spec.name, spec.help, spec.labels, registry=registry, multiprocess_mode=spec.across)
    return Histogram(spec.name, spec.help, spec.labels, registry=registry, buckets=spec.buckets)
