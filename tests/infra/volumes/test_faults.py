"""Buckets that misbehave for a moment are survived, others end in one clear error, and nothing hangs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bucket_servers import GoogleServer, google_environment
from faulty_bucket import Fault, FaultyBucket
from numpy.typing import NDArray

from infra.objects import Folder
from infra.volumes import Volume, VolumeInfo, create_volume, open_volume
from infra.volumes.metering import snapshot
from models.errors import PetavoxelError, StorageFailed
from models.geometry import Box

SHAPE = (64, 64, 64)
INFO = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint64"), voxel_size_nm=(8.0, 8.0, 8.0), chunk_shape=(32, 32, 32))
WHOLE = Box.from_shape(SHAPE)
UPLOADS, READS = "PUT|POST", "GET"


def voxels(seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(1, 2**60, SHAPE, dtype=np.uint64)


def one_of_each(method: str, path: str = "") -> list[Fault]:
    """Each of the first eight requests that match meets another fault, none meets one twice."""
    return [
        Fault("status", method, path, status=429, count=1),
        Fault("status", method, path, status=429, retry_after=1, count=1),
        Fault("status", method, path, status=500, count=1),
        Fault("status", method, path, status=503, count=1),
        Fault("cut", method, path, count=1),
        Fault("reset", method, path, count=1),
        Fault("lost", method, path, count=1),
        Fault("stall", method, path, count=1),
    ]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are given up after a second of silence, operations after half a minute."""
    monkeypatch.setenv("PETAVOXEL_STORAGE_REQUEST_TIMEOUT_S", "1")
    monkeypatch.setenv("PETAVOXEL_STORAGE_TIMEOUT_S", "30")


@pytest.mark.usefixtures("impatient")
def test_faults_of_a_moment_are_survived(faulty: Any) -> None:
    array = voxels()
    volume = create_volume(f"{faulty.url}/a.zarr", INFO)
    began = time.monotonic()
    for method, work in ((UPLOADS, lambda: volume.write(WHOLE, array)), (READS, lambda: volume.read(WHOLE))):
        faulty.proxy.faults = faults = one_of_each(method)
        found = work()
        assert [fault.hits for fault in faults] == [1] * 8
        if found is not None:
            np.testing.assert_array_equal(found, array)
    assert time.monotonic() - began < 40


STALLS = """
import sys, time
import numpy as np
from infra.volumes import open_volume
volume = open_volume(sys.argv[1])
began = time.monotonic()
array = volume.read(volume.box)
assert (array == np.random.default_rng(0).integers(1, 2**60, array.shape, dtype=np.uint64)).all()
assert time.monotonic() - began < 25
"""


@pytest.mark.usefixtures("impatient")
def test_faults_of_a_moment_are_survived_by_tensorstore(faulty_google: Any) -> None:
    """tensorstore takes its limit for silence once per process, so the read has a process of its own."""
    url, array = f"precomputed://{faulty_google.url}/a", voxels()
    volume = create_volume(url, INFO)
    faulty_google.proxy.faults = faults = one_of_each(UPLOADS)[:-1]
    volume.write(WHOLE, array)
    assert [fault.hits for fault in faults] == [1] * 7
    faulty_google.proxy.faults = faults = one_of_each(READS, r"o/.*8_8_8")
    done = subprocess.run([sys.executable, "-c", STALLS, url], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert [fault.hits for fault in faults] == [1] * 8


@pytest.mark.usefixtures("impatient")
def test_small_objects_survive_faults_of_a_moment(faulty: Any) -> None:
    folder = Folder(f"{faulty.url}/run")
    content = bytes(range(256)) * 40
    faulty.proxy.faults = [Fault("lost", count=1)]
    folder.write("a.bin", content)
    faulty.proxy.faults = [Fault("stall", count=1)]
    assert folder.read("a.bin") == content
    faulty.proxy.faults = [Fault("cut", READS, count=1)]
    assert folder.names() == ["a.bin"]


def test_slow_is_not_silent(faulty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits grow with what there is to move; a link that is below the slowest rate is given up."""
    monkeypatch.setenv("PETAVOXEL_STORAGE_REQUEST_TIMEOUT_S", "1.5")
    monkeypatch.setenv("PETAVOXEL_STORAGE_TIMEOUT_S", "1.5")
    folder = Folder(faulty.url)
    content = bytes(4_000_000)
    faulty.proxy.faults = [Fault("slow", "PUT|POST|GET", seconds=2.5)]
    folder.write("a", content)
    assert folder.read("a") == content
    faulty.proxy.faults = [Fault("slow", "GET", seconds=60)]
    monkeypatch.setenv("PETAVOXEL_STORAGE_REQUEST_TIMEOUT_S", "30")
    monkeypatch.setenv("PETAVOXEL_STORAGE_SLOWEST_BYTES_PER_S", "4e6")
    began = time.monotonic()
    with pytest.raises(StorageFailed, match="a: the store did not answer in time"):
        folder.read("a")
    assert time.monotonic() - began < 8


BUSY, CUT, RESET, STALL = Fault("status", status=503), Fault("cut"), Fault("reset"), Fault("stall")
LATE = Fault("delay", seconds=30)
LASTING = [("", fault) for fault in (BUSY, CUT, RESET, STALL, LATE)]
LASTING += [("precomputed://", fault) for fault in (BUSY, CUT, STALL)]
LONGEST_RETRY_S = 2.0
"""tensorstore waits no longer than this before it tries again, where operations have less than a second."""


def opened_after_all(url: str) -> Volume:
    """The volume, opened under limits that a busy machine may miss a few times."""
    for _ in range(20):
        try:
            return open_volume(url, "r+")
        except StorageFailed:
            pass
    return open_volume(url, "r+")


@pytest.fixture(scope="module", autouse=True)
def settled() -> Iterator[None]:
    """Waits at the end until tensorstore no longer retries what was given up: the meter counts all."""
    yield
    still, found = time.monotonic(), snapshot()
    while time.monotonic() - still < 2 * LONGEST_RETRY_S:
        time.sleep(0.05)
        if (now := snapshot()) != found:
            still, found = time.monotonic(), now


@pytest.mark.parametrize(("prefix", "fault"), LASTING, ids=lambda value: getattr(value, "kind", value))
def test_faults_that_last_are_named_within_the_limit(
    faulty_google: Any, fault: Fault, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{prefix}{faulty_google.url}/a.zarr"
    create_volume(url, INFO).write(WHOLE, voxels())
    monkeypatch.setenv("PETAVOXEL_STORAGE_TIMEOUT_S", "0.7")
    monkeypatch.setenv("PETAVOXEL_STORAGE_SLOWEST_BYTES_PER_S", "1e8")
    volume = opened_after_all(url)
    faulty_google.proxy.faults = [fault]
    for work in (lambda: volume.read(WHOLE), lambda: volume.write(WHOLE, voxels()), lambda: open_volume(volume.url)):
        began = time.monotonic()
        with pytest.raises(StorageFailed, match=r"a\.zarr"):
            work()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["status", "stall"])
def test_faults_that_last_on_amazon(faulty_amazon: Any, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{faulty_amazon.url}/a.zarr"
    create_volume(url, INFO).write(WHOLE, voxels())
    monkeypatch.setenv("PETAVOXEL_STORAGE_TIMEOUT_S", "1")
    volume = opened_after_all(url)
    faulty_amazon.proxy.faults = [Fault(kind)]
    began = time.monotonic()
    with pytest.raises(StorageFailed, match=r"a\.zarr: reading box"):
        volume.read(WHOLE)
    assert time.monotonic() - began < 6


@pytest.mark.slow
def test_a_bad_day(faulty_google: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of all requests meets some fault; what is read is what was written, or an error says otherwise."""
    monkeypatch.setenv("PETAVOXEL_STORAGE_REQUEST_TIMEOUT_S", "0.5")
    kinds: list[Any] = ["status", "cut", "reset", "lost", "stall"]
    volume = create_volume(f"{faulty_google.url}/a.zarr", INFO)
    faulty_google.proxy.faults = [Fault(kind, probability=0.02) for kind in kinds]
    for seed in range(20):
        array = voxels(seed)
        eventually(lambda array=array: volume.write(WHOLE, array))  # type: ignore[misc]
        np.testing.assert_array_equal(eventually(lambda: volume.read(WHOLE)), array)
    assert sum(fault.hits for fault in faulty_google.proxy.faults) > 0


def eventually(work: Callable[[], Any]) -> Any:
    """As the chunk map does: storage failures are tried again."""
    for _ in range(2):
        try:
            return work()
        except StorageFailed:
            pass
    return work()


@pytest.mark.parametrize("prefix", ["", pytest.param("precomputed://", marks=pytest.mark.slow)])
def test_a_bucket_server_that_is_killed_and_comes_back(
    prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = GoogleServer(tmp_path / "kept")
    for name, value in google_environment(server.url).items():
        monkeypatch.setenv(name, value)
    with server:
        server.make_bucket("kept-bucket")
        volume = create_volume(f"{prefix}gs://kept-bucket/a.zarr", INFO)
        volume.write(WHOLE, voxels(1))
        server.kill()
        back = threading.Timer(1.5, server.start)
        back.start()
        began = time.monotonic()
        try:
            np.testing.assert_array_equal(volume.read(WHOLE), voxels(1))
            assert 1 < time.monotonic() - began < 40
        finally:
            back.join()
        server.kill()
        back = threading.Timer(1.5, server.start)
        back.start()
        try:
            volume.write(WHOLE, voxels(2))
        finally:
            back.join()
        np.testing.assert_array_equal(open_volume(volume.url).read(WHOLE), voxels(2))


def test_a_bucket_server_that_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PETAVOXEL_STORAGE_TIMEOUT_S", "1.5")
    server = GoogleServer(tmp_path / "kept")
    for name, value in google_environment(server.url).items():
        monkeypatch.setenv(name, value)
    with server:
        server.make_bucket("kept-bucket")
        volume = create_volume("gs://kept-bucket/a.zarr", INFO)
        volume.write(WHOLE, voxels())
    began = time.monotonic()
    with pytest.raises(PetavoxelError, match="kept-bucket"):
        volume.read(WHOLE)
    assert time.monotonic() - began < 6


def test_a_stale_list_hides_names_and_nothing_else(faulty_google: Any) -> None:
    """Who decides by a list does work again; what is asked for by name is always the latest."""
    folder = Folder(f"{faulty_google.url}/run")
    folder.write("old.json", b"{}")
    assert folder.names() == ["old.json"]
    faulty_google.proxy.faults = [Fault("stale", READS, r"/o\?")]
    folder.write("new.json", b'{"n": 1}')
    folder.write("old.json", b'{"n": 2}')
    assert folder.names() == ["old.json"]
    assert folder.read_json("new.json") == {"n": 1}
    assert folder.read_json("old.json") == {"n": 2}
    assert folder.exists("new.json")


def test_the_proxy_counts_and_forgets(faulty_google: Any) -> None:
    """The tests above lean on the proxy: rules pass requests that do not match, and stop after their count."""
    proxy: FaultyBucket = faulty_google.proxy
    folder = Folder(faulty_google.url)
    proxy.faults = [Fault("status", "DELETE"), Fault("status", "GET", skip=1, count=1)]
    folder.write("a", b"1")
    proxy.forget()
    assert folder.read("a") == b"1"
    assert [one.fault for one in proxy.seen("GET")] == [None]
    assert folder.read("a") == b"1"
    assert [one.fault for one in proxy.seen("GET")] == [None, "status", None]
