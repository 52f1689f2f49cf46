"""Convolution by fast Fourier transform, for kernels so large that it takes less time than the direct sum.

The sum over a kernel becomes one product per frequency, so the cost hardly grows with the kernel. The transform is as
long as the image, not as image and kernel together: what wraps around lies where a valid convolution has no output.
Forward and backward keep the image and the weights alone and transform them again, so that no spectra of all feature
maps stay in memory between the two.

References: M. Mathieu, M. Henaff, Y. LeCun, arXiv:1312.5851; A. Zlateski, K. Lee, H. S. Seung, arXiv:1510.06706
(training of 3D networks; direct or by transform, decided per layer by measured time).
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional

from models.errors import InvalidConfig

AXES = (-3, -2, -1)

Shape = tuple[int, ...]


def fft_convolution(
    maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Shape, dilation: Shape
) -> torch.Tensor:
    """What `torch.nn.functional.conv3d` returns with stride 1, to rounding; gradients too.

    `maps`: (b, i, z, y, x); `weight`: (o, i, kz, ky, kx); `bias`: (o,); `padding`, `dilation`: z, y, x. Computed in
    float32, or float64 where the maps are, also under autocast, and returned in the maps' dtype.
    """
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    with torch.autocast(maps.device.type, enabled=False):
        z, y, x = padding
        padded = functional.pad(maps.to(dtype), (x, x, y, y, z, z)) if any(padding) else maps.to(dtype)
        result: torch.Tensor = _Correlation.apply(padded, _spread(weight.to(dtype), dilation))  # type: ignore[no-untyped-call]
        if bias is not None:
            result = result + bias.to(dtype).view(-1, 1, 1, 1)
        return result.to(maps.dtype)


class FFTConv3d(nn.Conv3d):
    """A drop-in for `torch.nn.Conv3d` of stride 1, one group and zero padding; parameters have the same names."""

    @classmethod
    def of(cls, convolution: nn.Conv3d) -> Self:
        """The same convolution, its parameters shared; raises `InvalidConfig` for another stride, groups or padding."""
        if not transformable(convolution):
            raise InvalidConfig(
                f"network: expected a convolution of stride 1, one group, zero padding, got {convolution}"
            )
        made = cls(
            convolution.in_channels,
            convolution.out_channels,
            _three(convolution.kernel_size),
            padding=_padding(convolution),
            dilation=_three(convolution.dilation),
            bias=convolution.bias is not None,
        )
        made.weight, made.bias = convolution.weight, convolution.bias
        return made

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolved maps; an exported file holds the ordinary convolution."""
        if torch.compiler.is_exporting():
            return super().forward(input)
        return fft_convolution(input, self.weight, self.bias, _padding(self), _three(self.dilation))


def transformable(convolution: nn.Conv3d) -> bool:
    """Whether `FFTConv3d` can stand for a convolution."""
    plain = convolution.groups == 1 and set(convolution.stride) == {1} and convolution.padding_mode == "zeros"
    even = convolution.padding == "same" and any(
        d * (k - 1) % 2 for k, d in zip(convolution.kernel_size, convolution.dilation, strict=True)
    )
    return plain and not even


class _Correlation(torch.autograd.Function):
    """Valid cross-correlation of maps (b, i, …) with kernels (o, i, …)."""

    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
        """Return (b, o, …), smaller by the kernel less one."""
        ctx.save_for_backward(maps, kernels)
        size = _fast(maps.shape[-3:])
        spectrum = _summed("bi...,oi...->bo...", _transform(maps, size), _transform(kernels, size).conj())
        extents = [n - k + 1 for n, k in zip(maps.shape[-3:], kernels.shape[-3:], strict=True)]
        return _back(spectrum, size, extents)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the gradients of maps and kernels, each only if it is needed."""
        maps, kernels = ctx.saved_tensors
        size = _fast(maps.shape[-3:])
        above = _transform(gradients[0].to(maps.dtype), size)
        of_maps = of_kernels = None
        if ctx.needs_input_grad[0]:
            spectrum = _summed("bo...,oi...->bi...", above, _transform(kernels, size))
            of_maps = _back(spectrum, size, list(maps.shape[-3:]))
        if ctx.needs_input_grad[1]:
            spectrum = _summed("bo...,bi...->oi...", above.conj(), _transform(maps, size))
            of_kernels = _back(spectrum, size, list(kernels.shape[-3:]))
        return of_maps, of_kernels


def _transform(values: torch.Tensor, size: Shape) -> torch.Tensor:
    spectrum: torch.Tensor = torch.fft.rfftn(values, s=size, dim=AXES)
    return spectrum


def _back(spectrum: torch.Tensor, size: Shape, extents: list[int]) -> torch.Tensor:
    z, y, x = extents
    values: torch.Tensor = torch.fft.irfftn(spectrum, s=size, dim=AXES)
    return values[..., :z, :y, :x].contiguous()


def _summed(equation: str, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A product of matrices of channels per frequency."""
    product: torch.Tensor = torch.einsum(equation, left, right)
    return product


def _fast(extents: Shape) -> Shape:
    """The next extents without prime factors above 5, whose transforms are quick."""
    return tuple(next(n for n in range(extent, 2 * extent + 1) if _smooth(n)) for extent in extents)


def _smooth(number: int) -> bool:
    for factor in (2, 3, 5):
        while number % factor == 0:
            number //= factor
    return number == 1


def _spread(weight: torch.Tensor, dilation: Shape) -> torch.Tensor:
    """Kernels with zeros between their taps."""
    if set(dilation) == {1}:
        return weight
    extents = [d * (k - 1) + 1 for k, d in zip(weight.shape[-3:], dilation, strict=True)]
    spread = weight.new_zeros((*weight.shape[:2], *extents))
    dz, dy, dx = dilation
    spread[..., ::dz, ::dy, ::dx] = weight
    return spread


def _padding(convolution: nn.Conv3d) -> tuple[int, int, int]:
    if convolution.padding == "valid":
        return 0, 0, 0
    if convolution.padding == "same":
        return _three(d * (k - 1) // 2 for k, d in zip(convolution.kernel_size, convolution.dilation, strict=True))
    return _three(convolution.padding)


def _three(values: Any) -> tuple[int, int, int]:
    z, y, x = values
    return int(z), int(y), int(x)
