import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from infra.objects import Folder
from infra.volumes import VolumeInfo, create_volume
from models.errors import InvalidInput, InvalidVolume, NotFound
from models.geometry import Box
from models.segmentation.merge_tree import MergeTree
from models.segmentation.region_graph import region_graph
from models.segmentation.whole import WholeSegmentation, merge_supervoxels
from services.cli.evaluate import app
from services.evaluate import evaluate_segmentation
from services.pipelines.progress import PlannedStage, write_plan
from services.sweep import evaluate_sweep, read_merges

SHAPE = (12, 18, 24)
BOX = Box((5, 6, 7), (17, 24, 31))


def store_merges(folder: Folder, tree: MergeTree, parts: int) -> None:
    """The merges in several files on two levels, as the nodes of an octree leave them."""
    for part in range(parts):
        rows = slice(part, None, parts)
        columns = {column: getattr(tree, column)[rows] for column in ("a", "b", "affinity_sum", "face_count")}
        name = f"agglomeration/merges/{part % 2}/{part}_0_0.parquet"
        folder.write_table(name, {**columns, "score": tree.scores[rows]})


def store_basins(folder: Folder, whole: WholeSegmentation) -> None:
    """Supervoxel to basin, by chunk; some supervoxels lie in both chunks."""
    for chunk, rows in enumerate((slice(0, 200), slice(150, None))):
        name = f"agglomeration/basin_of/{chunk}_0_0.parquet"
        folder.write_table(name, {"supervoxel": whole.ids[rows], "basin": whole.basins[rows]})


@pytest.fixture
def run(tmp_path: Path):
    """A run's supervoxels and merge tree over random affinities, truth of a larger image, and the merges themselves."""
    rng = np.random.default_rng(3)
    blocks = rng.permutation(6 * 6 * 8).reshape(6, 6, 8).astype(np.uint64) + np.uint64(2**40)
    supervoxels = np.kron(blocks, np.ones((2, 3, 3), np.uint64))
    supervoxels[rng.random(SHAPE) < 0.05] = 0
    image_truth = np.kron(rng.integers(0, 5, (3, 5, 5)), np.ones((8, 7, 8), int))[:20, :30, :40].astype(np.uint32)
    affinities = rng.integers(1, 256, (3, *SHAPE), dtype=np.uint8)
    graph = region_graph(affinities, supervoxels)
    whole = merge_supervoxels(supervoxels, graph, basin_voxels=17, basin_affinity=230, floor=0.3)
    assert np.unique(whole.basins).size < whole.ids.size - 3
    assert len(whole.merges) > 3
    out = Folder(str(tmp_path / "out"))
    out.write_json("run.json", {"box": str(BOX), "options": {"agglomeration": {"threshold": 0.45, "tree_floor": 0.3}}})
    store_basins(out, whole)
    store_merges(out, whole.merges, 4)
    info = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint64"), voxel_size_nm=(10, 10, 10), offset_voxels=BOX.start)
    volume = create_volume(out.at("supervoxels.zarr"), info)
    volume.write(volume.box, supervoxels)
    np.savez(tmp_path / "truth.npz", labels=image_truth)
    return out.url, f"{tmp_path}/truth.npz:labels", supervoxels, whole


def test_points_are_the_scores_of_real_cuts(run, tmp_path: Path) -> None:
    out, truth, _, whole = run
    found = evaluate_sweep(out, truth, thresholds=[0.3, 0.5, 0.7, 1.0])
    assert (found.floor, found.threshold, found.box) == (0.3, 0.45, BOX)
    for point in found.points:
        np.save(tmp_path / "cut.npy", whole.segments_at(point.threshold))
        scores = evaluate_segmentation(f"{tmp_path}/cut.npy", truth, box=BOX)
        assert (point.voi, point.rand) == (scores.voi, scores.rand)
    assert found.best.voi.total == min(point.voi.total for point in found.points)


def test_a_run_stands_for_its_segmentation(run, tmp_path: Path) -> None:
    out, truth, supervoxels, _ = run
    with pytest.raises(NotFound, match=r"segmentation\.zarr"):
        evaluate_segmentation(out, truth)
    info = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint64"), voxel_size_nm=(10, 10, 10), offset_voxels=BOX.start)
    with create_volume(f"{out}/segmentation.zarr", info) as volume:
        volume.write(volume.box, supervoxels)
    found, same = (evaluate_segmentation(*asked, box=BOX) for asked in ((out, truth), (volume.url, truth)))
    assert (found.voi, found.rand, found.box) == (same.voi, same.rand, BOX)
    assert evaluate_segmentation(out, truth) == found
    Folder(out).write_json("run.json", {})
    with pytest.raises(InvalidVolume, match=r"run\.json: expected the description of a run, missing 'box'"):
        evaluate_segmentation(out, truth)


def test_a_tree_of_other_options_is_refused(run) -> None:
    out, truth, *_ = run
    folder = Folder(out)
    folder.write_json("run.json", folder.read_json("run.json") | {"keys": {"cut": "of these options"}})
    for left in (None, "of others", ""):
        if left is not None:
            folder.write_json("progress/phases/agglomerate.json", {"key": left})
        with pytest.raises(
            InvalidInput, match="expected a run whose agglomerate has finished with its present options"
        ):
            evaluate_sweep(out, truth)
    folder.write_json("progress/phases/agglomerate.json", {"key": "of these options"})
    assert evaluate_sweep(out, truth).points


def test_labels_are_scored_once_all_are_written(run, tmp_path: Path) -> None:
    out, truth, supervoxels, _ = run
    folder = Folder(out)
    keys = {"relabel": "r", "skeletonize": "s"}
    folder.write_json("run.json", folder.read_json("run.json") | {"keys": keys})
    info = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint64"), voxel_size_nm=(10, 10, 10), offset_voxels=BOX.start)
    with create_volume(f"{out}/segmentation.zarr", info) as volume:
        volume.write(volume.box, supervoxels)
    write_plan(folder, [PlannedStage("relabel", "r", 2, supervoxels.size)])
    for name in ("0_0_0", "0_0_1"):
        with pytest.raises(InvalidInput, match="whose relabel has finished"):
            evaluate_segmentation(out, truth)
        folder.write_json(f"progress/relabel/{name}.r.json", {})
    assert evaluate_segmentation(out, truth).box == BOX, "skeletons are not waited for"


def test_the_tree_is_read_whole_from_its_files(run) -> None:
    out, _, _, whole = run
    tree = whole.merges
    found = read_merges(Folder(out), "agglomeration/merges")
    order = np.argsort(tree.b)
    for column in ("a", "b", "affinity_sum", "face_count"):
        np.testing.assert_array_equal(getattr(found, column), getattr(tree, column)[order])


def test_a_run_without_its_agglomeration_is_told(run) -> None:
    out, truth, *_ = run
    for name in ("merges", "basin_of"):
        Folder(out).remove(f"agglomeration/{name}")
        with pytest.raises(NotFound, match=f"{name}: no .* has the agglomeration finished"):
            evaluate_sweep(out, truth, thresholds=[0.5])


def test_truth_of_the_box_and_part_of_it(run, tmp_path: Path) -> None:
    out, truth, *_ = run
    with np.load(truth.removesuffix(":labels")) as bundle:
        np.save(tmp_path / "part.npy", bundle["labels"][BOX.slices()])
    whole = evaluate_sweep(out, truth, thresholds=[0.5])
    assert evaluate_sweep(out, f"{tmp_path}/part.npy", thresholds=[0.5]).points == whole.points
    part = Box((6, 7, 8), (15, 20, 30))
    inside = evaluate_sweep(out, truth, thresholds=[0.5], box=part)
    moved = part.shifted((-5, -6, -7))
    assert evaluate_sweep(out, f"{tmp_path}/part.npy", thresholds=[0.5], box=moved).points == inside.points
    assert inside.points != whole.points


def test_command_prints_a_table_json_and_a_plot(run, tmp_path: Path) -> None:
    out, truth, *_ = run
    plot = tmp_path / "curves.png"
    path, _, dataset = truth.rpartition(":")
    arguments = ["sweep", out, path, "--truth-dataset", dataset, "--thresholds", "0.3:0.6:0.1"]
    result = CliRunner().invoke(app, [*arguments, "--plot", str(plot)], catch_exceptions=False)
    assert result.exit_code == 0
    expected = evaluate_sweep(out, truth, thresholds=[0.3, 0.4, 0.5, 0.6])
    rows = [line.split() for line in result.stdout.splitlines()[1:5]]
    assert [float(row[0]) for row in rows] == [0.6, 0.5, 0.4, 0.3]
    assert [float(row[1]) for row in rows] == pytest.approx([p.voi.total for p in expected.points], abs=1e-4)
    assert [row[0] for row in rows if row[-1] == "*"] == [f"{expected.best.threshold:g}"]
    for words in ("best VOI", "true 0 is ignored", "at least the threshold", "tree down to 0.3", str(BOX)):
        assert words in result.stdout
    with Image.open(plot) as picture:
        assert picture.size == (960, 600)
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert [point["voi_sum"] for point in told["points"]] == [p.voi.total for p in expected.points]
    assert told["best_threshold_voi"] == expected.best.threshold
    default = evaluate_sweep(out, truth)
    assert [default.points[0].threshold, default.points[-1].threshold] == [1.0, 0.3]


def test_mistakes_are_one_line(run, tmp_path: Path) -> None:
    out, truth, *_ = run
    with pytest.raises(InvalidInput, match=r"goes down to 0\.3, got 0\.1"):
        evaluate_sweep(out, truth, thresholds=[0.5, 0.1])
    with pytest.raises(InvalidInput, match="within the predicted"):
        evaluate_sweep(out, truth, thresholds=[0.5], box="0:9,0:9,0:9")
    with pytest.raises(NotFound, match="not there"):
        evaluate_sweep(str(tmp_path), truth)
    for wrong in ("0.1;0.2", "0.5:0.1:0.1", "0.1:0.5:0", "0.1:0.2", "1/0"):
        result = CliRunner().invoke(app, ["sweep", out, truth, "--thresholds", wrong])
        assert isinstance(result.exception, InvalidInput), wrong
    Folder(out).write_json("run.json", {"box": str(BOX)})
    with pytest.raises(InvalidVolume, match="description of a segmentation"):
        evaluate_sweep(out, truth)
