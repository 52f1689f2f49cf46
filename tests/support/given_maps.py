"""Runs of any size from one map of affinities, tiled by reflection; for benchmarks.

`PETAVOXEL_AFFINITIES` names affinities (3, z, y, x) of uint8 in an `.npy`.
"""

import os

import numpy as np
import pytest
from numpy.typing import NDArray
from pipeline_runs import given_affinities, run_phase_in_process

from models.geometry import Box, Triple
from services.pipelines.segment import create_arrays
from services.run import Run, SegmentOptions

PHASES = ("watershed", "agglomerate", "relabel")
OPTIONS = SegmentOptions(skeletons=None)


def chosen_affinities() -> NDArray[np.uint8]:
    """The map, not read yet; skips the test where none is named."""
    path = os.environ.get("PETAVOXEL_AFFINITIES")
    if not path:
        pytest.skip("PETAVOXEL_AFFINITIES names no affinities")
    found: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return found


def tiled(affinities: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """A box of the map, tiled by reflection; edges are reflected like voxels, which keeps their statistics."""
    index = []
    for start, stop, extent in zip(box.start, box.stop, affinities.shape[1:], strict=True):
        place = np.arange(start, stop) % (2 * extent)
        index.append(np.where(place < extent, place, 2 * extent - 1 - place))
    return np.ascontiguousarray(affinities[(slice(None), *np.ix_(*index))])


def prepared(affinities: NDArray[np.uint8], shape: Triple, chunk: Triple, out: str) -> Run:
    """A run whose predictions are done: the tiled map."""
    run = given_affinities(shape, OPTIONS, chunk, out)
    create_arrays(run, "predict")
    volume = run.volume("affinities.zarr", writable=True)
    for part in run.grid:
        volume.write(part.box, tiled(affinities, part.box))
    run.folder.write_json("progress/phases/predict.json", {"key": run.phase_key("predict")})
    return run


def segment_in_process(run: Run, phases: tuple[str, ...] = PHASES) -> None:
    """Everything after the prediction, without Ray; intermediate results stay."""
    for phase in phases:
        run_phase_in_process(run, phase)
