"""Chunks on a real Ray: every chunk ends, whatever kills its workers, and every wait has a limit."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from infra.chunk_map import ChunkFunction, Done, Event, Failed, Placement, Started, map_chunks
from infra.cluster import cluster, own_processors
from models.errors import ChunkFailed, StorageFailed
from models.geometry import Box, Chunk

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]
VICTIM = 3


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with cluster(cpus=2):
        yield


def chunks(count: int) -> list[Chunk]:
    return [Chunk((i, 0, 0), Box((i, 0, 0), (i + 1, 1, 1))) for i in range(count)]


def make(mode: str, marks: str = "") -> ChunkFunction:
    if mode == "dies when made":
        os.kill(os.getpid(), signal.SIGSEGV)

    def apply(chunk: Chunk) -> dict[str, float]:
        first = not marks or not Path(marks, chunk.name).exists()
        if marks:
            Path(marks, chunk.name).touch()
        if chunk.index[0] == VICTIM and first:
            if mode == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            elif mode == "hangs":
                time.sleep(300)
            elif mode == "fails":
                raise StorageFailed("x.zarr: damaged")
        return {"voxels": chunk.box.size}

    return apply


def noting(seconds: float) -> ChunkFunction:
    def apply(chunk: Chunk) -> dict[str, float]:
        began = time.monotonic()
        time.sleep(seconds)
        return {"began": began, "ended": time.monotonic()}

    return apply


def run(count: int, arguments: tuple[str, ...], placement: Placement) -> tuple[list[Event], str]:
    events: list[Event] = []
    try:
        for event in map_chunks(chunks(count), make, arguments, placement):
            events.append(event)
    except ChunkFailed as error:
        return events, str(error)
    return events, ""


def done(events: list[Event]) -> list[int]:
    return sorted(event.chunk.index[0] for event in events if isinstance(event, Done))


@pytest.mark.parametrize("stateful", [False, True])
def test_every_chunk_is_announced_and_done_once(stateful: bool) -> None:
    events, error = run(20, ("works",), Placement(workers=2, stateful=stateful))
    assert error == ""
    assert done(events) == list(range(20))
    begun = [event.chunk.index[0] for event in events if isinstance(event, Started)]
    assert sorted(begun) == list(range(20))


@pytest.mark.parametrize("stateful", [False, True])
def test_a_chunk_whose_worker_died_is_run_again(stateful: bool, tmp_path: Path) -> None:
    events, error = run(20, ("dies", str(tmp_path)), Placement(workers=2, stateful=stateful))
    assert error == ""
    assert done(events) == list(range(20))


@pytest.mark.parametrize(
    ("mode", "stateful", "cause"),
    [
        ("dies", False, "its worker died 3 times"),
        ("dies", True, "its worker died 3 times"),
        ("hangs", False, "longer than 2 s"),
        ("fails", False, "x.zarr: damaged (tried 3 times)"),
    ],
)
def test_a_poisoned_chunk_is_named_and_costs_only_itself(mode: str, stateful: bool, cause: str) -> None:
    events, error = run(12, (mode,), Placement(workers=2, stateful=stateful, timeout_s=2, pause_s=0.1))
    assert done(events) == [i for i in range(12) if i != VICTIM]
    failed = [event for event in events if isinstance(event, Failed)]
    assert [event.chunk.index[0] for event in failed] == [VICTIM]
    assert cause in failed[0].cause
    assert "1 of 12 chunks failed: chunk 3_0_0 (box 3:4,0:1,0:1)" in error


def test_workers_that_die_at_once_end_the_stage() -> None:
    events, error = run(2, ("dies when made",), Placement(workers=2))
    assert done(events) == []
    assert "2 of 2 chunks failed" in error


@pytest.mark.parametrize("stateful", [False, True])
def test_a_cluster_without_a_place_is_given_up(stateful: bool) -> None:
    events, error = run(2, ("works",), Placement(workers=2, cpus=64, stateful=stateful, stall_s=3))
    assert done(events) == []
    assert "a worker needs 64 CPU" in error


ABANDONED = """
import time
from infra.chunk_map import Done, Placement, map_chunks
from infra.cluster import cluster
from models.geometry import Box, Chunk

def make():
    def apply(chunk):
        time.sleep(0.1 if chunk.index[0] == 0 else 30)
        return {}
    return apply

chunks = [Chunk((i, 0, 0), Box((i, 0, 0), (i + 1, 1, 1))) for i in range(8)]
with cluster(cpus=2):
    for event in map_chunks(chunks, make, (), Placement(workers=2, stateful=STATEFUL)):
        if isinstance(event, Done):
            raise SystemExit(42)
"""


@pytest.mark.parametrize("stateful", [False, True])
def test_a_stage_that_is_abandoned_ends_at_once_and_in_good_order(stateful: bool) -> None:
    script = ABANDONED.replace("STATEFUL", str(stateful))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 42, done.stderr
    assert "Traceback" not in done.stderr


def test_a_chunk_may_take_longer_than_ray_waits() -> None:
    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = 1
    found = [event for event in map_chunks(chunks(1), noting, (4.0,), Placement(tries=1)) if isinstance(event, Done)]
    assert [event.report["ended"] - event.report["began"] > 4 for event in found] == [True]


def test_a_stage_begins_with_all_its_workers() -> None:
    def together() -> bool:
        events = map_chunks(chunks(2), noting, (0.7,), Placement(workers=2))
        reports = [event.report for event in events if isinstance(event, Done)]
        return max(report["began"] for report in reports) < min(report["ended"] for report in reports)

    together()  # starts the processes
    assert any(together() for _ in range(3))


def test_processors_are_those_that_the_process_may_use() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from infra.cluster import own_processors; print(own_processors())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
    assert 1 <= own_processors() <= (os.cpu_count() or 1)
