"""Renders every overlay, the base and the chart."""

from __future__ import annotations

import pytest

from tests.k8s.chart import chart
from tests.k8s.rendered import OVERLAYS, Rendered, rendered


@pytest.fixture(params=["base", *OVERLAYS, "chart"], ids=lambda folder: folder.rpartition("/")[2])
def manifests(request: pytest.FixtureRequest) -> Rendered:
    """Runs the test for each overlay, the base and the chart."""
    return chart() if request.param == "chart" else rendered(request.param)
