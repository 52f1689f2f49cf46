import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from infra.skeletons import PrecomputedSkeletons, Skeleton, to_swc
from infra.volumes import VolumeInfo, create_volume
from models.errors import InvalidInput, InvalidVolume, NotFound
from models.geometry import Box
from models.metrics.run_length import RunLengthConvention
from services.cli.evaluate import app
from services.evaluate_skeletons import RunLengthMeasure, RunLengthScores, segments_at
from services.pipelines.evaluate import finish_measure, measure_job, measure_stage
from services.stages.skeletonize import SkeletonOptions
from services.true_skeletons import read_skeletons

SIZE = (20.0, 10.0, 10.0)
OFFSET = (3, 100, 7)
SHAPE = (10, 24, 140)
TUBES = {1: (slice(1, 4), slice(2, 10)), 2: (slice(6, 9), slice(13, 22))}  # z, y of two tubes along x


def tube_labels() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint32)
    for name, (z, y) in TUBES.items():
        labels[z, y] = name
    return labels


def volume(path: Path, voxels: np.ndarray, offset=OFFSET) -> str:
    info = VolumeInfo(shape=voxels.shape, dtype=voxels.dtype, voxel_size_nm=SIZE, offset_voxels=offset)
    created = create_volume(str(path), info)
    created.write(created.box, voxels)
    return created.url


def centre_line(name: int) -> Skeleton:
    """The middle of a tube in nm of the physical frame, a node in every voxel from x = 0 to 139."""
    z, y = ((s.start + s.stop) // 2 for s in TUBES[name])
    x = np.arange(SHAPE[2])
    voxels = np.stack([0 * x + z, 0 * x + y, x], axis=1) + OFFSET
    edges = np.stack([x[:-1], x[1:]], axis=1)
    return Skeleton(((voxels + 0.5) * SIZE).astype(np.float32), edges.astype(np.uint32), np.ones(len(x), np.float32))


def evaluate_skeletons(prediction: str, truth: str, **options: object) -> RunLengthScores:
    """Measured in one go."""
    measure = RunLengthMeasure.open(prediction, truth, **options)  # type: ignore[arg-type]
    return measure.scores([measure.measured(measure.box)])


@pytest.fixture
def split(tmp_path: Path) -> str:
    """A prediction that parts tube 1 at x = 70, leaves x = 100 of tube 2 unlabelled, and has ids above 2^32."""
    labels = tube_labels().astype(np.uint64) << np.uint64(50)
    labels[1:4, 2:10, 70:] += np.uint64(1)
    labels[6:9, 13:22, 100] = 0
    return volume(tmp_path / "pred.zarr", labels)


EXPECTED = (690**2 + 690**2 + (990 + 380) ** 2) / (2 * 1390)


@pytest.fixture(params=["swc folder", "skeletonize output", "precomputed", "graph file"])
def files(request, tmp_path: Path) -> str:
    """The same true skeletons in every format."""
    folder = tmp_path / "skeletons"
    lines = {name: centre_line(name) for name in TUBES}
    if request.param == "precomputed":
        store = PrecomputedSkeletons(str(folder)).create()
        store.write(0, list(lines.items()))
        return str(folder)
    if request.param == "graph file":
        nodes = [np.column_stack([np.full(140, i), lines[n].vertices]) for i, n in enumerate(lines)]
        edges = [np.column_stack([lines[n].edges + 140 * i, np.full(139, 10.0)]) for i, n in enumerate(lines)]
        np.savez(
            tmp_path / "graph.npz", np.array(list(lines)), np.array([1390.0, 1390.0]), np.concatenate(nodes), *edges
        )
        return str(tmp_path / "graph.npz")
    place = folder / "swc" if request.param == "skeletonize output" else folder
    place.mkdir(parents=True)
    for name, line in lines.items():
        (place / f"{name}.swc").write_text(to_swc(line))
    return str(folder)


def test_files_of_every_format_score_the_same(split: str, files: str) -> None:
    assert [name for name, _, _ in read_skeletons(files)] == [1, 2]
    scores = evaluate_skeletons(split, files)
    found = scores.run_length
    assert found.erl_nm == pytest.approx(EXPECTED, rel=1e-5)
    assert found.cable_nm == pytest.approx(2 * 1390, rel=1e-5)
    assert found.maximum_nm == pytest.approx(1390, rel=1e-5)
    assert found.split == pytest.approx(10 / 2780, rel=1e-3)
    assert found.omitted == pytest.approx(20 / 2780, rel=1e-3)
    assert (scores.edges_outside, scores.voxel_size_nm) == (0, SIZE)


def test_a_run_stands_for_its_segmentation(tmp_path: Path, split: str) -> None:
    (tmp_path / "truth.swc").write_text(to_swc(centre_line(1)))
    out = tmp_path / "out"
    out.mkdir()
    Path(split).rename(out / "segmentation.zarr")
    (out / "run.json").write_text(json.dumps({"box": str(Box.from_shape(SHAPE))}))
    found = evaluate_skeletons(str(out), str(tmp_path / "truth.swc"))
    assert found == evaluate_skeletons(str(out / "segmentation.zarr"), str(tmp_path / "truth.swc"))


def test_labels_are_traced_and_a_perfect_segmentation_is_perfect(tmp_path: Path, split: str) -> None:
    truth = volume(tmp_path / "truth.zarr", tube_labels())
    tracing = SkeletonOptions(dust_voxels=100, chunk_voxels=(64, 64, 64), const_nm=50)
    perfect = evaluate_skeletons(truth, truth, tracing=tracing)
    assert perfect.run_length.normalised == 1
    assert perfect.run_length.skeletons == 2
    assert perfect.run_length.cable_nm == pytest.approx(2780, rel=0.05)
    scores = evaluate_skeletons(split, truth, tracing=tracing)
    assert scores.run_length.erl_nm == pytest.approx(EXPECTED, rel=0.06)
    assert "kimimaro" in scores.skeletons
    assert "const 50" in scores.skeletons
    # truth of a larger volume, placed by its offset
    larger = np.zeros((14, 30, 150), np.uint32)
    larger[2:12, 4:28, 5:145] = tube_labels()
    placed = volume(tmp_path / "larger.zarr", larger, offset=(1, 96, 2))
    assert evaluate_skeletons(split, placed, tracing=tracing).run_length == scores.run_length
    elsewhere = volume(tmp_path / "elsewhere.zarr", larger, offset=(0, 0, 0))
    with pytest.raises(InvalidVolume, match="contain its box"):
        evaluate_skeletons(split, elsewhere, tracing=tracing)


def test_box_mask_and_convention_decide(tmp_path: Path) -> None:
    folder = tmp_path / "swc"
    folder.mkdir()
    for name in TUBES:
        (folder / f"{name}.swc").write_text(to_swc(centre_line(name)))
    pred = volume(tmp_path / "perfect.zarr", tube_labels())
    half = evaluate_skeletons(pred, str(folder), box=Box((0, 0, 0), (10, 24, 71)))
    assert half.run_length.cable_nm == pytest.approx(1400, rel=1e-5)
    assert half.edges_outside == 2 * 69
    mask = np.zeros(SHAPE, np.uint8)
    mask[7, 15, :6] = 1
    hit = evaluate_skeletons(pred, str(folder), mask=volume(tmp_path / "mask.zarr", mask))
    assert hit.run_length.merged_segments == (2,)
    assert hit.run_length.normalised == pytest.approx(0.5)
    spared = RunLengthConvention(mask_threshold=7)
    assert (
        evaluate_skeletons(pred, str(folder), mask=f"{tmp_path}/mask.zarr", convention=spared).run_length.normalised
        == 1
    )
    with pytest.raises(InvalidInput, match="of at least 2000 nm"):
        evaluate_skeletons(pred, str(folder), min_cable_nm=2000)


def test_skeletons_that_are_left_out_merge_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "swc"
    folder.mkdir()
    name, *_ = TUBES
    line = centre_line(name)
    short = Skeleton(line.vertices[:12], line.edges[:11], line.radii[:12])
    (folder / "1.swc").write_text(to_swc(line))
    (folder / "2.swc").write_text(to_swc(short))  # in the same segment
    pred = volume(tmp_path / "perfect.zarr", tube_labels())
    assert evaluate_skeletons(pred, str(folder)).run_length.normalised == 0
    assert evaluate_skeletons(pred, str(folder), min_cable_nm=1000).run_length.normalised == 1


def test_segments_are_read_where_nodes_are(tmp_path: Path) -> None:
    from infra.volumes import open_volume

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 1 << 62, (20, 150, 300), dtype=np.uint64)
    np.save(tmp_path / "labels.npy", labels)
    nodes = rng.integers(-5, 310, (500, 3))
    nodes[:, 0] %= 25
    box = Box((2, 0, 10), (20, 150, 290))
    inside = ((nodes >= box.start) & (nodes < box.stop)).all(axis=1)
    expected = np.where(inside, labels[tuple(np.clip(nodes, 0, np.array(labels.shape) - 1).T)], 0)
    np.testing.assert_array_equal(segments_at(open_volume(f"{tmp_path}/labels.npy"), nodes, box), expected)


def test_chunks_measure_what_the_whole_measures(tmp_path: Path, split: str, files: str) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[7, 15, :60] = 1
    measure = RunLengthMeasure.open(
        split,
        files,
        mask=volume(tmp_path / "mask.zarr", mask),
        convention=RunLengthConvention(mask_threshold=60),
        box="0:10,0:24,1:140",
    )
    whole = measure.scores([measure.measured(measure.box)])
    assert len(whole.run_length.merged_segments) == 0  # 59 of the mask's voxels lie in the box
    job = measure_job(measure, f"{tmp_path}/out", (7, 24, 33))
    stage = measure_stage(job)
    apply = stage.make(*stage.arguments)
    for chunk in reversed(stage.chunks):
        apply(chunk)
    assert len(stage.chunks) == 2 * 5
    assert finish_measure(job) == whole


def test_command_tells_every_convention(tmp_path: Path, split: str) -> None:
    folder = tmp_path / "swc"
    folder.mkdir()
    for name in TUBES:
        (folder / f"{name}.swc").write_text(to_swc(centre_line(name)))
    arguments = ["skeletons", split, str(folder), "--merge-threshold", "5", "--penalty", "skeleton", "--spacing", "5"]
    text = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    for words in (
        "normalised ERL",
        "20 x 10 x 10 nm voxels",
        "at most 5 nm apart",
        "5 nodes of a second skeleton",
        "no-merge mask:      none",
        "every skeleton that a merged segment touches",
        "mean over all cable",
        "bootstrap over 2 skeletons",
    ):
        assert words in text, words
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert told["conventions"]["merge_threshold"] == 5
    assert told["conventions"]["voxel_size_nm"] == list(SIZE)
    assert told["conventions"]["no_merge_mask"] is None
    # a node more on every edge: the run of tube 1 ends half an edge later on either side of the cut
    assert told["erl_nm"] == pytest.approx((695**2 + 690**2 + (990 + 5 + 380 + 5) ** 2) / 2780, rel=0.01)


def test_mistakes_are_one_line(tmp_path: Path, split: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.swc").write_text("this is no skeleton\n")
    np.savez(tmp_path / "other.npz", np.zeros(3))
    for truth, error in (
        (f"{tmp_path}/empty", NotFound),
        (f"{tmp_path}/none.swc", NotFound),
        (f"{tmp_path}/none.npz", NotFound),
        (f"{tmp_path}/bad.swc", InvalidVolume),
        (f"{tmp_path}/other.npz", InvalidVolume),
    ):
        with pytest.raises(error) as caught:
            evaluate_skeletons(split, truth)
        assert "\n" not in str(caught.value)
    np.save(tmp_path / "unknown.npy", np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(InvalidVolume, match="--voxel-size"):
        evaluate_skeletons(f"{tmp_path}/unknown.npy", split)
