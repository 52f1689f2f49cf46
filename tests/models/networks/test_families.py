"""What every network family must do; a family that registers is tested by being registered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from infra.runtimes.openvino_session import run_onnx
from models.catalog import Architecture
from models.errors import InvalidConfig, InvalidModel
from models.geometry import Triple
from models.networks.family import Network, NetworkConfig
from models.networks.inference import Probabilities, discarded, fold_batch_norm, rebuild
from models.networks.registry import FAMILIES, build, described, family_of, preset, read_config
from models.networks.vd2d import VD2DConfig
from models.networks.vd2d3d import VD2D3DConfig
from models.training.export import export_onnx, parity_error

WIDTHS = {"rsunet": (4, 6, 8), "vd2d": (2, 3, 4, 5, 6), "vd2d3d": (2, 3, 4, 5, 6)}
CONFIGS: dict[str, NetworkConfig] = {
    f"{family}-{name}": make(3, WIDTHS[family])
    for family, found in FAMILIES.items()
    for name, make in found.presets.items()
}
CONFIGS["vd2d-inside"] = VD2DConfig(1, WIDTHS["vd2d"])
CONFIGS["vd2d3d-recursive"] = VD2D3DConfig(1, WIDTHS["vd2d3d"], VD2DConfig(1, (2, 2, 3, 3, 4)))

EXPORTED = {name: config for name, config in CONFIGS.items() if config.out_channels == 3}
"""An export takes seconds; a recursive network of one channel is exported in `tests/models/training`."""

every_network = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def made(config: NetworkConfig) -> Network:
    torch.manual_seed(5)
    return build(config).eval()


def extents(config: NetworkConfig, core: Triple) -> tuple[int, ...]:
    """The image's extents for an output of about `core` voxels."""
    return tuple(d * -(-n // d) + 2 * m for n, d, m in zip(core, config.divisor, config.margin, strict=True))


def image(config: NetworkConfig, core: Triple = (3, 5, 7), batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 1, *extents(config, core), generator=torch.Generator().manual_seed(1))


@every_network
def test_the_output_is_the_image_less_the_margin(config: NetworkConfig) -> None:
    seen = image(config, batch=2)
    expected = [n - 2 * m for n, m in zip(seen.shape[2:], config.margin, strict=True)]
    with torch.inference_mode():
        network = made(config)
        assert network(seen).shape == (2, config.out_channels, *expected)
        whole = Probabilities(network)(seen)
    assert whole.shape == (2, 3, *seen.shape[2:])
    assert whole.min() >= 0
    assert whole.max() <= 1


@every_network
def test_every_weight_that_is_trained_gets_a_gradient(config: NetworkConfig) -> None:
    network = made(config).train()
    network(image(config, (4, 9, 11))).square().mean().backward()
    for name, parameter in network.named_parameters():
        if name.startswith("first."):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().sum()) > 0, name


@every_network
def test_the_same_seed_gives_the_same_bytes(config: NetworkConfig) -> None:
    first, second = made(config), made(config)
    seen = image(config)
    with torch.inference_mode():
        assert first(seen).numpy().tobytes() == second(seen).numpy().tobytes()
    torch.manual_seed(6)
    other = build(config).eval()
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@every_network
def test_it_does_not_depend_on_where_a_patch_lies(config: NetworkConfig) -> None:
    """Padded networks away from the patch's faces, and for shifts that pooling divides; valid ones everywhere."""
    padded = not any(config.margin)
    shift = tuple(d if d > 1 else n for d, n in zip(config.divisor, (int(not padded), 2, 2), strict=True))
    reach = tuple(40 * (padded and (d > 1)) for d in config.divisor)
    seen = image(config, (max(4, 2 * reach[0] + 12), 96, 96) if padded else (3, 7, 7))
    beyond = (..., *(slice(d, None) for d in shift))
    with torch.inference_mode():
        network = made(config)
        whole, part = network(seen)[beyond], network(seen[beyond])
    inner = (..., *(slice(r, n - r) for r, n in zip(reach, part.shape[2:], strict=True)))
    assert part[inner].numel() > 0
    torch.testing.assert_close(part[inner], whole[inner], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", EXPORTED.values(), ids=EXPORTED.keys())
def test_the_exported_file_does_what_torch_does(config: NetworkConfig, tmp_path: Path) -> None:
    network, path = made(config), tmp_path / "model.onnx"
    export_onnx(fold_batch_norm(network), path)
    for core, batch in (((3, 6, 5), 1), ((5, 9, 14), 2)):
        patches = image(config, core, batch).numpy()
        assert parity_error(Probabilities(network), path, patches, run_onnx) < 1e-4


@every_network
def test_a_card_is_enough_to_rebuild_it(config: NetworkConfig) -> None:
    network = fold_batch_norm(made(config))
    weights = {name: value.numpy() for name, value in Probabilities(network).state_dict().items()}
    seen = image(config)
    with torch.inference_mode():
        again = rebuild(Architecture(**described(config)), weights)(seen)
        np.testing.assert_array_equal(again.numpy(), Probabilities(network)(seen).numpy())


@every_network
def test_affinities_are_known_within_what_is_discarded(config: NetworkConfig) -> None:
    seen = image(config, (4, 6, 8))
    kept = (..., *(slice(m, n - m) for m, n in zip(discarded(config), seen.shape[2:], strict=True)))
    with torch.inference_mode():
        whole = Probabilities(made(config))(seen)
    assert float(whole[kept].min()) > 0
    assert (float(whole.min()) == 0) == any(config.margin)


@every_network
def test_a_configuration_is_read_as_it_was_described(config: NetworkConfig) -> None:
    assert read_config(**described(config)) == config
    assert family_of(config).name in FAMILIES
    listed = described(config)
    listed["config"]["widths"] = list(listed["config"]["widths"])  # what JSON makes of it
    assert read_config(**listed) == config


def test_unknown_families_presets_and_fields_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="unknown family 'unet'; known: rsunet"):
        preset("unet", "isotropic", 3, (4, 6))
    with pytest.raises(InvalidConfig, match="no preset 'flat'; known: isotropic"):
        preset("rsunet", "flat", 3, (4, 6))
    with pytest.raises(InvalidModel, match="one of the families"):
        read_config("unet", {})
    with pytest.raises(InvalidModel, match="wings"):
        read_config("vd2d", {"wings": 2})
    with pytest.raises(InvalidModel, match="five widths"):
        read_config("vd2d3d", {"recursion": {"widths": [1, 2]}})
