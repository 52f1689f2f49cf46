"""Networks as they are exported: normalisation folded into convolutions, a sigmoid at the end, weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.catalog import Architecture
from models.errors import InvalidConfig, InvalidModel
from models.networks.rsunet import RSUNet, RSUNetConfig


class Probabilities(nn.Module):
    """A network and the sigmoid that makes probabilities of its logits; what is exported."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return float32 (batch, channels, z, y, x) in [0, 1] of a normalised image (batch, 1, z, y, x)."""
        return torch.sigmoid(self.network(image).float())


def fold_batch_norm(network: RSUNet) -> RSUNet:
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
        Of family "rsunet".
    weights
        By the names that `Probabilities` of the folded network gives them; biases that are absent are zero.

    Raises `InvalidModel` for another family, and for weights that are missing, unknown or of another shape.
    """
    if architecture.family != "rsunet":
        raise InvalidModel(f"network: expected family rsunet, got {architecture.family!r}")
    try:
        config = RSUNetConfig(**{key: _frozen(value) for key, value in architecture.config.items()})
    except (TypeError, InvalidConfig) as error:
        raise InvalidModel(f"network: the card's architecture is not an rsunet's ({error})") from error
    module = Probabilities(fold_batch_norm(RSUNet(config)))
    state = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in weights.items()}
    for name, value in module.state_dict().items():
        if name.endswith(".bias"):
            state.setdefault(name, torch.zeros_like(value))
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidModel(f"network: the file's weights do not fit the card's architecture ({error})") from error
    return module.eval()


def _fold(module: nn.Module, convolution: str, norm: str) -> None:
    conv, batch_norm = module.get_submodule(convolution), module.get_submodule(norm)
    if isinstance(conv, nn.Conv3d) and isinstance(batch_norm, nn.BatchNorm3d):
        setattr(module, convolution, fuse_conv_bn_eval(conv, batch_norm))
        setattr(module, norm, nn.Identity())


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
