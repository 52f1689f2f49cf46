"""Ways to run the pipeline on a small image in tests."""

from pathlib import Path

import numpy as np

from models.catalog import Model
from models.geometry import Triple
from services.pipelines.segment import Request, create_arrays, prepare, skeleton_job, skeleton_stages, stages
from services.run import AgglomerationOptions, Run, SegmentOptions, WatershedOptions
from services.stages.skeletonize import SkeletonOptions

SHAPE = (30, 44, 37)
OPTIONS = SegmentOptions(
    watershed=WatershedOptions(low=0, high=0.8),
    agglomeration=AgglomerationOptions(basin_voxels=5, threshold=0.45),
    skeletons=SkeletonOptions(dust_voxels=50, const_nm=20, chunk_voxels=(20, 20, 20)),
)


def request(image: str, out: str | Path, model: Model, chunk: Triple | None = None, box: str | None = None) -> Request:
    return Request(image, str(out), str(model.folder), OPTIONS, chunk=chunk, box=box)


def run_in_process(asked: Request, *, skeletons: bool = False, rng: np.random.Generator | None = None) -> Run:
    """All stages without Ray, the chunks of each in random order where `rng` is given."""
    run = prepare(asked)
    create_arrays(run)
    planned = list(stages(run))
    for stage in planned:
        order = rng.permutation(len(stage.chunks)) if rng else range(len(stage.chunks))
        apply = stage.make(*stage.arguments)
        for i in order:
            apply(stage.chunks[i])
    if skeletons and OPTIONS.skeletons:
        for stage in skeleton_stages(skeleton_job(run, OPTIONS.skeletons)):
            apply = stage.make(*stage.arguments)
            for chunk in stage.chunks:
                apply(chunk)
    return run
