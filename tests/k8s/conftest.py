"""Every overlay, and the base, rendered."""

from __future__ import annotations

import pytest

from tests.k8s.rendered import OVERLAYS, Rendered, rendered


@pytest.fixture(params=["base", *OVERLAYS], ids=lambda folder: folder.rpartition("/")[2])
def manifests(request: pytest.FixtureRequest) -> Rendered:
    """Once for each."""
    return rendered(request.param)
