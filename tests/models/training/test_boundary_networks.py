"""Training of networks that say what is inside of an object: valid networks, their validation, recursion, FFT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from infra.runtimes.openvino_session import run_onnx
from models.catalog import Training
from models.errors import InvalidConfig, InvalidModel
from models.geometry import NEAREST, Triple
from models.networks.family import NetworkConfig
from models.networks.fft_convolution import FFTConv3d
from models.networks.rsunet import RSUNetConfig
from models.networks.vd2d import VD2D, VD2DConfig
from models.networks.vd2d3d import VD2D3D, VD2D3DConfig
from models.training.augmentation import AugmentationOptions
from models.training.export import export_checkpoint
from models.training.loop import LoopOptions, Trainer
from models.training.sampler import LabelledVolume, PatchSampler
from models.training.targets import BACKGROUND, INSIDE
from models.training.validation import affinities_of_inside, predict, section_parts, section_scores
from services.predict import Predictor

NM = (50.0, 4.0, 4.0)
FIRST = VD2DConfig(1, (2, 2, 3, 3, 4))
RECURSIVE = VD2D3DConfig(1, (2, 3, 3, 4, 4), FIRST)


@pytest.fixture(scope="module")
def volume() -> LabelledVolume:
    """Columns through all sections, 20 voxels wide, with membranes of two voxels, dark and labelled as such."""
    place = np.arange(200)
    wall = place % 22 < 2
    labels = (1 + place // 22)[:, None] * 100 + (1 + place // 22)[None]
    labels = np.where(wall[:, None] | wall[None], BACKGROUND, labels)
    image = np.where(labels < 0, 50, 190).astype(np.uint8)
    return LabelledVolume(np.repeat(image[None], 6, 0), np.repeat(labels[None], 6, 0), NM)


def trainer(volume: LabelledVolume, network: NetworkConfig, patch: Triple, steps: int, **given: object) -> Trainer:
    augmentation = AugmentationOptions.none(isotropic=False)
    sampler = PatchSampler((volume,), INSIDE, patch, augmentation, 0, 0.0, 0.5, seed=2)
    options = {"warmup_steps": 2, "validate_every": 1000, "average_decay": 0.5, **given}
    return Trainer(network, sampler, LoopOptions(steps=steps, **options))  # type: ignore[arg-type]


def test_a_valid_network_learns_the_middle_of_its_patches(volume: LabelledVolume) -> None:
    made = trainer(volume, VD2DConfig(1, (4, 4, 6, 6, 8)), (1, 124, 124), 40, learning_rate=0.01)
    before = made.validate((volume,))["loss"]
    losses = [progress.loss for progress in made.run()]
    assert np.median(losses[-5:]) < 0.6 * losses[0]
    after = made.validate((volume,))
    assert after["loss"] < 0.6 * before
    assert {"voi", "adapted_rand_error", "threshold"} <= {*after}


def test_recursion_takes_the_first_network_leaves_it_and_is_exported_as_one(
    volume: LabelledVolume, tmp_path: Path
) -> None:
    first = trainer(volume, FIRST, (1, 112, 112), 2)
    list(first.run())
    first.save(tmp_path / "first.pt", NM, {})
    made = trainer(volume, RECURSIVE, (5, 196, 196), 2)
    made.initialise(tmp_path / "first.pt")
    made.recur(tmp_path / "first.pt")
    list(made.run())
    for network in (made.network, made.averaged):
        assert isinstance(network, VD2D3D)
        assert network.first is not None
        for name, value in first.averaged.state_dict().items():
            assert torch.equal(network.first.state_dict()[name], value), name
    made.save(tmp_path / "last.pt", NM, {})
    model = export_checkpoint(
        tmp_path / "last.pt", tmp_path / "model", run=run_onnx, training=Training("synthetic", "none")
    )
    assert model.card.output.offsets == NEAREST
    assert model.card.patch.margin == (3, 97, 97)  # half of 5 x 193 x 193, and one for the edge's other end
    assert model.card.architecture.family == "vd2d3d"
    image = volume.image[:, :90, :110]
    inside = predict(made._probabilities, image, (1, 1, 1), made.network.config.margin)
    expected = np.clip(np.rint(affinities_of_inside(inside) * 255), 1, 255)
    for runtime in ("openvino", "torch"):
        affinities = Predictor(model, runtime=runtime, precision="fp32").predict(image)
        for axis in range(3):  # edges that leave the volume mean nothing
            kept = (axis, *(slice(int(axis == a), None) for a in range(3)))
            assert np.abs(affinities[kept].astype(int) - expected[kept]).max() <= 4, runtime  # bf16 in the trainer


def test_a_vd2d3d_begins_with_the_layers_of_a_vd2d() -> None:
    torch.manual_seed(0)
    trained, begun = VD2D(FIRST), VD2D3D(VD2D3DConfig(1, (2, 2, 3, 5, 6), FIRST))
    begun.begin_with(trained)
    image = torch.randn(1, 1, 1, 40, 40)
    with torch.no_grad():
        both = torch.cat([image, torch.randn_like(image)], dim=1)  # the map's weights begin with 0
        for own, theirs in zip(begun.stack.layers[:9], trained.stack.layers[:9], strict=True):
            both, image = own(both), theirs(image)
            torch.testing.assert_close(both, image)
    with pytest.raises(InvalidModel, match="no layers in common"):
        VD2D3D(VD2D3DConfig(1, (3, 2, 3, 5, 6))).begin_with(trained)
    with pytest.raises(InvalidModel, match="not the configured one"):
        trained.begin_with(VD2D(VD2DConfig(1, (2, 2, 3, 3, 5))))


def test_large_kernels_are_transformed_where_that_is_faster(
    volume: LabelledVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.networks.convolution_choice.Measurements.of", lambda *_: (2.0, 1.0))
    runs = []
    for convolutions in ("direct", "fastest"):
        made = trainer(volume, FIRST, (1, 112, 112), 3, convolutions=convolutions, precision="fp32")
        assert any(isinstance(m, FFTConv3d) for m in made.network.modules()) == (convolutions == "fastest")
        runs.append([progress.loss for progress in made.run()])
    assert runs[1][0] == pytest.approx(runs[0][0], rel=1e-5)
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-2)  # the optimiser divides by tiny gradients


def test_sections_are_scored_one_by_one() -> None:
    labels = np.full((2, 60, 60), BACKGROUND)
    labels[:, 1:29, 1:59], labels[:, 31:59, 1:59] = 4, 7
    labels[1, 1:59, 28:31] = BACKGROUND  # two parts of each label in the second section
    parts = section_parts(labels[1])
    assert len(np.unique(parts[parts > 0])) == 4
    assert ((parts > 0) == (labels[1] > 0)).all()
    dense = section_parts(np.array([[5, 7, 5, 0], [5, 7, 5, 5], [0, 0, -1, 5]]))
    np.testing.assert_array_equal(dense, [[1, 2, 3, 0], [1, 2, 3, 3], [0, 0, 0, 3]])
    inside = (labels > 0).astype(np.float32)[None]
    perfect = section_scores(inside, labels)
    assert perfect["voi"] == pytest.approx(0, abs=1e-9)
    assert perfect["adapted_rand_error"] == pytest.approx(0, abs=1e-9)
    open_wall = inside.copy()
    open_wall[0, 0, 29:31] = 1
    assert section_scores(open_wall, labels)["voi_merge"] == pytest.approx(0.5)  # one bit in one of two sections


def test_what_does_not_fit_is_refused(volume: LabelledVolume, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="twice the margin"):
        trainer(volume, FIRST, (1, 108, 108), 1)
    with pytest.raises(InvalidConfig, match="maximin"):
        trainer(volume, FIRST, (1, 112, 112), 1, maximin_weight=0.1)
    with pytest.raises(InvalidConfig, match="single channel"):
        trainer(volume, VD2DConfig(2, FIRST.widths), (1, 112, 112), 1)
    with pytest.raises(InvalidConfig, match="convolutions"):
        trainer(volume, FIRST, (1, 112, 112), 1, convolutions="slow")
    plain = trainer(volume, FIRST, (1, 112, 112), 1)
    plain.save(tmp_path / "first.pt", NM, {})
    with pytest.raises(InvalidModel, match="first network"):
        plain.recur(tmp_path / "first.pt")
    other = trainer(volume, RSUNetConfig.anisotropic(1, (2, 3)), (2, 8, 8), 1)
    with pytest.raises(InvalidModel, match=r"first\.pt: network.*not the configured one"):
        other.initialise(tmp_path / "first.pt")
