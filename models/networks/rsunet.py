"""The residual symmetric 3D U-Net, petavoxel's network for affinities.

A U-Net whose levels are residual modules of three convolutions, whose joins are sums, and whose way down mirrors its
way up. For serial sections (anisotropic voxels) the first convolution of each module and the poolings act within the
section only.

Differences to the publication, each for speed on CPUs at equal purpose: ReLU instead of ELU, and nearest-neighbour
upsampling after the 1×1×1 convolution instead of a strided transposed convolution.

References: K. Lee, J. Zung, P. Li, V. Jain, H. S. Seung, "Superhuman accuracy on the SNEMI3D connectomics challenge",
arXiv:1706.00120.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from models.errors import InvalidConfig
from models.geometry import Triple, triple
from models.networks.family import Family, Network


@dataclass(frozen=True)
class RSUNetConfig:
    """Shape of a residual symmetric U-Net.

    Parameters
    ----------
    out_channels
        Number of affinity channels (primary and auxiliary).
    widths
        Feature maps per level, finest first; the number of levels is their count.
    pooling
        Factors z, y, x between neighbouring levels, one triple fewer than `widths`.
    embedding_kernel
        Kernel z, y, x of the convolution that makes features of the image.
    first_kernel
        Kernel z, y, x of the first convolution in each residual module.
    kernel
        Kernel z, y, x of the other two.

    Raises `InvalidConfig` for impossible values.
    """

    out_channels: int
    widths: tuple[int, ...] = (16, 32, 48, 64)
    pooling: tuple[Triple, ...] = ((2, 2, 2), (2, 2, 2), (2, 2, 2))
    embedding_kernel: Triple = (5, 5, 5)
    first_kernel: Triple = (3, 3, 3)
    kernel: Triple = (3, 3, 3)

    def __post_init__(self) -> None:
        if self.out_channels < 1 or not self.widths or min(self.widths) < 1:
            raise InvalidConfig(f"network: widths and out_channels must be positive, got {self}")
        if len(self.pooling) != len(self.widths) - 1:
            raise InvalidConfig(
                f"network: expected {len(self.widths) - 1} pooling triples for {len(self.widths)} widths, "
                f"got {len(self.pooling)}"
            )
        for factors in self.pooling:
            triple(factors, "network pooling", minimum=1)
        for kernel in (self.embedding_kernel, self.first_kernel, self.kernel):
            if any(extent % 2 == 0 for extent in triple(kernel, "network kernel", minimum=1)):
                raise InvalidConfig(f"network: expected odd kernel extents, got {kernel}")

    @classmethod
    def isotropic(cls, out_channels: int, widths: tuple[int, ...] = (16, 32, 48, 64)) -> RSUNetConfig:
        """Preset for cubic voxels (FIB-SEM)."""
        return cls(out_channels, widths, ((2, 2, 2),) * (len(widths) - 1))

    @classmethod
    def anisotropic(cls, out_channels: int, widths: tuple[int, ...] = (28, 36, 48, 64)) -> RSUNetConfig:
        """Preset for serial sections: 1×2×2 pooling, 1×5×5 embedding, 1×3×3 first convolutions."""
        return cls(out_channels, widths, ((1, 2, 2),) * (len(widths) - 1), (1, 5, 5), (1, 3, 3))

    @classmethod
    def planar(cls, out_channels: int, widths: tuple[int, ...] = (48, 64, 80, 96)) -> RSUNetConfig:
        """Preset that sees each section alone: a 2D U-Net, to compare with."""
        return cls(out_channels, widths, ((1, 2, 2),) * (len(widths) - 1), (1, 5, 5), (1, 3, 3), (1, 3, 3))

    @property
    def divisor(self) -> Triple:
        """Patch extents must be multiples of this."""
        z = y = x = 1
        for factors in self.pooling:
            z, y, x = z * factors[0], y * factors[1], x * factors[2]
        return z, y, x

    @property
    def margin(self) -> Triple:
        """Convolutions are padded: the output is as large as the image."""
        return 0, 0, 0


class RSUNet(Network):
    """Residual symmetric U-Net; see the module's docstring and `RSUNetConfig`."""

    config: RSUNetConfig

    def __init__(self, config: RSUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.embed = _convolution(1, widths[0], config.embedding_kernel)
        self.down = nn.ModuleList(
            _Residual(before, width, config.first_kernel, config.kernel)
            for before, width in zip((widths[0], *widths[:-1]), widths, strict=True)
        )
        self.lift = nn.ModuleList(nn.Conv3d(deep, fine, 1, bias=False) for fine, deep in pairwise(widths))
        self.up = nn.ModuleList(_Residual(width, width, config.first_kernel, config.kernel) for width in widths[:-1])
        self.head = nn.Conv3d(widths[0], config.out_channels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return affinity logits.

        Parameters
        ----------
        image
            (batch, 1, z, y, x), float, normalised; extents are multiples of `config.divisor`.

        Returns
        -------
        (batch, out_channels, z, y, x) logits; a sigmoid makes affinities of them.
        """
        features = self.embed(image)
        skips = []
        for level, module in enumerate(self.down):
            if level:
                factors = self.config.pooling[level - 1]
                features = functional.max_pool3d(features, factors)
            features = module(features)
            skips.append(features)
        for level in reversed(range(len(self.up))):
            factors = self.config.pooling[level]
            lifted = functional.interpolate(self.lift[level](features), scale_factor=[float(f) for f in factors])
            features = self.up[level](skips[level] + lifted)
        logits: torch.Tensor = self.head(features)
        return logits


class _Residual(nn.Module):
    """Three convolutions; the sum over the last two skips them."""

    def __init__(self, before: int, width: int, first_kernel: Triple, kernel: Triple) -> None:
        super().__init__()
        self.first = _convolution(before, width, first_kernel)
        self.second = _convolution(width, width, kernel)
        self.third = nn.Conv3d(width, width, kernel, padding=_same(kernel), bias=False)
        self.norm = nn.BatchNorm3d(width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        first = self.first(features)
        return functional.relu(first + self.norm(self.third(self.second(first))), inplace=True)


def _convolution(before: int, width: int, kernel: Triple) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(before, width, kernel, padding=_same(kernel), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(inplace=True),
    )


def _same(kernel: Triple) -> Triple:
    return kernel[0] // 2, kernel[1] // 2, kernel[2] // 2


def _read(fields: Mapping[str, Any]) -> RSUNetConfig:
    return RSUNetConfig(**fields)


RSUNET = Family(
    "rsunet",
    RSUNetConfig,
    _read,
    RSUNet,
    {"isotropic": RSUNetConfig.isotropic, "anisotropic": RSUNetConfig.anisotropic, "planar": RSUNetConfig.planar},
)
