"""Buckets with a fault-injecting proxy in front of them; the environment points to the proxy."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from bucket_servers import GoogleServer, google_environment
from faulty_bucket import FaultyBucket

BUCKET = "petavoxel-test"


@dataclass(frozen=True)
class FaultyPlace:
    """An empty prefix of a bucket, and the proxy that every request to it goes through."""

    url: str
    proxy: FaultyBucket


@pytest.fixture(scope="session")
def google_server() -> Iterator[str]:
    """Address of an emulator that only tests behind proxies use."""
    with GoogleServer() as server:
        server.make_bucket(BUCKET)
        yield server.url


@pytest.fixture
def faulty_google(google_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyPlace]:
    with FaultyBucket(google_server) as proxy:
        for name, value in google_environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        yield FaultyPlace(f"gs://{BUCKET}/{uuid.uuid4().hex}", proxy)


@pytest.fixture
def faulty_amazon(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyPlace]:
    with FaultyBucket(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield FaultyPlace(f"s3://{BUCKET}/{uuid.uuid4().hex}", proxy)


@pytest.fixture(params=["google", "amazon"])
def faulty(request: pytest.FixtureRequest) -> FaultyPlace:
    place = request.getfixturevalue(f"faulty_{request.param}")
    assert isinstance(place, FaultyPlace)
    return place
