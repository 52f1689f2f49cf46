"""Inputs load one chunk ahead: in order, one at a time; errors and requests stay with the chunk they belong to."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.prefetch import Prefetched
from infra.volumes import VolumeInfo, create_volume, open_volume
from infra.volumes.metering import KEYS, count, metered, set_aside
from models.errors import StorageFailed
from models.geometry import Box, Chunk, ChunkGrid

CHUNKS = tuple(ChunkGrid(Box.from_shape((6, 2, 2)), (1, 2, 2)))


def run(function: Prefetched[Any], chunks: tuple[Chunk, ...] = CHUNKS) -> list[Any]:
    """As a worker does that knows its chunks."""
    reports = []
    for chunk, following in zip(chunks, (*chunks[1:], None), strict=True):
        function.expect(following)
        reports.append(function(chunk))
    return reports


def test_loads_run_beside_the_work() -> None:
    def load(chunk: Chunk) -> str:
        time.sleep(0.1)
        return chunk.name

    def work(chunk: Chunk, inputs: str) -> dict[str, Any]:
        assert inputs == chunk.name
        time.sleep(0.1)
        return {"name": inputs}

    began = time.monotonic()
    assert run(Prefetched(load, work)) == [{"name": chunk.name} for chunk in CHUNKS]
    assert time.monotonic() - began < 0.1 * (len(CHUNKS) + 1) + 0.35  # one after the other: 1.2 s


def test_one_load_runs_ahead_and_only_after_the_present_one() -> None:
    lock = threading.Lock()
    alive: set[str] = set()
    most = 0
    order: list[str] = []

    def load(chunk: Chunk) -> str:
        nonlocal most
        with lock:
            alive.add(chunk.name)
            order.append(chunk.name)
            most = max(most, len(alive))
        time.sleep(0.005)
        return chunk.name

    def work(chunk: Chunk, inputs: str) -> dict[str, Any]:
        time.sleep(0.02)
        with lock:
            alive.discard(inputs)
        return {}

    run(Prefetched(load, work))
    assert order == [chunk.name for chunk in CHUNKS]
    assert most == 2


def test_errors_surface_at_their_chunk_and_a_further_try_loads_again() -> None:
    tries: dict[str, int] = {}

    def load(chunk: Chunk) -> str:
        tries[chunk.name] = tries.get(chunk.name, 0) + 1
        if chunk == CHUNKS[1] and tries[chunk.name] < 3:
            raise StorageFailed(f"{chunk.name}: away")
        return chunk.name

    function = Prefetched(load, lambda chunk, inputs: {"name": inputs})
    function.expect(CHUNKS[1])
    assert function(CHUNKS[0]) == {"name": CHUNKS[0].name}
    function.expect(CHUNKS[2])
    for _ in range(2):
        with pytest.raises(StorageFailed, match=f"{CHUNKS[1].name}: away"):
            function(CHUNKS[1])
    assert function(CHUNKS[1]) == {"name": CHUNKS[1].name}
    function.expect(None)
    assert function(CHUNKS[2]) == {"name": CHUNKS[2].name}
    assert tries == {CHUNKS[0].name: 1, CHUNKS[1].name: 3, CHUNKS[2].name: 1}


def test_what_is_ahead_waits_while_the_present_chunk_is_tried_again() -> None:
    loads: list[str] = []
    failing = [True]

    def load(chunk: Chunk) -> str:
        loads.append(chunk.name)
        return chunk.name

    def work(chunk: Chunk, inputs: str) -> dict[str, Any]:
        if chunk == CHUNKS[0] and failing.pop():
            raise StorageFailed("full")
        return {}

    function = Prefetched(load, work)
    function.expect(CHUNKS[1])
    with pytest.raises(StorageFailed, match="full"):
        function(CHUNKS[0])
    failing.append(False)
    function(CHUNKS[0])
    function.expect(None)
    function(CHUNKS[1])
    assert sorted(loads) == sorted([CHUNKS[0].name, CHUNKS[1].name, CHUNKS[0].name])


@given(st.lists(st.tuples(st.sampled_from(CHUNKS), st.sampled_from([*CHUNKS, None])), max_size=12))
def test_wrong_expectations_change_no_result(calls: list[tuple[Chunk, Chunk | None]]) -> None:
    function = Prefetched(lambda chunk: chunk.name, lambda chunk, inputs: {"of": chunk.name, "got": inputs})
    for chunk, expected in calls:
        function.expect(expected)
        assert function(chunk) == {"of": chunk.name, "got": chunk.name}


def test_requests_count_with_the_chunk_they_belong_to(faulty: Any) -> None:
    info = VolumeInfo(shape=(6, 16, 16), dtype=np.dtype("uint8"), chunk_shape=(1, 16, 16))
    array = np.random.default_rng(0).integers(1, 255, info.shape, dtype=np.uint8)
    create_volume(f"{faulty.url}/a.zarr", info).write(info.box, array)
    volume = open_volume(f"{faulty.url}/a.zarr")
    chunks = tuple(ChunkGrid(info.box, (1, 16, 16)))

    def work(chunk: Chunk, inputs: Any) -> dict[str, Any]:
        np.testing.assert_array_equal(inputs, array[chunk.box.slices()])
        time.sleep(0.05)
        return {}

    function = Prefetched(lambda chunk: volume.read(chunk.box), work)
    faulty.proxy.forget()
    for chunk, following in zip(chunks, (*chunks[1:], None), strict=True):
        function.expect(following)
        with metered() as requests:
            function(chunk)
        assert requests["get"] == 1
        (seen,) = faulty.proxy.seen("GET", f"c(/|%2F){chunk.index[0]}(/|%2F)0")
        assert requests["bytes_in"] == seen.received


def test_what_nobody_takes_counts_all_the_same() -> None:
    def load(chunk: Chunk) -> str:
        count("get", bytes_in=5)
        return chunk.name

    function = Prefetched(load, lambda chunk, inputs: {})
    with metered() as requests:
        function.expect(CHUNKS[1])
        function(CHUNKS[0])
        function.expect(None)
        function(CHUNKS[2])
        function(CHUNKS[3])
        time.sleep(0.05)
    assert (requests["get"], requests["bytes_in"]) == (4, 20)


def test_setting_aside_leaves_other_threads_alone() -> None:
    with metered() as requests, set_aside() as aside:
        count("put", bytes_out=2)
        other = threading.Thread(target=count, args=("list",))
        other.start()
        other.join()
    assert aside == {**dict.fromkeys(KEYS, 0), "put": 1, "bytes_out": 2}
    assert requests == {**dict.fromkeys(KEYS, 0), "list": 1}


def test_local_reads_are_set_aside_too(tmp_path: Path) -> None:
    info = VolumeInfo(shape=(4, 8, 8), dtype=np.dtype("uint8"), chunk_shape=(2, 8, 8))
    volume = create_volume(f"{tmp_path}/a.zarr", info)
    volume.write(info.box, np.ones(info.shape, np.uint8))
    with metered() as requests, set_aside() as aside:
        volume.read(info.box)
    assert aside["get"] == 2
    assert requests == dict.fromkeys(KEYS, 0)
