"""What is declared of one Prometheus metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MetricType = Literal["counter", "gauge", "histogram"]
AcrossWorkers = Literal["livesum", "livemax", "livemin", "livemostrecent"]


@dataclass(frozen=True, slots=True, eq=False)
class MetricSpec:
    """One metric, itself and no other (a key that hashes at once). `across`: how a gauge of several workers adds up."""

    name: str
    type: MetricType
    help: str
    labels: tuple[str, ...] = ()
    across: AcrossWorkers = "livesum"
    buckets: tuple[float, ...] = ()
