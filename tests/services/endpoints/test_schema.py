"""Requests that schemathesis makes of the application's own OpenAPI page, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from local_endpoints import local_api
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from models.catalog import Model
from services.endpoints.config import ServeConfig

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="session")
def described(model: Model, volumes: Path, outputs: Path) -> Any:
    config = ServeConfig(
        models=(str(model.folder),), volumes=(str(volumes),), outputs=(str(outputs),), max_bytes=4_000_000
    )
    return schemathesis.openapi.from_asgi("/openapi.json", local_api(config))


def _exercise(described: Any, examples: int) -> int:
    """Requests of every operation, right and wrong ones, each reply checked against the page; returns their number."""
    sent = 0
    for found in described.get_all_operations():
        operation = found.ok()

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            nonlocal sent
            sent += 1
            case.call_and_validate(checks=CHECKS)

        ask()
    return sent


def test_replies_are_what_the_page_says(described: Any) -> None:
    assert _exercise(described, 6) > 60


@pytest.mark.slow
def test_many_replies_are_what_the_page_says(described: Any) -> None:
    assert _exercise(described, 150) > 1000
