"""Networks as they are exported: affinities of the image's extent, normalisation folded into convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.catalog import Architecture
from models.errors import InvalidModel
from models.geometry import Triple
from models.networks.family import Network, NetworkConfig
from models.networks.registry import build, read_config


class Probabilities(nn.Module):
    """A network and what makes affinities of its logits; what is exported.

    A sigmoid makes probabilities. Where the network says how likely a voxel lies inside of an object, an edge is as
    likely as the less likely of its two ends. The network's margin is filled with 0, so that callers need to know no
    network whose output is smaller than its image: they discard the voxels of `discarded`.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return float32 (batch, channels, z, y, x) in [0, 1] of a normalised image (batch, 1, z, y, x)."""
        config = self.network.config
        probabilities = torch.sigmoid(self.network(image).float())
        if config.out_channels == 1:
            probabilities = edges_of_inside(probabilities)
        z, y, x = config.margin
        return functional.pad(probabilities, (x, x, y, y, z, z)) if x or y or z else probabilities


def edges_of_inside(inside: torch.Tensor) -> torch.Tensor:
    """Nearest-neighbour affinities (b, 3, z, y, x) of a map of the inside of objects (b, 1, z, y, x).

    At the lower faces, where an edge's other end is missing, the voxel stands for both ends.
    """
    return torch.cat([torch.minimum(inside, _shifted(inside, axis)) for axis in (2, 3, 4)], dim=1)


def discarded(config: NetworkConfig) -> Triple:
    """Voxels on either side of a patch in which `Probabilities` knows no affinity."""
    z, y, x = config.margin
    return (z + 1, y + 1, x + 1) if config.out_channels == 1 else (z, y, x)


def fold_batch_norm(network: Network) -> Network:
    """Return a copy in evaluation mode whose normalisation layers are folded into the convolutions before them."""
    folded = deepcopy(network).eval()
    for module in list(folded.modules()):
        if isinstance(module, nn.Sequential):
            _fold(module, "0", "1")
        elif hasattr(module, "third"):
            _fold(module, "third", "norm")
    return folded


def rebuild(architecture: Architecture, weights: Mapping[str, NDArray[Any]]) -> Probabilities:
    """Rebuild an exported network from its card's architecture and the weights of its file.

    Parameters
    ----------
    architecture
        Of a family in `models.networks.registry`.
    weights
        By the names that `Probabilities` of the folded network gives them; biases that are absent are zero.

    Raises `InvalidModel` for an unknown family, and for weights that are missing, unknown or of another shape.
    """
    module = Probabilities(fold_batch_norm(build(read_config(architecture.family, architecture.config))))
    state = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in weights.items()}
    for name, value in module.state_dict().items():
        if name.endswith(".bias"):
            state.setdefault(name, torch.zeros_like(value))
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidModel(f"network: the file's weights do not fit the card's architecture ({error})") from error
    return module.eval()


def _shifted(inside: torch.Tensor, axis: int) -> torch.Tensor:
    """The map in which every voxel holds the value of its lower neighbour along an axis."""
    return torch.cat([inside.narrow(axis, 0, 1), inside.narrow(axis, 0, inside.shape[axis] - 1)], dim=axis)


def _fold(module: nn.Module, convolution: str, norm: str) -> None:
    conv, batch_norm = module.get_submodule(convolution), module.get_submodule(norm)
    if isinstance(conv, nn.Conv3d) and isinstance(batch_norm, nn.BatchNorm3d):
        setattr(module, convolution, fuse_conv_bn_eval(conv, batch_norm))
        setattr(module, norm, nn.Identity())
