"""The output prefix of an evaluation: the same place for every worker, and whole for `petavoxel verify`."""

from pathlib import Path

import numpy as np
import pytest
from stage_runs import run_stages

from infra.volumes import VolumeInfo, create_volume
from services.evaluate_boundaries import BoundaryMeasure
from services.label_pair import LabelPair
from services.pipelines.evaluate import evaluation_job, evaluation_stages, finish, measure_job
from services.pipelines.stage import announce
from services.verify import verify

CHUNK = (16, 16, 16)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two volumes of labels."""
    rng = np.random.default_rng(0)
    info = VolumeInfo(shape=(20, 24, 28), dtype=np.dtype("uint32"), voxel_size_nm=(10, 10, 10), chunk_shape=CHUNK)
    for name in ("pred", "truth"):
        with create_volume(f"{tmp_path}/{name}.zarr", info) as volume:
            volume.write(volume.box, rng.integers(0, 5, info.shape, np.uint32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_relative_prefixes_are_the_same_to_every_worker(here: Path) -> None:
    jobs = [
        evaluation_job(LabelPair.open("pred.zarr", "truth.zarr"), "out", CHUNK),
        measure_job(BoundaryMeasure.open("pred.zarr", "truth.zarr", tolerance_nm=20), "boundaries", CHUNK),
    ]
    assert [job.out for job in jobs] == [f"{here}/out", f"{here}/boundaries"]


def test_tables_that_were_removed_at_the_end_are_not_damaged(here: Path) -> None:
    job = evaluation_job(LabelPair.open("pred.zarr", "truth.zarr"), "out", CHUNK)
    stages = list(evaluation_stages(job))
    announce(stages)
    run_stages(stages, np.random.default_rng(1))
    before = verify("out")
    assert (before.outputs, before.damages) == (9, [])
    table = here / "out" / "work" / "tables" / "0" / "3.parquet"
    content = table.read_bytes()
    table.unlink()
    assert [damage.cause for damage in verify("out").damages] == ["missing"]
    table.write_bytes(content)
    finish(job, "segment", 0)
    assert not (here / "out" / "work").exists()
    after = verify("out")
    assert (after.outputs, after.damages, after.gone) == (0, [], {"contingency", "sum_1"})
