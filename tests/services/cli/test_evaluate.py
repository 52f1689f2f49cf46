import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from infra.volumes import VolumeInfo, create_volume
from models.errors import InvalidInput, InvalidVolume, NotFound, PetavoxelError
from models.geometry import Box
from models.metrics.contingency import contingency_table
from models.metrics.cremi import cremi_score
from models.metrics.rand import adapted_rand
from models.metrics.voi import variation_of_information
from services.cli.evaluate import app
from services.evaluate import evaluate_segmentation

SHAPE = (30, 41, 52)


@pytest.fixture
def labels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 5, (3, 5, 6)), np.ones((10, 9, 9), int))[:, : SHAPE[1], : SHAPE[2]]
    pred = np.where(rng.random(SHAPE) < 0.1, 0, truth * (1 << 60)).astype(np.uint64)
    return pred, truth.astype(np.uint16)


@pytest.fixture
def urls(tmp_path: Path, labels) -> tuple[str, str]:
    pred, truth = labels
    np.savez(tmp_path / "pred.npz", labels=pred)
    with h5py.File(tmp_path / "truth.h5", "w") as file:
        file["ids"] = truth
    return f"{tmp_path}/pred.npz:labels", f"{tmp_path}/truth.h5:/ids"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["segmentation", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_scores_of_chunks_are_those_of_the_arrays(urls, labels, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = contingency_table(*labels)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr("services.label_pair._EXTENT", 16)
    scores = evaluate_segmentation(*urls, on_progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 10
    assert seen[-1] == (expected.voxels + expected.ignored,) * 2
    assert scores.voi == variation_of_information(expected)
    assert scores.rand == adapted_rand(expected)
    assert (scores.voxels_scored, scores.voxels_ignored) == (expected.voxels, expected.ignored)
    assert scores.voxels_unlabelled == expected.unlabelled > 0


def test_json_is_one_object(urls, labels) -> None:
    found = json.loads(run(*urls, "--json"))
    table = contingency_table(*labels)
    voi, rand = variation_of_information(table), adapted_rand(table)
    assert (found["voi_split"], found["voi_merge"], found["voi_sum"]) == (voi.split, voi.merge, voi.total)
    assert found["adapted_rand_error"] == rand.error
    assert (found["adapted_rand_precision"], found["adapted_rand_recall"]) == (rand.precision, rand.recall)
    assert (found["voxels_scored"], found["voxels_ignored"]) == (table.voxels, table.ignored)
    assert found["cremi_score"] == cremi_score(voi, rand)
    low, high = found["intervals"]["voi_sum"]
    assert low <= voi.total <= high
    assert found["conventions"] == {
        "ignored_truth": [0],
        "predicted_background": "segment",
        "voi_unit": "bits",
        "interval": "bootstrap over 4 objects, 1000 draws, 0.95",
    }
    assert json.loads(run(*urls, "--json", "--samples", "0"))["intervals"] == {}


@pytest.mark.parametrize(
    ("background", "words"),
    [("segment", "one segment"), ("singletons", "a segment of its own"), ("ignore", "left out")],
)
def test_report_says_the_conventions(urls, labels, background: str, words: str) -> None:
    text = run(*urls, "--pred-background", background)
    assert words in text
    assert "true 0 is ignored" in text
    expected = variation_of_information(contingency_table(*labels), pred_background=background)
    assert f"{expected.total:.4f} bits (split {expected.split:.4f}, merge {expected.merge:.4f})" in text
    if background == "ignore":
        counted = int(((labels[0] > 0) & (labels[1] > 0)).sum())
        assert f"{counted} of {labels[0].size}" in text


def test_box_of_both_and_prediction_of_the_box_alone(urls, labels, tmp_path: Path) -> None:
    box = Box((3, 5, 7), (25, 33, 50))
    pred, truth = labels
    expected = variation_of_information(contingency_table(pred[box.slices()], truth[box.slices()]))
    assert evaluate_segmentation(*urls, box=box).voi == expected
    np.savez(tmp_path / "part.npz", labels=pred[box.slices()])
    part = f"{tmp_path}/part.npz:labels"
    assert evaluate_segmentation(part, urls[1], box=str(box)).voi == expected
    with pytest.raises(InvalidVolume, match=r"expected the shape of the truth \(30, 41, 52\).*got \(22, 28, 43\)"):
        evaluate_segmentation(part, urls[1])


def test_what_cannot_be_scored_is_one_line(urls, tmp_path: Path) -> None:
    np.save(tmp_path / "float.npy", np.zeros(SHAPE, np.float32))
    np.save(tmp_path / "channels.npy", np.zeros((3, *SHAPE), np.uint8))
    np.save(tmp_path / "zeros.npy", np.zeros(SHAPE, np.uint8))
    cases: list[tuple[str, str, dict[str, str], type[PetavoxelError], str]] = [
        (f"{tmp_path}/none.npy", urls[1], {}, NotFound, "none.npy"),
        (urls[0], f"{tmp_path}/truth.h5:/nothing", {}, NotFound, "nothing"),
        (f"{tmp_path}/float.npy", urls[1], {}, InvalidVolume, "integer labels .* got float32"),
        (f"{tmp_path}/channels.npy", urls[1], {}, InvalidVolume, "integer labels"),
        (urls[0], f"{tmp_path}/zeros.npy", {}, InvalidInput, "at least one voxel to score"),
        (*urls, {"box": "0:99,0:1,0:1"}, InvalidInput, "within the truth's 0:30,0:41,0:52"),
        (*urls, {"box": "nonsense"}, InvalidInput, "z0:z1,y0:y1,x0:x1"),
        (*urls, {"pred_background": "no"}, InvalidInput, "segment, singletons, ignore"),
    ]
    for pred, truth, options, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            evaluate_segmentation(pred, truth, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_volumes_that_lie_elsewhere_are_refused(tmp_path: Path, labels) -> None:
    def volume(name: str, size: float, offset: tuple[int, int, int]) -> str:
        info = VolumeInfo(shape=SHAPE, dtype=np.dtype("uint16"), voxel_size_nm=(size,) * 3, offset_voxels=offset)
        created = create_volume(f"{tmp_path}/{name}.zarr", info)
        created.write(created.box, labels[1])
        return created.url

    placed = volume("placed", 10, (100, 0, 0))
    assert evaluate_segmentation(placed, placed).voi.total == 0
    assert evaluate_segmentation(volume("unplaced", 10, (0, 0, 0)), placed).rand.error == 0
    with pytest.raises(InvalidVolume, match=r"offset of \(100, 0, 0\) voxels, got \(7, 0, 0\)"):
        evaluate_segmentation(volume("elsewhere", 10, (7, 0, 0)), placed)
    with pytest.raises(InvalidVolume, match="voxel size"):
        evaluate_segmentation(volume("coarser", 20, (100, 0, 0)), placed)
