"""What every network family has in common, so that training, export and tests need to know no family by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from models.errors import InvalidModel
from models.geometry import Triple


class NetworkConfig(Protocol):
    """The shape of a network, a frozen dataclass whose fields rebuild it."""

    @property
    def out_channels(self) -> int:
        """Channels of the output: affinities, or one that says how likely a voxel lies inside of an object."""
        ...

    @property
    def divisor(self) -> Triple:
        """Patch extents must be multiples of this."""
        ...

    @property
    def margin(self) -> Triple:
        """Voxels that the output is smaller than the input, on either side; 0 where convolutions are padded."""
        ...


class Network(nn.Module):
    """A network of some family: image (b, 1, z, y, x), normalised, to logits (b, c, z - 2 mz, y - 2 my, x - 2 mx).

    m is the configuration's margin; a sigmoid makes probabilities of logits.
    """

    config: NetworkConfig

    def begin_with(self, other: Network) -> None:
        """Take the weights that a trained network has in common; raises `InvalidModel` where that makes no sense."""
        if type(other) is not type(self) or other.config != self.config:
            raise InvalidModel(f"network: {other.config} is not the configured one, {self.config}")
        self.load_state_dict(other.state_dict())


@dataclass(frozen=True)
class Family:
    """A kind of network.

    Parameters
    ----------
    name
        As recipes, checkpoints and cards call it.
    config
        The class of its configurations.
    read
        Makes a configuration of its fields, as `dataclasses.asdict` gives them; raises `TypeError` or `InvalidConfig`.
    build
        Makes a network, randomly initialised, of a configuration.
    presets
        By name: configurations for a number of output channels and feature maps per level.
    """

    name: str
    config: type[Any]
    read: Callable[[Mapping[str, Any]], NetworkConfig]
    build: Callable[[Any], Network]
    presets: Mapping[str, Callable[[int, tuple[int, ...]], NetworkConfig]]
