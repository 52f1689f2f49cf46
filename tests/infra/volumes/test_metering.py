"""Requests and bytes are counted as a proxy in front of the bucket sees them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from faulty_bucket import Exchange, Fault

from infra.objects import Folder
from infra.volumes import VolumeInfo, create_volume, open_volume
from infra.volumes.metering import KEYS, count, kind_of, metered, snapshot
from models.geometry import Box

SHAPE = (40, 32, 50)
INFO = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint64"), voxel_size_nm=(8.0, 8.0, 8.0), chunk_shape=(16, 16, 16))
WHOLE = Box.from_shape(SHAPE)


def seen(exchanges: Sequence[Exchange]) -> dict[str, int]:
    """What the proxy counted, in the meter's words."""
    found = dict.fromkeys(KEYS, 0)
    for one in exchanges:
        parts = urlsplit(one.path)
        query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        found[kind_of(one.method, parts.path, query)] += 1
        found["bytes_in"] += one.received
        found["bytes_out"] += one.sent
    return found


def work_on(url: str) -> None:
    """Create, write, read, clear and read again, with halo and without."""
    array = np.random.default_rng(0).integers(1, 2**60, SHAPE, dtype=np.uint64)
    volume = create_volume(url, INFO)
    volume.write(WHOLE, array)
    volume.write(Box((0, 0, 0), (16, 16, 16)), np.zeros((16, 16, 16), np.uint64))
    volume.write(Box((17, 1, 2), (20, 5, 3)), array[:3, :4, :1])
    volume.read(WHOLE)
    open_volume(url).read(Box((15, 15, 15), (33, 32, 33)))


def test_zarr(faulty: Any) -> None:
    with metered() as requests:
        work_on(f"{faulty.url}/a.zarr")
    assert requests == seen(faulty.proxy.seen())
    assert requests["put"] == 1 + 3 * 2 * 4 + 1
    assert requests["delete"] == 1
    assert requests["bytes_out"] > 8 * WHOLE.size / 1.2


@pytest.mark.parametrize("place", ["faulty_google", "faulty_amazon"])
def test_precomputed(place: str, request: pytest.FixtureRequest) -> None:
    faulty = request.getfixturevalue(place)
    with metered() as requests:
        work_on(f"precomputed://{faulty.url}/a")
    expected = seen(faulty.proxy.seen())
    assert sum(requests[kind] for kind in KEYS[:6]) == sum(expected[kind] for kind in KEYS[:6])
    assert {key: requests[key] for key in ("bytes_in", "bytes_out")} == {
        key: expected[key] for key in ("bytes_in", "bytes_out")
    }
    assert requests["get"] == expected["get"]
    assert requests["put"] == expected["put"] + expected["delete"]


def test_small_objects(faulty: Any) -> None:
    folder = Folder(faulty.url)
    with metered() as requests:
        folder.write_json("a/b.json", {"n": 1})
        folder.read_json("a/b.json")
        folder.names("a")
        folder.exists("c")
        folder.remove("a")
    assert requests == seen(faulty.proxy.seen())
    assert requests["put"] == 1
    assert requests["list"] >= 1
    assert requests["delete"] >= 1


@pytest.mark.parametrize("kind", ["status", "lost"])
def test_every_attempt_counts(faulty: Any, kind: Any) -> None:
    folder = Folder(faulty.url)
    faulty.proxy.faults = [Fault(kind, count=1)]
    with metered() as requests:
        folder.write("a", b"0123456789")
    assert requests["put"] == 2
    assert {**requests, "bytes_in": 0} == {**seen(faulty.proxy.seen()), "bytes_in": 0}


@pytest.mark.parametrize("url", ["{}/a.zarr", "zarr2://{}/a.zarr", "precomputed://{}/a", "memory://metering/a.zarr"])
def test_local_stores_count_operations(tmp_path: Path, url: str) -> None:
    array = np.random.default_rng(0).integers(1, 2**60, SHAPE, dtype=np.uint64)
    volume = create_volume(url.format(tmp_path), INFO)
    with metered() as written:
        volume.write(WHOLE, array)
    assert written["put"] == 3 * 2 * 4
    assert written["bytes_out"] > 8 * WHOLE.size / 1.2
    with metered() as read:
        volume.read(WHOLE)
    assert read["get"] == 3 * 2 * 4
    assert read["bytes_in"] == written["bytes_out"]


@pytest.mark.parametrize("name", ["a.h5:/x", "a.npy", "a.tif"])
def test_files_count_boxes(tmp_path: Path, name: str) -> None:
    volume = create_volume(f"{tmp_path}/{name}", INFO)
    with metered() as requests:
        volume.write(WHOLE, np.ones(SHAPE, np.uint64))
        volume.read(Box((0, 0, 0), (2, 3, 4)))
    expected = {"put": 1, "get": 1, "bytes_out": 8 * WHOLE.size, "bytes_in": 8 * 24}
    assert requests == {**dict.fromkeys(KEYS, 0), **expected}


def test_local_objects(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with metered() as requests:
        folder.write("a", b"123")
        folder.read("a")
        folder.names()
        folder.exists("b")
    expected = {"put": 1, "get": 2, "list": 1, "bytes_out": 3, "bytes_in": 3}
    assert requests == {**dict.fromkeys(KEYS, 0), **expected}


def test_threads_lose_no_count() -> None:
    before = snapshot()
    with ThreadPoolExecutor(8) as threads:
        for _ in threads.map(lambda _: [count("get", bytes_in=3) for _ in range(500)], range(8)):
            pass
    after = snapshot()
    assert after["get"] - before["get"] == 4000
    assert after["bytes_in"] - before["bytes_in"] == 12000


def test_windows_nest_and_travel() -> None:
    with metered() as outer:
        count("put", bytes_out=2)
        with pytest.raises(RuntimeError), metered() as inner:  # noqa: PT012
            count("list")
            raise RuntimeError
    assert inner["list"] == 1
    assert inner["put"] == 0
    assert (outer["put"], outer["list"], outer["bytes_out"]) == (1, 1, 2)
    assert pickle.loads(pickle.dumps(outer)) == outer == json.loads(json.dumps(outer))  # noqa: S301


@pytest.mark.parametrize(
    ("method", "path", "query", "kind"),
    [
        ("GET", "/download/storage/v1/b/x/o/a%2Fb", {"alt": "media"}, "get"),
        ("GET", "/storage/v1/b/x/o/a%2Fb", {"alt": "media"}, "get"),
        ("GET", "/storage/v1/b/x/o/a%2Fb", {}, "head"),
        ("GET", "/storage/v1/b/x/o", {"prefix": "a/"}, "list"),
        ("GET", "/storage/v1/b/x", {}, "head"),
        ("POST", "/upload/storage/v1/b/x/o", {"uploadType": "multipart"}, "put"),
        ("PUT", "/upload/storage/v1/b/x/o", {"upload_id": "1"}, "put"),
        ("DELETE", "/storage/v1/b/x/o/a", {}, "delete"),
        ("POST", "/batch/storage/v1", {}, "delete"),
        ("GET", "/x/a/b", {}, "get"),
        ("GET", "/x", {"list-type": "2", "prefix": "a"}, "list"),
        ("HEAD", "/x/a", {}, "head"),
        ("PUT", "/x/a", {}, "put"),
        ("POST", "/x", {"delete": ""}, "delete"),
        ("POST", "/x/a", {"uploads": ""}, "put"),
        ("POST", "/x/a", {"uploadId": "1"}, "put"),
    ],
)
def test_kinds(method: str, path: str, query: dict[str, str], kind: str) -> None:
    assert kind_of(method, path, query) == kind
