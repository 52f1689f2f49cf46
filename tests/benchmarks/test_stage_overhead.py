"""What Ray costs a stage: seconds for chunks that do nothing, and beyond the ideal for chunks that only wait."""

import time

import pytest

from infra.chunk_map import ChunkFunction, Done, Placement, map_chunks
from infra.cluster import cluster
from models.geometry import Box, Chunk

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.filterwarnings("default")]
WORKERS = 2


def waiting(seconds: float) -> ChunkFunction:
    def apply(chunk: Chunk) -> dict[str, float]:
        time.sleep(seconds)
        return {}

    return apply


def measured(count: int, seconds: float, stateful: bool) -> float:
    chunks = [Chunk((i, 0, 0), Box((i, 0, 0), (i + 1, 1, 1))) for i in range(count)]
    began = time.monotonic()
    placement = Placement(workers=WORKERS, stateful=stateful)
    done = sum(isinstance(event, Done) for event in map_chunks(chunks, waiting, (seconds,), placement))
    assert done == count
    return time.monotonic() - began


def test_overhead_of_a_stage() -> None:
    with cluster(cpus=WORKERS):
        measured(1, 0, False)  # the first of a process is slower
        for stateful in (False, True):
            kind = "kept workers" if stateful else "tasks"
            for count in (1, 8, 64, 512):
                print(f"{kind}, {count} chunks of nothing: {measured(count, 0, stateful):.2f} s")
            taken, ideal = measured(30, 0.2, stateful), 30 * 0.2 / WORKERS
            print(f"{kind}, 30 chunks of 0.2 s by {WORKERS} workers: {taken:.2f} s, ideal {ideal:.2f} s")
            assert taken < 4 * ideal + 10
