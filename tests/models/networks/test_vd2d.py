"""VD2D and VD2D3D: fields of view, rarefied filters beside strided ones, recursion."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from models.errors import InvalidConfig
from models.geometry import Triple
from models.networks.inference import edges_of_inside
from models.networks.rarefaction import Layer, MaxFilter, RarefiedStack, dilations, field_of_view
from models.networks.vd2d import VD2D, VD2DConfig
from models.networks.vd2d3d import VD2D3D, VD2D3DConfig

NARROW = (2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("config", "seen"),
    [
        (VD2DConfig(1, NARROW), (1, 109, 109)),
        (VD2D3DConfig(1, NARROW), (5, 85, 85)),
        (VD2D3DConfig(1, NARROW, VD2DConfig(1, NARROW)), (5, 193, 193)),
    ],
)
def test_the_field_of_view_is_the_support_of_the_gradient(config: VD2DConfig | VD2D3DConfig, seen: Triple) -> None:
    """Linear layers with positive weights: no ReLU and no maximum can hide a dependence."""
    assert tuple(2 * m + 1 for m in config.margin) == seen
    if not (isinstance(config, VD2D3DConfig) and config.recursion):
        assert field_of_view(config.layers) == seen
    network = VD2D(config) if isinstance(config, VD2DConfig) else VD2D3D(config)
    network.double()
    support = torch.zeros(tuple(n + 2 for n in seen), dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) / parameter[0].numel())
    for _ in range(4):  # a maximum passes on one voxel at a time: many images show them all
        image = torch.rand(1, 1, *support.shape, dtype=torch.float64, generator=generator).requires_grad_()
        network(image)[0, 0, 1, 1, 1].backward()
        assert image.grad is not None
        support |= image.grad[0, 0] != 0
    assert not support[0].any()
    assert not support[-1].any()
    for axis in range(3):
        reached = support.any(dim=tuple(a for a in range(3) if a != axis)).nonzero()
        assert (int(reached[0]), int(reached[-1])) == (1, seen[axis])


def test_published_sizes() -> None:
    """The publication counts 230 thousand parameters in VD2D and 310 thousand in VD2D3D with its second stream."""
    counts = [sum(p.numel() for p in network.parameters()) for network in (VD2D(VD2DConfig()), VD2D3D(VD2D3DConfig()))]
    assert counts[0] == pytest.approx(230_000, rel=0.02)
    assert counts[1] == pytest.approx(310_000, rel=0.2)


def test_rarefied_filters_give_every_output_of_the_strided_network() -> None:
    """The strided network answers for one voxel of a patch; slid over the image it must agree with one dense pass."""
    layers = (
        Layer((1, 3, 2), 3), Layer((1, 2, 2), stride=(1, 2, 2)), Layer((2, 2, 3), 4),
        Layer((2, 2, 3), stride=(1, 2, 3)), Layer((1, 2, 2), 2),
    )  # fmt: skip
    assert dilations(layers) == ((1, 1, 1), (1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 4, 6))
    torch.manual_seed(0)
    stack = RarefiedStack(2, layers)
    z, y, x = field_of_view(layers)
    image = torch.randn(2, 2, z + 1, y + 3, x + 4)
    with torch.no_grad():
        dense = stack(image)
        assert dense.shape == (2, 2, 2, 4, 5)
        for a in range(2):
            for b in range(4):
                for c in range(5):
                    patch = image[:, :, a : a + z, b : b + y, c : c + x]
                    torch.testing.assert_close(dense[:, :, a, b, c], strided(stack, layers, patch)[:, :, 0, 0, 0])


def strided(stack: RarefiedStack, layers: tuple[Layer, ...], maps: torch.Tensor) -> torch.Tensor:
    """The network as it was before rarefaction, with torch's own strided pooling."""
    for index, (layer, module) in enumerate(zip(layers, stack.layers, strict=True)):
        if layer.channels:
            assert isinstance(module, torch.nn.Conv3d)
            maps = functional.conv3d(maps, module.weight, module.bias)
            maps = maps if index == len(layers) - 1 else functional.relu(maps)
        else:
            maps = functional.max_pool3d(maps, layer.kernel, layer.stride)
    return maps


@pytest.mark.parametrize(
    ("kernel", "dilation"), [((1, 2, 2), (1, 1, 1)), ((2, 3, 4), (1, 2, 3)), ((1, 1, 5), (1, 1, 2))]
)
def test_max_filters_are_those_of_torch_forward_and_backward(kernel: Triple, dilation: Triple) -> None:
    generator = torch.Generator().manual_seed(2)
    ours = torch.randn(2, 3, 8, 14, 15, generator=generator, dtype=torch.float64).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    weights = torch.randn(1, generator=generator, dtype=torch.float64)
    found = MaxFilter(kernel, dilation)(ours)
    expected = functional.max_pool3d(theirs, kernel, 1, dilation=dilation)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for result in (found, expected):
        (result * torch.arange(result.numel(), dtype=torch.float64).reshape(result.shape) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    with torch.no_grad():
        torch.testing.assert_close(MaxFilter(kernel, dilation)(ours), expected, rtol=0, atol=0)


def test_the_gradient_of_a_tie_goes_to_one_voxel() -> None:
    flat = torch.ones(1, 1, 1, 1, 4, requires_grad=True)
    MaxFilter((1, 1, 2), (1, 1, 1))(flat).sum().backward()
    assert flat.grad is not None
    assert flat.grad.flatten().tolist() == [1, 1, 1, 0]


def test_recursion_is_the_second_network_on_the_image_and_the_first_ones_map() -> None:
    first_config = VD2DConfig(1, NARROW)
    torch.manual_seed(1)
    recursive = VD2D3D(VD2D3DConfig(1, NARROW, first_config)).train()
    assert recursive.first is not None
    assert not recursive.first.training
    assert not any(parameter.requires_grad for parameter in recursive.first.parameters())
    image = torch.randn(1, 1, 6, 196, 197)
    with torch.no_grad():
        inside = torch.sigmoid(recursive.first(image))
        both = torch.cat([image[:, :, :, 54:-54, 54:-54], (inside - 0.5) * 4], dim=1)
        torch.testing.assert_close(recursive(image), recursive.stack(both))
        alone = recursive.first(image[:, :, 2:3])  # the first network sees one section
        torch.testing.assert_close(recursive.first(image)[:, :, 2:3], alone)


def test_an_edge_is_as_likely_as_the_less_likely_end() -> None:
    inside = torch.rand(2, 1, 3, 4, 5)
    edges = edges_of_inside(inside)
    assert edges.shape == (2, 3, 3, 4, 5)
    assert edges[1, 0, 2, 1, 3] == min(inside[1, 0, 2, 1, 3], inside[1, 0, 1, 1, 3])
    assert edges[0, 1, 2, 1, 3] == min(inside[0, 0, 2, 1, 3], inside[0, 0, 2, 0, 3])
    assert edges[0, 2, 2, 1, 3] == min(inside[0, 0, 2, 1, 3], inside[0, 0, 2, 1, 2])
    assert edges[0, 2, 2, 1, 0] == inside[0, 0, 2, 1, 0]


@pytest.mark.parametrize("wrong", [{"widths": (1, 2)}, {"widths": (0, 1, 1, 1, 1)}, {"out_channels": 0}])
def test_impossible_networks_are_refused(wrong: dict[str, object]) -> None:
    for kind in (VD2DConfig, VD2D3DConfig):
        with pytest.raises(InvalidConfig, match="network"):
            kind(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="one channel"):
        VD2D3DConfig(1, NARROW, VD2DConfig(3, NARROW))
