"""The service without any metric. Used by bench_metering."""

from __future__ import annotations

from typing import Any

import api.app
from api.settings import load_settings


class NoMetrics:
    """Stands for `Metrics` and whatever it returns: every call does nothing."""

    def __init__(self, *_: Any) -> None:
        """Takes what `Metrics` takes."""

    def __getattr__(self, _: str) -> NoMetrics:
        return self

    def __call__(self, *_: Any, **__: Any) -> NoMetrics:
        """Does nothing."""
        return self


def _unmeasured(app: Any, **_: Any) -> Any:
    """Stands for the middleware that measures requests."""
    return app


vars(api.app).update(Metrics=NoMetrics, HttpMetrics=_unmeasured)
app = api.app.create_app(load_settings())
