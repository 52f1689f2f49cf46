import json
from pathlib import Path

import numpy as np
import pytest

from infra.cluster import cluster
from infra.objects import Folder
from infra.volumes import VolumeInfo, create_volume
from models.errors import RunConflict
from models.metrics.contingency import contingency_table
from services.evaluate import evaluate_segmentation, scores_of
from services.evaluate_boundaries import BoundaryMeasure
from services.label_pair import LabelPair
from services.pipelines.evaluate import evaluate, evaluate_measure, evaluation_job, evaluation_stages, finish
from services.stages.contingency import read_contingency

SHAPE = (37, 45, 52)


@pytest.fixture
def urls(tmp_path: Path) -> tuple[str, str]:
    """Two zarr volumes of labels with ids above 2^32, background in both, stored in small pieces."""
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 6, (4, 5, 6)), np.ones((10, 9, 9), int))[tuple(map(slice, SHAPE))]
    pred = np.where(rng.random(SHAPE) < 0.1, 0, truth + rng.integers(0, 2, SHAPE)).astype(np.uint64) << np.uint64(40)
    found = []
    for name, voxels in (("pred", pred), ("truth", truth.astype(np.uint32))):
        info = VolumeInfo(shape=SHAPE, dtype=voxels.dtype, voxel_size_nm=(10, 10, 10), chunk_shape=(16, 16, 16))
        volume = create_volume(f"{tmp_path}/{name}.zarr", info)
        volume.write(volume.box, voxels)
        found.append(volume.url)
    return found[0], found[1]


def run_in_process(job, rng: np.random.Generator) -> None:
    for stage in evaluation_stages(job):
        apply = stage.make(*stage.arguments)
        for i in rng.permutation(len(stage.chunks)):
            apply(stage.chunks[i])


@pytest.mark.parametrize("tiling", [((64, 64, 64), 32), ((16, 16, 16), 3), ((13, 20, 9), 2)])
@pytest.mark.parametrize("box", [None, "3:30,4:44,1:50"])
def test_tables_of_chunks_are_the_table_of_the_whole(urls, tmp_path, tiling, box, monkeypatch) -> None:
    chunk, fan_in = tiling
    monkeypatch.setattr("services.stages.contingency.FAN_IN", fan_in)
    monkeypatch.setattr("services.label_pair._EXTENT", 16)
    pair = LabelPair.open(*urls, box)
    job = evaluation_job(pair, f"{tmp_path}/out", chunk)
    run_in_process(job, np.random.default_rng(1))
    scores = finish(job, "singletons", 100)
    whole = contingency_table(*pair.read(pair.box), ignore_truth=())
    stored = read_contingency(Folder(f"{tmp_path}/out"), "contingency.parquet")
    for name in ("pred", "truth", "counts"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(whole, name))
    assert scores == scores_of(pair, contingency_table(*pair.read(pair.box)), "singletons", 100)
    assert scores == evaluate_segmentation(*urls, box=box, pred_background="singletons", samples=100)
    assert json.loads((tmp_path / "out/scores.json").read_text()) == json.loads(json.dumps(scores.as_json()))
    assert not (tmp_path / "out/work").exists()
    assert list(evaluation_stages(job)) == []  # finished


def test_blocks_tile_the_box_and_follow_the_storage(urls, monkeypatch) -> None:
    monkeypatch.setattr("services.label_pair._EXTENT", 16)
    pair = LabelPair.open(*urls, "3:30,4:44,1:50")
    blocks = list(pair.blocks())
    counted = np.zeros(SHAPE, int)
    for block in blocks:
        counted[block.slices()] += 1
    expected = np.zeros(SHAPE, int)
    expected[pair.box.slices()] = 1
    np.testing.assert_array_equal(counted, expected)
    assert all(start % 16 == 0 or start == low for b in blocks for start, low in zip(b.start, (3, 4, 1), strict=True))


def test_another_pair_in_the_same_place_is_refused(urls, tmp_path: Path) -> None:
    evaluation_job(LabelPair.open(*urls), f"{tmp_path}/out", (16, 16, 16))
    with pytest.raises(RunConflict, match="another run"):
        evaluation_job(LabelPair.open(urls[1], urls[1]), f"{tmp_path}/out", (16, 16, 16))
    with pytest.raises(RunConflict, match="empty output prefix"):
        evaluation_job(LabelPair.open(*urls), str(tmp_path), (16, 16, 16))


@pytest.mark.cluster
def test_on_ray_and_again(urls, tmp_path: Path) -> None:
    boundaries = BoundaryMeasure.open(*urls, tolerance_nm=20)
    with cluster(cpus=2):
        found, _ = evaluate_measure(boundaries, f"{tmp_path}/boundaries", chunk_shape=(32, 32, 32))
        scores, summary = evaluate(*urls, f"{tmp_path}/out", samples=50, chunk_shape=(32, 32, 32))
        again, nothing = evaluate(*urls, f"{tmp_path}/out", samples=50, chunk_shape=(32, 32, 32))
    assert scores == again == evaluate_segmentation(*urls, samples=50)
    assert [(stage.stage, stage.chunks) for stage in summary.stages] == [("contingency", 8), ("sum_1", 1)]
    assert nothing.stages == []
    assert found == boundaries.scores([boundaries.measured(boundaries.box)])
