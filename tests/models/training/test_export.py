from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from infra.runtimes.openvino_session import run_onnx
from models.catalog import Model, Segmentation, Training, find_model, sha256_of
from models.errors import InvalidModel
from models.networks.inference import Probabilities, fold_batch_norm, rebuild
from models.networks.rsunet import RSUNet, RSUNetConfig
from models.training.export import (
    MAX_BYTES,
    default_patch,
    export_checkpoint,
    export_onnx,
    parity_error,
    parity_patches,
    write_model,
)
from models.training.loop import read_checkpoint
from models.training.validation import WATERSHED_HIGH

TRAINING = Training("random weights", "none")


def _network(checkpoint: Path) -> RSUNet:
    content = read_checkpoint(checkpoint)
    network = RSUNet(RSUNetConfig(**content["network"]["config"]))
    network.load_state_dict(content["state"])
    return network.eval()


def test_card_says_what_the_checkpoint_says(model: Model) -> None:
    card = model.card
    assert card.output.offsets == ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
    assert card.normalisation.shift == 127.5
    assert card.voxel_size_nm == (10, 10, 10)
    assert card.patch.divisor == (4, 4, 4)
    assert card.architecture.config["out_channels"] == 3
    assert card.training.details["steps"] == 3
    assert card.name == "small"
    assert card.file.sha256 == sha256_of(model.onnx_path)
    assert find_model(model.folder) == model


def test_file_stands_alone_and_is_valid(model: Model) -> None:
    graph = onnx.load(model.onnx_path, load_external_data=False)
    onnx.checker.check_model(graph, full_check=True)
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    assert [entry.version for entry in graph.opset_import if entry.domain == ""] == [20]
    dimensions = graph.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dimensions] == ["b", 1, "z", "y", "x"]
    assert [p.name for p in model.folder.iterdir() if p.suffix not in {".onnx", ".json"}] == []
    assert not any(node.op_type == "BatchNormalization" for node in graph.graph.node)
    text = model.onnx_path.read_bytes()
    assert b".py" not in text
    assert str(Path(__file__).parents[3]).encode() not in text


def test_only_the_nearest_neighbour_channels_are_kept(model: Model, checkpoint: Path) -> None:
    patches = model.card.normalisation.apply(parity_patches((4, 4, 4)))
    with torch.inference_mode():
        all_channels = torch.sigmoid(_network(checkpoint)(torch.from_numpy(patches))).numpy()
    kept = run_onnx(model.onnx_path, patches)
    assert kept.shape[1] == 3
    assert np.abs(kept - all_channels[:, :3]).max() < 1e-4
    assert np.abs(kept - all_channels[:, 3:]).max() > 0.1


def test_exporting_twice_gives_the_same_bytes(model: Model, checkpoint: Path, tmp_path: Path) -> None:
    again = export_checkpoint(checkpoint, tmp_path / "again", run=run_onnx, training=TRAINING, name="x", version="7")
    assert again.card.file == model.card.file
    assert (again.card.name, again.card.version) == ("x", "7")


def test_folding_keeps_the_function(checkpoint: Path) -> None:
    network = _network(checkpoint)
    patches = torch.randn(1, 1, 8, 12, 16, generator=torch.Generator().manual_seed(0))
    folded = fold_batch_norm(network)
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in folded.modules())
    assert any(isinstance(module, torch.nn.BatchNorm3d) for module in network.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(patches), network(patches), atol=1e-4, rtol=1e-4)


def test_weights_can_be_read_back_by_name(model: Model, checkpoint: Path) -> None:
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(model.onnx_path).graph.initializer}
    weights = {name: value for name, value in tensors.items() if name.startswith("network.")}
    patches = model.card.normalisation.apply(parity_patches((4, 4, 4)))
    assert parity_error(rebuild(model.card.architecture, weights), model.onnx_path, patches, run_onnx) < 1e-4
    weights.pop("network.head.weight")
    with pytest.raises(InvalidModel, match=r"network\.head\.weight"):
        rebuild(model.card.architecture, weights)


@pytest.mark.parametrize("spoiled", [0.001, np.nan])
def test_nothing_is_written_where_the_engine_disagrees(checkpoint: Path, tmp_path: Path, spoiled: float) -> None:
    def wrong(path: Path, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        result = run_onnx(path, patches)
        result[0, 1, 2, 3, 4] += spoiled
        return result

    with pytest.raises(InvalidModel, match="differ by"):
        export_checkpoint(checkpoint, tmp_path / "model", run=wrong, training=TRAINING)
    assert not (tmp_path / "model").exists()


def test_parity_is_checked_on_the_given_image(checkpoint: Path, tmp_path: Path) -> None:
    seen = []

    def watching(path: Path, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(patches)
        return run_onnx(path, patches)

    image = np.random.default_rng(0).integers(0, 256, (40, 50, 70), dtype=np.uint8)
    export_checkpoint(checkpoint, tmp_path / "model", run=watching, training=TRAINING, image=image)
    np.testing.assert_allclose(seen[0][0, 0, 0, 0, :3], (image[0, 0, :3] - 127.5) * 4 / 255, rtol=1e-5)
    assert parity_patches((1, 8, 8), image[:5]).shape == (2, 1, 5, 48, 64)  # serial sections may be few
    with pytest.raises(InvalidModel, match="uint8 image of at least"):
        export_checkpoint(checkpoint, tmp_path / "model", run=run_onnx, training=TRAINING, image=image[:3])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offsets", [[-3, 0, 0], [0, -1, 0], [0, 0, -1]], "nearest-neighbour"),
        ("network", {"family": "transformer", "config": {"out_channels": 6}}, "one of the families rsunet"),
        ("network", {"family": "rsunet", "config": {"out_channels": 6, "wings": 2}}, "wings"),
        ("state", {}, r"head\.weight"),
    ],
)
def test_foreign_checkpoints_are_refused(checkpoint: Path, tmp_path: Path, key: str, value: Any, message: str) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, key: value}, tmp_path / "other.pt")
    with pytest.raises(InvalidModel, match=message):
        export_checkpoint(tmp_path / "other.pt", tmp_path / "model", run=run_onnx, training=TRAINING)


def test_the_card_recommends_the_threshold_of_the_validation(model: Model, checkpoint: Path, tmp_path: Path) -> None:
    assert model.card.segmentation == Segmentation()
    content = torch.load(checkpoint, weights_only=True)
    content["provenance"] = {**content.get("provenance", {}), "validation": {"voi": 1.0, "threshold": 0.4}}
    torch.save(content, tmp_path / "best.pt")
    card = export_checkpoint(tmp_path / "best.pt", tmp_path / "model", run=run_onnx, training=TRAINING).card
    assert card.segmentation == Segmentation(threshold=0.4)
    assert round(255 * card.segmentation.high) == WATERSHED_HIGH


def test_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"no\.pt"):
        export_checkpoint(tmp_path / "no.pt", tmp_path / "model", run=run_onnx, training=TRAINING)


def test_networks_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    large = RSUNet(RSUNetConfig.isotropic(3, (8, 128)))
    assert sum(4 * p.numel() for p in large.parameters()) < MAX_BYTES
    export_onnx(large, tmp_path / "fits.onnx")
    larger = RSUNet(RSUNetConfig.isotropic(3, (8, 240)))
    assert sum(4 * p.numel() for p in larger.parameters()) > MAX_BYTES
    with pytest.raises(InvalidModel, match="limit"):
        export_onnx(larger, tmp_path / "large.onnx")


def test_anisotropic_networks_export_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = RSUNet(RSUNetConfig.anisotropic(3, (4, 6, 8))).eval()
    path = tmp_path / "flat.onnx"
    export_onnx(fold_batch_norm(network), path)
    patches = np.random.default_rng(0).standard_normal((3, 1, 5, 12, 8)).astype(np.float32)
    assert parity_error(Probabilities(network).eval(), path, patches, run_onnx) < 1e-5


def test_files_that_do_not_fit_the_card_are_not_written(model: Model, tmp_path: Path) -> None:
    other = tmp_path / "model.onnx"
    other.write_bytes(b"x" * model.card.file.size)
    with pytest.raises(InvalidModel, match="SHA-256"):
        write_model(tmp_path / "target", model.card, other)
    assert not (tmp_path / "target").exists()


def test_default_patches_follow_the_voxel_size() -> None:
    cubic = default_patch((10, 10, 10), (8, 8, 8))
    assert (cubic.shape, cubic.margin) == ((152, 152, 152), (12, 12, 12))
    thick = default_patch((40, 4, 4), (1, 8, 8))
    assert (thick.shape, thick.margin) == ((20, 152, 152), (2, 12, 12))


def test_synthetic_cells_look_like_an_image() -> None:
    patches = parity_patches((8, 8, 8))
    assert patches.shape == (2, 1, 32, 48, 64)
    assert patches.std() > 20
