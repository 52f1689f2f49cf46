import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.catalog import CARD_NAME, Model, ModelCard, Normalisation, PatchRules, find_model, list_models
from models.errors import InvalidModel, InvalidVolume, NotFound


@pytest.fixture
def folder(model: Model, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model.folder, tmp_path / "zoo" / "small"))


def _edit(folder: Path, **changes: object) -> None:
    path = folder / CARD_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_card_survives_the_way_through_json(model: Model) -> None:
    assert ModelCard.from_json(model.card.to_json()) == model.card


def test_found_by_name_folder_and_card(folder: Path) -> None:
    by_name = find_model("small", zoo=folder.parent)
    assert by_name == find_model(folder) == find_model(folder / CARD_NAME)
    assert by_name.onnx_path == folder / "model.onnx"
    assert list_models(folder.parent) == ["small"]


@pytest.mark.parametrize("name", ["nobody", "", "no/such/folder"])
def test_unknown_model_lists_the_known_ones(folder: Path, name: str) -> None:
    with pytest.raises(NotFound, match="known models: small"):
        find_model(name, zoo=folder.parent)


def test_missing_file(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    with pytest.raises(NotFound, match=r"model\.onnx is missing"):
        find_model(folder)


def test_truncated_file(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InvalidModel, match=r"bytes, the card says"):
        find_model(folder)


def test_changed_file(folder: Path) -> None:
    path = folder / "model.onnx"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidModel, match="SHA-256"):
        find_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "unknown key colour"),
        ({"patch": {"divisor": [4, 4, 4], "shape": [24, 24, 24]}}, r"card\.json\.patch: missing key margin"),
        ({"voxel_size_nm": [10, 10]}, "voxel_size_nm: expected"),
        ({"voxel_size_nm": [10, 10, "10"]}, r"voxel_size_nm\[2\]: expected float"),
        ({"voxel_size_nm": [10, 10, -1]}, "positive voxel size"),
        ({"axes": "xyz"}, "axes"),
        ({"output": {"kind": "affinity", "offsets": [[-1, 0, 0]], "anchor": "middle"}}, "anchor"),
        ({"normalisation": {"dtype": "uint9", "shift": 0, "scale": 1}}, "real dtype"),
        ({"normalisation": {"dtype": "uint8", "shift": 0, "scale": 0}}, "finite constants"),
        ({"patch": {"divisor": [4, 4, 4], "shape": [22, 24, 24], "margin": [2, 2, 2]}}, "22, divisor 4"),
        ({"file": {"name": "../model.onnx", "sha256": "0" * 64, "size": 1}}, "plain name"),
        ({"segmentation": {"threshold": 1.5}}, "affinities from 0 to 1"),
        ({"segmentation": {"low": 0.5, "high": 0.4}}, "low must not exceed high"),
        ({"segmentation": {"high": 1.1}}, "affinities from 0 to 1"),
        ({"segmentation": {"high": float("nan")}}, "affinities from 0 to 1"),
        ({"segmentation": {"limit": 0.5}}, r"card\.json\.segmentation: unknown key limit"),
        ({"scores": [{"dataset": "d", "split": "s", "values": {"voi": "good"}}]}, r"scores\[0\]\.values\.voi"),
    ],
)
def test_broken_card_is_refused(folder: Path, changes: dict[str, object], message: str) -> None:
    _edit(folder, **changes)
    with pytest.raises(InvalidModel, match=message):
        find_model(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"])
def test_card_that_is_no_json_object(folder: Path, content: bytes) -> None:
    (folder / CARD_NAME).write_bytes(content)
    with pytest.raises(InvalidModel, match=r"card\.json"):
        find_model(folder)


@pytest.mark.parametrize("size", [(10.0, 10.0, 10.0), (8.0, 12.0, 10.0)])
def test_near_voxel_size_passes(model: Model, size: tuple[float, float, float]) -> None:
    model.card.check_voxel_size(size)


@pytest.mark.parametrize("size", [(12.1, 10.0, 10.0), (10.0, 10.0, 7.9), (float("nan"), 10.0, 10.0)])
def test_other_voxel_size_is_refused_unless_told_otherwise(model: Model, size: tuple[float, float, float]) -> None:
    with pytest.raises(InvalidModel, match="expects voxels of 10×10×10 nm"):
        model.card.check_voxel_size(size)
    if size[0] == size[0]:
        model.card.check_voxel_size(size, tolerance=0.25)


def test_normalisation_is_the_stated_formula() -> None:
    rule = Normalisation("uint8", 127.5, 4 / 255)
    np.testing.assert_allclose(rule.apply(np.array([0, 255], np.uint8)), [-2, 2], rtol=1e-6)


def test_dtype_must_be_the_cards() -> None:
    rule = Normalisation("uint8", 127.5, 4 / 255)
    rule.check_dtype(np.dtype("uint8"))
    for wrong in ("uint16", "float32", "bool", "complex64", "int8"):
        with pytest.raises(InvalidVolume, match=f"uint8, got {wrong}"):
            rule.check_dtype(np.dtype(wrong))
    Normalisation("float32", 0, 1).check_dtype(np.dtype("float64"))


def test_patch_rules_leave_room(model: Model) -> None:
    with pytest.raises(InvalidModel, match="overlap 12 on z"):
        replace(model.card, patch=PatchRules((4, 4, 4), (24, 24, 24), (2, 2, 2), (12, 0, 0)))


def test_catalog_needs_neither_torch_nor_an_engine() -> None:
    code = (
        "import sys, models.catalog, models.tta, infra.planner, infra.runtimes.session, services.predict\n"
        "print([m for m in ('torch', 'onnx', 'openvino', 'tensorrt', 'ray') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
