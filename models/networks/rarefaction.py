"""Dense output of max-pooling networks by filter rarefaction: valid convolutions and max filters that spread out.

A network with strided pooling answers for one voxel per input patch. The same answers for all voxels of a large patch
come from one pass in which pooling keeps every voxel (a maximum over a sliding window), and every later kernel has its
taps as far apart as the strides before it have multiplied to. Nothing is computed twice.

References: A. Zlateski, K. Lee, H. S. Seung, arXiv:1510.06706 (max filtering, sparse convolution); J. Masci, A. Giusti,
D. Ciresan, G. Fricout, J. Schmidhuber, arXiv:1302.1690 (dense evaluation of max-pooling networks).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from models.errors import InvalidConfig
from models.geometry import Triple


@dataclass(frozen=True)
class Layer:
    """A layer of a strided network: a convolution to `channels` maps, or with `channels` 0 a max pooling.

    `kernel` and `stride` are extents z, y, x; convolutions have stride 1.
    """

    kernel: Triple
    channels: int = 0
    stride: Triple = (1, 1, 1)


def dilations(layers: Sequence[Layer]) -> tuple[Triple, ...]:
    """How far apart the taps of each layer's kernel are: the product of the strides before it."""
    found: list[Triple] = []
    z = y = x = 1
    for layer in layers:
        found.append((z, y, x))
        z, y, x = z * layer.stride[0], y * layer.stride[1], x * layer.stride[2]
    return tuple(found)


def field_of_view(layers: Sequence[Layer]) -> Triple:
    """Extent z, y, x of the input that one output voxel depends on."""
    z = y = x = 1
    for layer, (dz, dy, dx) in zip(layers, dilations(layers), strict=True):
        kz, ky, kx = layer.kernel
        z, y, x = z + (kz - 1) * dz, y + (ky - 1) * dy, x + (kx - 1) * dx
    return z, y, x


@dataclass(frozen=True)
class RarefiedConfig(ABC):
    """Shape of a network that is one `RarefiedStack`.

    Parameters
    ----------
    out_channels
        1: inside of an object; else affinity channels.
    widths
        Feature maps of five groups of layers.

    Raises `InvalidConfig` for impossible values.
    """

    out_channels: int
    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.out_channels < 1 or len(self.widths) != 5 or min(self.widths) < 1:
            raise InvalidConfig(f"network: expected a positive number of channels and five widths, got {self}")

    @property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """The layers of the strided network."""

    @property
    def divisor(self) -> Triple:
        """Any extent that is larger than twice the margin will do."""
        return 1, 1, 1

    @property
    def margin(self) -> Triple:
        """Half of the field of view."""
        z, y, x = field_of_view(self.layers)
        return z // 2, y // 2, x // 2


class RarefiedStack(nn.Module):
    """The layers of a strided network, rarefied; a ReLU after each convolution but the last.

    Maps (b, c, z, y, x) to maps that are smaller by the field of view less one. Weights begin as in K. He et al.,
    arXiv:1502.01852, biases at 0.
    """

    def __init__(self, in_channels: int, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        before = in_channels
        for layer, dilation in zip(layers, dilations(layers), strict=True):
            if layer.channels:
                convolution = nn.Conv3d(before, layer.channels, layer.kernel, dilation=dilation)
                nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
                if convolution.bias is not None:
                    nn.init.zeros_(convolution.bias)
                self.layers.append(convolution)
                before = layer.channels
            else:
                self.layers.append(MaxFilter(layer.kernel, dilation))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the last layer's maps."""
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            maps = layer(maps)
            if isinstance(layer, nn.Conv3d) and index != last:
                maps = functional.relu(maps)
        return maps


def copy_leading(stack: RarefiedStack, trained: RarefiedStack) -> int:
    """Copy the weights of the leading layers that two stacks share; return the number of convolutions copied.

    A convolution of more input maps than the trained one begins with 0 for those that come last.
    """
    copied = 0
    for own, other in zip(stack.layers, trained.layers, strict=False):
        if isinstance(own, MaxFilter) and isinstance(other, MaxFilter):
            if (own.kernel, own.dilation) != (other.kernel, other.dilation):
                break
            continue
        if not isinstance(own, nn.Conv3d) or not isinstance(other, nn.Conv3d):
            break
        inputs = other.in_channels
        same = (own.kernel_size, own.dilation, own.out_channels) == (
            other.kernel_size, other.dilation, other.out_channels,
        )  # fmt: skip
        if not same or own.in_channels < inputs or own.bias is None or other.bias is None:
            break
        with torch.no_grad():
            own.weight.zero_()
            own.weight[:, :inputs] = other.weight
            own.bias.copy_(other.bias)
        copied += 1
    return copied


class MaxFilter(nn.Module):
    """Maximum over a window of extent `kernel` with taps `dilation` apart, at every voxel; along one axis at a time."""

    def __init__(self, kernel: Triple, dilation: Triple) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps smaller by (kernel - 1) * dilation."""
        for axis, (extent, step) in enumerate(zip(self.kernel, self.dilation, strict=True), start=2):
            reach = 1
            while reach < extent:  # windows of `reach` taps grow to twice their extent, or to all
                shift = min(reach, extent - reach)
                maps = _larger(maps, axis, shift * step)
                reach += shift
        return maps


def _larger(maps: torch.Tensor, axis: int, step: int) -> torch.Tensor:
    if torch.is_grad_enabled() and maps.requires_grad:
        larger: torch.Tensor = _Larger.apply(maps, axis, step)  # type: ignore[no-untyped-call]
        return larger
    near, far = [slice(None)] * 5, [slice(None)] * 5
    near[axis], far[axis] = slice(None, -step), slice(step, None)
    return torch.maximum(maps[tuple(near)], maps[tuple(far)])


class _Larger(torch.autograd.Function):
    """The larger of each voxel and the one `step` further along an axis; the nearer one gets the gradient of a tie.

    Keeps one byte per voxel, and its backward pass took a fifth of the time of `torch.maximum` of two views.
    """

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, axis: int, step: int) -> torch.Tensor:
        """Return the maxima."""
        count = maps.shape[axis] - step
        near, far = maps.narrow(axis, 0, count), maps.narrow(axis, step, count)
        ctx.save_for_backward(far > near)
        ctx.axis, ctx.step = axis, step
        return torch.maximum(near, far)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of the maps."""
        (from_far,) = ctx.saved_tensors
        (gradient,) = gradients
        shape = list(gradient.shape)
        shape[ctx.axis] += ctx.step
        to_far = gradient * from_far
        total = gradient.new_zeros(shape)
        total.narrow(ctx.axis, 0, gradient.shape[ctx.axis]).copy_(gradient).sub_(to_far)
        total.narrow(ctx.axis, ctx.step, gradient.shape[ctx.axis]).add_(to_far)
        return total, None, None
