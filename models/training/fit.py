"""What a network and the patches that it learns have to agree on."""

from __future__ import annotations

from models.errors import InvalidConfig
from models.geometry import NEAREST
from models.networks.family import NetworkConfig
from models.training.sampler import PatchSampler
from models.training.targets import INSIDE


def check_fit(network: NetworkConfig, sampler: PatchSampler) -> None:
    """Raise `InvalidConfig` where a network cannot learn a sampler's patches: channels, or extents."""
    inside = sampler.offsets == INSIDE
    if network.out_channels != len(sampler.offsets) or not (inside or sampler.offsets[:3] == NEAREST):
        raise InvalidConfig(
            f"network: expected one channel per offset, the nearest neighbours first, or a single channel for "
            f"{INSIDE}; got {network.out_channels} channels for {sampler.offsets}"
        )
    if any(extent % factor for extent, factor in zip(sampler.patch, network.divisor, strict=True)):
        raise InvalidConfig(f"patch: expected multiples of {network.divisor}, got {sampler.patch}")
    if any(extent <= 2 * m for extent, m in zip(sampler.patch, network.margin, strict=True)):
        raise InvalidConfig(f"patch: expected more than twice the margin {network.margin}, got {sampler.patch}")
