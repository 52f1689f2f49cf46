import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from infra.volumes import open_volume
from models.errors import InvalidInput, InvalidVolume, NotFound
from models.geometry import Box
from services.cli.datasets import app
from services.datasets.prepare import prepare
from services.datasets.registry import DATASETS, find_dataset

SHAPE = (20, 24, 30)
DATA = Path(os.environ.get("PETAVOXEL_DATA", "/nonexistent"))


def shared(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs PETAVOXEL_DATA, the folder with {name}")
    return path


def image_and_labels(shape=SHAPE) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 9, (5, 4, 5)), np.ones((4, 6, 6), int))[tuple(map(slice, shape))]
    return rng.integers(0, 256, shape, dtype=np.uint8), labels


def hdf5(path: Path, dataset: str, voxels: np.ndarray, **attributes: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "a") as file:
        file[dataset] = voxels
        file[dataset].attrs.update(attributes)


def voxels(out: Path, sample: str, name: str) -> np.ndarray:
    volume = open_volume(f"{out}/{sample}/{name}.zarr")
    assert (out / sample / f"{name}.zarr" / "zarr.json").exists()
    return volume.read(volume.box)


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_says_its_terms_and_where_missing_files_are(name: str, tmp_path: Path) -> None:
    dataset = DATASETS[name]
    assert dataset.name == name
    shown = CliRunner().invoke(app, ["show", name], catch_exceptions=False).stdout
    for words in (dataset.licence, dataset.citation, dataset.where, *dataset.files):
        assert words in shown
    assert ("--accept-licence" in shown) == dataset.needs_acceptance
    with pytest.raises(NotFound, match="found no files") as caught:
        prepare(dataset, tmp_path, f"{tmp_path}/out", accepted=True)
    assert dataset.where in str(caught.value)
    with pytest.raises(NotFound, match="no such folder"):
        prepare(dataset, tmp_path / "none", f"{tmp_path}/out", accepted=True)
    if dataset.needs_acceptance:
        with pytest.raises(InvalidInput, match="--accept-licence"):
            prepare(dataset, tmp_path, f"{tmp_path}/out")


def test_list_and_unknown_names() -> None:
    listed = CliRunner().invoke(app, ["list"], catch_exceptions=False).stdout
    told = json.loads(CliRunner().invoke(app, ["list", "--json"], catch_exceptions=False).stdout)
    assert set(told) == {"axonem", "cremi", "fib25", "isbi2012", "snemi3d"}
    assert all(name in listed and told[name]["licence"] in listed for name in told)
    with pytest.raises(NotFound, match="axonem, cremi"):
        find_dataset("nothing")


def test_cremi_padded_with_marks_and_without_truth(tmp_path: Path) -> None:
    image, labels = image_and_labels((12, 20, 24))
    padded = np.zeros((16, 30, 40), np.uint8)
    padded[2:14, 5:25, 8:32] = image
    stored = labels.astype(np.uint64) << np.uint64(40)
    stored[:, :3] = np.uint64(2**64 - 1)
    stored[:, 3] = np.uint64(2**64 - 3)
    source = tmp_path / "from" / "deep"
    train, test = source / "sample_A_padded_20160501.hdf", source / "sample_A+_20160601.hdf"
    hdf5(train, "volumes/raw", padded, resolution=(40.0, 4.0, 4.0))
    hdf5(train, "volumes/labels/neuron_ids", stored, resolution=(40.0, 4.0, 4.0), offset=(80.0, 20.0, 32.0))
    hdf5(test, "volumes/raw", image, resolution=(40.0, 4.0, 4.0))
    (source / "sample_notes.txt").write_text("not data")
    out = tmp_path / "out"
    found = {sample.name: sample for sample in prepare(DATASETS["cremi"], tmp_path / "from", str(out), accepted=True)}
    assert set(found) == {"sample_A_padded_20160501", "sample_A+_20160601"}
    a = found["sample_A_padded_20160501"]
    assert a.splits == {
        "train": Box((2, 5, 8), (12, 25, 32)),
        "validation": Box((12, 5, 8), (14, 25, 32)),
    }
    expected, mask = np.zeros(padded.shape, np.uint64), np.zeros(padded.shape, np.uint8)
    expected[2:14, 9:25, 8:32] = stored[:, 4:]
    mask[2:14, 9:25, 8:32] = 1
    np.testing.assert_array_equal(voxels(out, a.name, "image"), padded)
    np.testing.assert_array_equal(voxels(out, a.name, "labels"), expected)
    np.testing.assert_array_equal(voxels(out, a.name, "mask"), mask)
    assert a.objects == np.unique(expected[expected > 0]).size
    assert a.annotated == pytest.approx(mask.mean())
    assert found["sample_A+_20160601"].splits == {"test": Box((0, 0, 0), (12, 20, 24))}
    assert not (out / "sample_A+_20160601" / "labels.zarr").exists()
    told = json.loads((out / "dataset.json").read_text())
    assert told["licence"] == DATASETS["cremi"].licence
    assert [s["splits"] for s in told["samples"]][1] == {"train": "2:12,5:25,8:32", "validation": "12:14,5:25,8:32"}
    info = open_volume(f"{out}/{a.name}/labels.zarr").info
    assert info.voxel_size_nm == (40, 4, 4)
    assert info.attributes["dataset"] == "cremi"


def test_cremi_as_published(tmp_path: Path) -> None:
    source = shared("cremi_mini")
    found = prepare(DATASETS["cremi"], source, f"{tmp_path}/out", accepted=True)
    assert [sample.shape for sample in found] == [(5, 500, 500)] * 2
    with h5py.File(source / "sample_B_20160708_frags_46_50.hdf") as file:
        truth, raw = file["volumes/labels/neuron_ids"][:], file["volumes/raw"][:]
    labels = voxels(tmp_path / "out", "sample_B_20160708_frags_46_50", "labels")
    np.testing.assert_array_equal(labels, np.where(truth < 0, 0, truth))
    np.testing.assert_array_equal(voxels(tmp_path / "out", "sample_B_20160708_frags_46_50", "image"), raw)


def test_snemi3d(tmp_path: Path) -> None:
    image, labels = image_and_labels()
    tifffile.imwrite(tmp_path / "train-input.tif", image)
    tifffile.imwrite(tmp_path / "train-labels.tif", labels.astype(np.uint16))
    tifffile.imwrite(tmp_path / "test-input.tif", image[::-1])
    out = tmp_path / "out"
    test, train = sorted(prepare(DATASETS["snemi3d"], tmp_path, str(out), accepted=True), key=lambda s: s.name)
    np.testing.assert_array_equal(voxels(out, "train", "labels"), labels)
    np.testing.assert_array_equal(voxels(out, "test", "image"), image[::-1])
    assert train.voxel_size_nm == (30, 6, 6)
    assert [str(box) for box in train.splits.values()] == ["0:16,0:24,0:30", "16:20,0:24,0:30"]
    assert list(test.splits) == ["test"]


def test_snemi3d_labels_of_real_neurons(tmp_path: Path) -> None:
    with np.load(shared("snemi3d") / "snemi3d_train_labels.npz") as bundle:
        truth = bundle["human_labels"][:20]
    tifffile.imwrite(tmp_path / "train-labels.tif", truth)
    tifffile.imwrite(tmp_path / "train-input.tif", (truth % 251).astype(np.uint8))
    (found,) = prepare(DATASETS["snemi3d"], tmp_path, f"{tmp_path}/out", accepted=True)
    np.testing.assert_array_equal(voxels(tmp_path / "out", "train", "labels"), truth)
    assert found.objects == np.unique(truth[truth > 0]).size


def test_isbi2012_sections_become_cross_sections(tmp_path: Path) -> None:
    from skimage.measure import label

    with np.load(shared("isbi2012") / "isbi2012_train.npz") as bundle:
        raw, membrane = bundle["raw"], bundle["isbi_membrane_label"]
    tifffile.imwrite(tmp_path / "train-volume.tif", raw)
    tifffile.imwrite(tmp_path / "train-labels.tif", np.where(membrane, 0, 255).astype(np.uint8))
    (found,) = prepare(DATASETS["isbi2012"], tmp_path, f"{tmp_path}/out", accepted=True)
    labels = voxels(tmp_path / "out", "train", "labels")
    np.testing.assert_array_equal(labels == 0, membrane)
    assert found.voxel_size_nm == (50, 4, 4)
    total = 0
    for section, inside in zip(labels, ~membrane, strict=True):
        parts = label(inside, connectivity=1)
        pairs = np.unique(np.stack([section.ravel(), parts.ravel().astype(np.uint64)]), axis=1)
        assert pairs.shape[1] == parts.max() + 1  # one to one
        total += parts.max()
    assert found.objects == total  # no id in two sections
    np.testing.assert_array_equal(voxels(tmp_path / "out", "train", "background") == 1, membrane)
    (told,) = json.loads((tmp_path / "out" / "dataset.json").read_text())["samples"]
    assert told["background"] == "train/background.zarr"


def test_isbi2012_refuses_what_is_no_membrane_image(tmp_path: Path) -> None:
    image, labels = image_and_labels()
    tifffile.imwrite(tmp_path / "train-volume.tif", image)
    tifffile.imwrite(tmp_path / "train-labels.tif", labels.astype(np.uint8))
    with pytest.raises(InvalidVolume, match=r"train-labels\.tif: labels: expected membrane images of two values"):
        prepare(DATASETS["isbi2012"], tmp_path, f"{tmp_path}/out", accepted=True)


def test_fib25_in_the_published_layout(tmp_path: Path) -> None:
    image, labels = image_and_labels()
    for block in ("training_sample2", "validation_sample"):
        hdf5(tmp_path / block / "grayscale_maps.h5", "raw", image)
        hdf5(tmp_path / block / "groundtruth.h5", "stack", labels.astype(np.int64))
    hdf5(tmp_path / "test_sample" / "grayscale_maps.h5", "raw", image)
    result = CliRunner().invoke(
        app, ["prepare", "fib25", f"{tmp_path}/out", "--from", str(tmp_path)], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "CC BY 3.0" in result.stdout.splitlines()[0]
    told = {s["name"]: s for s in json.loads((tmp_path / "out" / "dataset.json").read_text())["samples"]}
    assert {name: list(s["splits"]) for name, s in told.items()} == {
        "training_sample2": ["train"],
        "validation_sample": ["validation"],
        "test_sample": ["test"],
    }
    np.testing.assert_array_equal(voxels(tmp_path / "out", "validation_sample", "labels"), labels)
    again = CliRunner().invoke(
        app, ["prepare", "fib25", f"{tmp_path}/out", "--from", str(tmp_path)], catch_exceptions=False
    )
    assert again.exit_code == 0  # replaced


def test_axonem_pairs_by_species(tmp_path: Path) -> None:
    image, labels = image_and_labels()
    for species, places in (("human", range(4)), ("EM30-M-train-9vol", range(1))):
        for place in places:
            hdf5(tmp_path / species / f"im_{place}-448-64_pad.h5", "main", np.pad(image, [(2, 2), (5, 5), (4, 4)]))
            hdf5(tmp_path / species / f"seg_{place}-448-64_pad.h5", "main", labels.astype(np.uint16))
    hdf5(tmp_path / "human" / "im_675-800-800_pad.h5", "main", image)  # published without labels
    hdf5(tmp_path / "human" / "valid_mask.h5", "main", labels)
    out = tmp_path / "out"
    found = {sample.name: sample for sample in prepare(DATASETS["axonem"], tmp_path, str(out))}
    assert {name: list(sample.splits) for name, sample in found.items()} == {
        "human_0-448-64": ["train"],
        "human_1-448-64": ["train"],
        "human_2-448-64": ["validation"],
        "human_3-448-64": ["validation"],
        "mouse_0-448-64": ["train"],
    }
    assert found["human_0-448-64"].voxel_size_nm == (30, 8, 8)
    assert found["mouse_0-448-64"].voxel_size_nm == (40, 8, 8)
    inside = Box((2, 5, 4), (22, 29, 34))
    assert found["human_2-448-64"].splits["validation"] == inside
    np.testing.assert_array_equal(voxels(out, "human_2-448-64", "labels")[inside.slices()], labels)
    assert voxels(out, "human_2-448-64", "mask").sum() == labels.size


def test_files_that_are_not_as_published_are_named(tmp_path: Path) -> None:
    image, labels = image_and_labels()
    hdf5(tmp_path / "a" / "im_0-0-0.h5", "main", image)
    hdf5(tmp_path / "a" / "seg_0-0-0.h5", "main", labels)
    with pytest.raises(InvalidInput, match="human"):
        prepare(DATASETS["axonem"], tmp_path / "a", f"{tmp_path}/out")
    hdf5(tmp_path / "human" / "im_0-0-0.h5", "main", image)
    hdf5(tmp_path / "human" / "seg_0-0-0.h5", "other", labels)
    with pytest.raises(InvalidVolume, match="dataset 'main', got other"):
        prepare(DATASETS["axonem"], tmp_path / "human", f"{tmp_path}/out")
    hdf5(tmp_path / "b" / "x" / "grayscale_maps.h5", "raw", image.astype(np.float32))
    with pytest.raises(InvalidVolume, match="uint8, got float32"):
        prepare(DATASETS["fib25"], tmp_path / "b", f"{tmp_path}/out")
    hdf5(tmp_path / "c" / "x" / "grayscale_maps.h5", "raw", image)
    hdf5(tmp_path / "c" / "x" / "groundtruth.h5", "stack", labels - 3)
    with pytest.raises(InvalidVolume, match="at least 0"):
        prepare(DATASETS["fib25"], tmp_path / "c", f"{tmp_path}/out")
