import json
from pathlib import Path

import numpy as np
import pytest
from pipeline_runs import request
from stage_runs import run_stages

from infra.cluster import cluster
from infra.objects import Folder
from infra.volumes import VolumeInfo, create_volume, open_volume
from models.catalog import Model
from models.errors import InvalidInput, InvalidVolume, RunConflict
from models.metrics.contingency import contingency_table
from services.evaluate import SegmentationScores, evaluate_segmentation, scores_of
from services.evaluate_boundaries import BoundaryMeasure
from services.evaluate_skeletons import RunLengthMeasure
from services.label_pair import LabelPair, voxels_identity
from services.pipelines.evaluate import evaluate, evaluate_measure, evaluation_job, evaluation_stages, finish
from services.pipelines.meshes import prepare_meshes
from services.pipelines.preparation import changed_run, check, hold, prepare
from services.pipelines.segment import PHASES, begin_phase, run_phase
from services.pipelines.skeletonize import prepare_skeletons
from services.pipelines.stage import Summary
from services.run import Run
from services.stages.contingency import read_contingency
from services.stages.meshes import MeshOptions
from services.stages.skeletonize import SkeletonOptions

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


def run_phases(run: Run, *phases: str) -> None:
    """The real phases, each stage without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "services.pipelines.segment.run_stage", lambda stage, _: run_stages([stage], np.random.default_rng(0))
        )
        for phase in phases:
            run_phase(run, phase, Summary())


def with_options(run: Run, threshold: float, skeletons: SkeletonOptions | None = None) -> Run:
    agglomeration = run.options.agglomeration.model_copy(update={"threshold": threshold})
    changes = {"agglomeration": agglomeration, "skeletons": skeletons}
    return hold(changed_run(run, run.options.model_copy(update=changes)))


def test_a_relabelled_segmentation_is_another(image: str, model: Model, tmp_path: Path) -> None:
    out, truth = str(tmp_path / "run"), f"{tmp_path}/truth.npy"
    labels = f"{out}/segmentation.zarr"
    cells = np.kron(np.arange(1, 49).reshape(3, 4, 4), np.ones((10, 11, 10), np.uint16))[:, :, :37]
    np.save(truth, cells.astype(np.uint16))
    line = "".join(f"{x + 1} 0 {x * 10 + 5} 205 105 1 {x or -1}\n" for x in range(37))
    (tmp_path / "1.swc").write_text(line)

    def described() -> list[object]:
        measures = (
            BoundaryMeasure.open(out, truth, tolerance_nm=20),
            RunLengthMeasure.open(out, str(tmp_path / "1.swc"), mask=labels),
            LabelPair.open(f"{out}/supervoxels.zarr", labels),
            LabelPair.open(f"{out}/supervoxels.zarr", truth),
        )
        return [measure.described() for measure in measures]

    def keys(name: str) -> list[str]:
        skeletons = prepare_skeletons(labels, f"{tmp_path}/skeletons_{name}", SkeletonOptions())
        return [prepare_meshes(labels, f"{tmp_path}/meshes_{name}", MeshOptions()).key, skeletons.key]

    def score(name: str) -> SegmentationScores:
        job = evaluation_job(LabelPair.open(out, truth), f"{tmp_path}/scores_{name}", (16, 16, 16))
        run_in_process(job, np.random.default_rng(1))
        return finish(job, "segment", 0)

    run = with_options(prepare(check(request(image, out, model, (16, 24, 20)))), 0.45)
    run_phases(run, *PHASES)
    before, made, scores = described(), keys("a"), score("a")
    assert (described(), keys("a"), score("a")) == (before, made, scores)
    arrays = {name: voxels_identity(open_volume(f"{out}/{name}.zarr")) for name in ("affinities", "supervoxels")}
    assert arrays["affinities"].endswith(f" predict={run.keys['predict']}")
    assert arrays["supervoxels"].endswith(f" watershed={run.keys['watershed']}")
    coarse = open_volume(f"{labels}/0")  # a level by itself
    assert voxels_identity(coarse) == f"{coarse.identity()} cut={run.keys['cut']}"

    other = with_options(run, 0.9)
    run_phases(other, "agglomerate")
    assert voxels_identity(open_volume(labels)) not in json.dumps(before)  # these voxels, but not of what run.json says
    with pytest.raises(InvalidInput, match="expected a run whose relabel has finished with its present options"):
        LabelPair.open(out, truth)
    unfinished = keys("b")
    begin_phase(other, "relabel")
    for refused in (described, lambda: keys("c"), lambda: score("c")):
        with pytest.raises(InvalidInput, match=r"relabel (is being done again|has finished with)"):
            refused()
    run_phases(other, "relabel")
    after = described()
    assert [a == b for a, b in zip(after, before, strict=True)] == [False, False, False, True]
    assert not {*made} & {*unfinished}
    for again in (lambda: keys("a"), lambda: keys("b"), lambda: score("a")):
        with pytest.raises(RunConflict, match="holds another run"):
            again()
    assert not {*made, *unfinished} & {*keys("d")}
    assert score("d").voi != scores.voi

    back = with_options(run, 0.45, SkeletonOptions(dust_voxels=10**6))
    run_phases(back, "agglomerate", "relabel")
    assert (described(), keys("a"), score("a")) == (before, made, scores)


def test_what_says_who_decided_voxels(urls: tuple[str, str], tmp_path: Path) -> None:
    pred = open_volume(urls[0])
    own, folder = pred.identity(), Folder(str(tmp_path))
    folder.write_json("run.json", {"key": "k", "keys": {"cut": "c"}})
    assert voxels_identity(pred) == own  # no array of a run, wherever it lies
    (tmp_path / "pred.zarr").rename(tmp_path / "segmentation.zarr")
    pred = open_volume(f"{tmp_path}/segmentation.zarr")
    with pytest.raises(InvalidVolume, match=r"run\.json: expected the description of a run, missing 'skeletonize'"):
        voxels_identity(pred)
    folder.write_json("run.json", {"key": "k"})
    assert voxels_identity(pred) == f"{pred.identity()} run=k"
    folder.write_json("run.json", {"title": "of another program"})
    assert voxels_identity(pred) == pred.identity()
