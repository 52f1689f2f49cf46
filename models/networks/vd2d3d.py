"""VD2D3D, 2D layers followed by 3D ones, for serial sections; with recursion it also sees the map of a trained VD2D.

With the published widths (24, 36, 48, 60, 100) it sees 5×85×85 voxels: two levels and the convolutions of the third
are those of VD2D, then come a 2×2×2 pooling and three 2×3×3 convolutions. Recursion feeds the probability map of a
first network, trained before and not changed any more, to the second one beside the image; both are one module here,
so that a checkpoint or an exported file holds all that is needed. The 2D layers can begin as those of a trained VD2D.

Differences to the publication: no dropout before the last layer, and the map enters as a second input channel, not by
a stream of its own that is added at the third convolution.

References: K. Lee, A. Zlateski, A. Vishwanathan, H. S. Seung, arXiv:1508.04843.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from models.errors import InvalidConfig, InvalidModel
from models.geometry import Triple
from models.networks.family import Family, Network
from models.networks.rarefaction import Layer, RarefiedConfig, RarefiedStack, copy_leading
from models.networks.vd2d import POOL, VD2D, VD2DConfig


@dataclass(frozen=True)
class VD2D3DConfig(RarefiedConfig):
    """Shape of a VD2D3D; the widths are those of the 2D levels, of the first two 3D convolutions and of the third.

    `recursion`: the VD2D, of one channel, whose map is a second input; `InvalidConfig` for one of more.
    """

    out_channels: int = 1
    widths: tuple[int, ...] = (24, 36, 48, 60, 100)
    recursion: VD2DConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recursion is not None and self.recursion.out_channels != 1:
            raise InvalidConfig(
                f"network: recursion expects a first network of one channel, got {self.recursion.out_channels}"
            )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of the strided second network."""
        first, second, third, fourth, last = self.widths
        return (
            Layer((1, 3, 3), first), Layer((1, 3, 3), first), Layer((1, 2, 2), first), POOL,
            Layer((1, 3, 3), second), Layer((1, 3, 3), second), POOL,
            Layer((1, 3, 3), third), Layer((1, 3, 3), third), Layer((2, 2, 2), stride=(1, 2, 2)),
            Layer((2, 3, 3), fourth), Layer((2, 3, 3), fourth), Layer((2, 3, 3), last),
            Layer((1, 1, 1), self.out_channels),
        )  # fmt: skip

    @property
    def margin(self) -> Triple:
        """Half of the field of view; with recursion that of both networks together."""
        z, y, x = super().margin
        if self.recursion is not None:
            first = self.recursion.margin
            z, y, x = z + first[0], y + first[1], x + first[2]
        return z, y, x


class VD2D3D(Network):
    """See the module's docstring and `VD2D3DConfig`."""

    config: VD2D3DConfig

    def __init__(self, config: VD2D3DConfig) -> None:
        super().__init__()
        self.config = config
        self.first = None if config.recursion is None else VD2D(config.recursion).eval().requires_grad_(False)
        self.stack = RarefiedStack(1 if config.recursion is None else 2, config.layers)

    def train(self, mode: bool = True) -> Self:
        """Only the second network is trained."""
        super().train(mode)
        if self.first is not None:
            self.first.eval()
        return self

    def begin_with(self, other: Network) -> None:
        """Take a VD2D3D's weights, or those of the 2D layers of a VD2D; for raises see `Network.begin_with`."""
        if not isinstance(other, VD2D):
            super().begin_with(other)
        elif not copy_leading(self.stack, other.stack):
            raise InvalidModel(f"network: {other.config} has no layers in common with {self.config}")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (b, out_channels, z, y, x), smaller than the image by twice the margin."""
        maps = image
        if self.first is not None:
            # a probability is brought to the range that images have: -2 to 2
            inside = torch.sigmoid(self.first(image)) * 4 - 2
            mz, my, mx = self.first.config.margin
            z, y, x = image.shape[2:]
            maps = torch.cat([image[:, :, mz : z - mz, my : y - my, mx : x - mx].to(inside.dtype), inside], dim=1)
        logits: torch.Tensor = self.stack(maps)
        return logits


def _read(fields: Mapping[str, Any]) -> VD2D3DConfig:
    given = dict(fields)
    if given.get("recursion") is not None:
        given["recursion"] = VD2DConfig(**given["recursion"])
    return VD2D3DConfig(**given)


VD2D3D_FAMILY = Family("vd2d3d", VD2D3DConfig, _read, VD2D3D, {"sections": VD2D3DConfig})
