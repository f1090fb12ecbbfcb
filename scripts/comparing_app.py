"""The service with other limits on comparing answers, for bench_miss. BENCH_COMPARING says which."""

from __future__ import annotations

import os

from api.asgi import app
from api.query import labels

__all__ = ["app"]

LIMITS = {
    "off": (0.0, 0.0, 0.0),
    "bounded": (labels.PER_MISS, labels.PER_SECOND, 0.1),
    "every": (1e6, 0.0, 1e6),
}
"""`PER_MISS`, `PER_SECOND` and `MOST_EARNED`. Without savings a worker is as after a long time."""

labels.PER_MISS, labels.PER_SECOND, labels.MOST_EARNED = LIMITS[os.environ["BENCH_COMPARING"]]  # type: ignore[misc]
if os.environ["BENCH_COMPARING"] == "every":
    labels.LABELED = 46  # type: ignore[misc]
