"""VD2D, a very deep 2D network that finds boundaries in one section: valid convolutions and four max poolings.

With the published widths (24, 36, 48, 60, 200) it sees 109×109 pixels. One output channel is the probability that a
voxel lies inside of an object; more are affinities. The output is dense by filter rarefaction, and smaller than the
image by the field of view. Difference to the publication: no dropout before the last layer.

References: K. Lee, A. Zlateski, A. Vishwanathan, H. S. Seung, "Recursive training of 2D-3D convolutional networks for
neuronal boundary detection", arXiv:1508.04843.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from models.networks.family import Family, Network
from models.networks.rarefaction import Layer, RarefiedConfig, RarefiedStack

POOL = Layer((1, 2, 2), stride=(1, 2, 2))


@dataclass(frozen=True)
class VD2DConfig(RarefiedConfig):
    """Shape of a VD2D; the widths are those of the four levels between poolings and of the last layer but one."""

    out_channels: int = 1
    widths: tuple[int, ...] = (24, 36, 48, 60, 200)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of the strided network."""
        first, second, third, fourth, last = self.widths
        return (
            Layer((1, 3, 3), first), Layer((1, 3, 3), first), Layer((1, 2, 2), first), POOL,
            Layer((1, 3, 3), second), Layer((1, 3, 3), second), POOL,
            Layer((1, 3, 3), third), Layer((1, 3, 3), third), POOL,
            Layer((1, 3, 3), fourth), Layer((1, 3, 3), fourth), POOL,
            Layer((1, 3, 3), last), Layer((1, 1, 1), self.out_channels),
        )  # fmt: skip


class VD2D(Network):
    """See the module's docstring and `VD2DConfig`."""

    config: VD2DConfig

    def __init__(self, config: VD2DConfig) -> None:
        super().__init__()
        self.config = config
        self.stack = RarefiedStack(1, config.layers)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (b, out_channels, z, y - 108, x - 108) of a normalised image (b, 1, z, y, x)."""
        logits: torch.Tensor = self.stack(image)
        return logits


def _read(fields: Mapping[str, Any]) -> VD2DConfig:
    return VD2DConfig(**fields)


VD2D_FAMILY = Family("vd2d", VD2DConfig, _read, VD2D, {"sections": VD2DConfig})
