"""Convolution by Fourier transform: equal to the direct one, and chosen where it is faster."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from models.errors import InvalidConfig
from models.geometry import Triple
from models.networks import convolution_choice
from models.networks.convolution_choice import Measurements, choose_convolutions, layer_key
from models.networks.fft_convolution import FFTConv3d, fft_convolution

CASES = [
    ((1, 1, 1), "valid", (1, 1, 1)),
    ((3, 3, 3), "same", (1, 1, 1)),
    ((5, 5, 5), "valid", (1, 1, 1)),
    ((7, 7, 7), "same", (1, 1, 1)),
    ((1, 9, 9), "valid", (1, 1, 1)),
    ((1, 9, 9), "same", (1, 1, 1)),
    ((2, 3, 4), "valid", (1, 1, 1)),
    ((2, 3, 3), "valid", (1, 3, 2)),
    ((3, 5, 1), (1, 0, 2), (2, 1, 1)),
]


@pytest.mark.parametrize(("kernel", "padding", "dilation"), CASES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_it_equals_the_direct_convolution_forward_and_backward(
    kernel: Triple, padding: str | Triple, dilation: Triple, dtype: torch.dtype, limit: float
) -> None:
    torch.manual_seed(3)
    direct = nn.Conv3d(3, 4, kernel, padding=padding, dilation=dilation).to(dtype)
    transformed = FFTConv3d.of(deepcopy(direct))
    assert list(transformed.state_dict()) == list(direct.state_dict())
    maps = torch.randn(2, 3, 8, 11, 13, dtype=dtype)
    given, same = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    expected, found = direct(given), transformed(same)
    pull = torch.randn_like(expected)
    expected.backward(pull)
    found.backward(pull)
    assert direct.bias is not None
    assert transformed.bias is not None
    for ours, theirs in (
        (found, expected),
        (same.grad, given.grad),
        (transformed.weight.grad, direct.weight.grad),
        (transformed.bias.grad, direct.bias.grad),
    ):
        assert ours is not None
        assert theirs is not None
        assert ours.dtype == dtype
        largest = float(theirs.detach().abs().max())
        assert float((ours - theirs).detach().abs().max()) <= limit * max(1.0, largest)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    maps = torch.randn(1, 2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: fft_convolution(*given, (1, 0, 1), (1, 1, 2)), (maps, weight, bias))


def test_only_maps_and_kernels_are_kept_for_the_backward_pass() -> None:
    convolution = FFTConv3d(3, 5, (3, 9, 9))
    maps = torch.randn(1, 3, 6, 20, 20, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        convolution(maps)
    assert not any(tensor.is_complex() for tensor in kept)
    assert sum(tensor.numel() for tensor in kept) <= maps.numel() + convolution.weight.numel()


def test_under_autocast_it_computes_in_float32() -> None:
    convolution = FFTConv3d(2, 2, (1, 7, 7), padding="same")
    maps = torch.randn(1, 2, 2, 12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = convolution(maps)
        assert convolution(maps.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(found, nn.Conv3d.forward(convolution, maps), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "unfit",
    [
        nn.Conv3d(2, 2, 3, stride=2),
        nn.Conv3d(2, 2, 3, groups=2),
        nn.Conv3d(2, 2, 3, padding=1, padding_mode="reflect"),
        nn.Conv3d(2, 2, 2, padding="same"),
    ],
)
def test_what_it_cannot_stand_for_is_refused(unfit: nn.Conv3d) -> None:
    with pytest.raises(InvalidConfig, match="stride 1"):
        FFTConv3d.of(unfit)


def layers() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv3d(2, 2, (1, 9, 9)), nn.Conv3d(2, 1, 1))


@pytest.mark.parametrize(("times", "expected"), [((2.0, 1.0), ["0", "2"]), ((1.0, 2.0), []), ((1.0, 1.0), [])])
def test_a_layer_is_replaced_where_its_measured_time_is_lower(times: tuple[float, float], expected: list[str]) -> None:
    network, plain = layers(), layers()
    image = torch.randn(1, 1, 4, 16, 16)
    weight = network[2].weight
    known = Measurements()
    maps = {0: image, 2: plain[:2](image)}
    for index, given in maps.items():
        layer = plain[index]
        assert isinstance(layer, nn.Conv3d)
        known.seconds[layer_key(layer, given)] = times
    before = dict(known.seconds)
    assert choose_convolutions(network, image, known) == expected
    assert known.seconds == before  # what is known is not measured again
    assert [isinstance(module, FFTConv3d) for module in network] == [str(i) in expected for i in range(4)]
    assert network[2].weight is weight
    torch.testing.assert_close(network(image), plain(image), rtol=1e-4, atol=1e-5)
    choose_convolutions(network, torch.randn(1, 1, 4, 18, 16), known)
    assert len(known.seconds) == 4  # another shape is another measurement


def test_both_ways_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution_choice, "ROUNDS", 1)
    direct, fft = Measurements().of(nn.Conv3d(1, 1, (1, 3, 3)), torch.randn(1, 1, 2, 8, 8))
    assert min(direct, fft) > 0


def test_an_exported_file_holds_the_ordinary_convolution(tmp_path: Path) -> None:
    network = nn.Sequential(FFTConv3d(1, 2, (1, 7, 7), padding="same"))
    program = torch.export.export(network, (torch.zeros(1, 1, 2, 9, 9),))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert any("conv3d" in name for name in called)
    assert not any("fft" in name for name in called)
