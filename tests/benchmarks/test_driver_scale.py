"""What a driver needs for a stage of a million chunks of which half are done: memory and time, without its workers."""

import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import psutil
import pytest

from infra import chunk_map
from infra.chunk_map import ChunkFunction, Done, Placement, map_chunks
from infra.cluster import cluster
from models.geometry import Box, ChunkGrid

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
SIDE = 100

DRIVER = """
import sys, time
from itertools import islice
from infra.chunk_map import WINDOW
from infra.ledger import Ledger, why_again
from infra.objects import Folder
from models.geometry import Box, ChunkGrid
from services.pipelines.stage import Stage
from services.pipelines.pending import Pending

def peak():  # of this program alone; getrusage counts what forked it
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

def told(what, began):
    print(f"{what}: {time.process_time() - began:.1f} s of processor, {peak() - before:.0f} MB more at the peak")

before = peak()
whole = began = time.process_time()
grid = ChunkGrid(Box((0, 0, 0), (SIDE, SIDE, SIDE)), (1, 1, 1))
stage = Stage(Ledger(Folder(sys.argv[1]), "stage", "key"), grid, print, ())
stage.planned()
markers = stage.ledger.markers()
told(f"{len(stage.chunks)} chunks, {len(markers.done['key'])} markers listed", began)
began = time.process_time()
pending = Pending.of(stage.chunks, markers.done["key"])
print(why_again(stage.ledger, pending.names(), markers))
told(f"{len(pending)} left", began)
began = time.process_time()
source = iter(pending)
while window := {chunk.name: chunk for chunk in islice(source, WINDOW)}:
    pass
told("made window by window", began)
print("total", time.process_time() - whole, peak() - before)
"""


def test_a_million_chunks_on_the_driver(tmp_path: Path) -> None:
    below = tmp_path / "progress" / "stage"
    below.mkdir(parents=True)
    grid = ChunkGrid(Box((0, 0, 0), (SIDE, SIDE, SIDE)), (1, 1, 1))
    for chunk in islice(grid, 0, None, 2):
        (below / f"{chunk.name}.key.json").touch()
    script = DRIVER.replace("SIDE", str(SIDE))
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(f"\n{done.stdout}")
    seconds, megabytes = (float(figure) for figure in done.stdout.splitlines()[-1].split()[1:])
    assert seconds < 60
    assert megabytes < 1000


def nothing() -> ChunkFunction:
    return lambda _: {}


@pytest.mark.cluster
def test_what_the_driver_does_for_a_chunk_on_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of nothing in windows of 2048: the driver's processor and wall time for each, and its memory."""
    monkeypatch.setattr(chunk_map, "WINDOW", 2048)
    grid = ChunkGrid(Box((0, 0, 0), (3, 2048, 1)), (1, 1, 1))
    with cluster(cpus=2):
        for _ in map_chunks(ChunkGrid(Box((0, 0, 0), (64, 1, 1)), (1, 1, 1)), nothing, (), Placement(workers=2)):
            pass  # the first of a process is slower
        memory = []
        spent, began = time.process_time(), time.monotonic()
        events = map_chunks(grid, nothing, (), Placement(workers=2))
        for number, _ in enumerate(event for event in events if isinstance(event, Done)):
            if number % 2048 == 2047:
                memory.append(psutil.Process().memory_info().rss / 2**20)
    assert len(memory) == 3
    each = 1000 / len(grid)
    print(
        f"\n{len(grid)} chunks: {(time.process_time() - spent) * each:.2f} ms of the driver's processor each, "
        f"{(time.monotonic() - began) * each:.2f} ms of wall time; MB after each window: "
        f"{', '.join(f'{figure:.0f}' for figure in memory)}"
    )
