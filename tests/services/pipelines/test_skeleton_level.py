"""Skeletons of a run are traced on a level that its pyramid has, after the pyramid."""

from pathlib import Path

import pytest
from pipeline_runs import OPTIONS, given_affinities

from services.pipelines.segment import create_arrays, relabel_stages, skeleton_job
from services.stages.skeletonize import SkeletonOptions


@pytest.mark.parametrize(
    ("nm", "level", "shape"), [(0, 0, (30, 40, 300)), (32, 1, (15, 20, 150)), (40, 2, (8, 10, 75))]
)
def test_level_of_a_run(nm: float, level: int, shape: tuple[int, int, int], tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"skeletons": SkeletonOptions(voxel_nm=nm)})
    run = given_affinities((30, 40, 300), options, (30, 40, 64), str(tmp_path / "out"))
    create_arrays(run, "relabel")
    job = skeleton_job(run, SkeletonOptions(voxel_nm=nm))
    assert (job.level, job.traced.shape) == (level, shape)
    assert run.volume("segmentation.zarr", level=level).info.shape == shape
    names = [stage.ledger.stage for stage in relabel_stages(run)]
    assert names[:4] == ["relabel", "pyramid_1", "pyramid_2", "skeletonize"]
