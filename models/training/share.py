"""One process's share of training: which patches of a step it learns, and how what all processes found is summed.

Several processes that learn half a batch each shall do what one process does with the whole batch, to rounding. So
whatever a step divides by or normalises with is summed over all of them: the weights of the edges, the moments of batch
normalisation, the gradients. How numbers travel is not known here: the sum comes in as a function.

References: S. Ioffe, C. Szegedy, arXiv:1502.03167 (batch normalisation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.errors import InvalidConfig


def _alone(values: torch.Tensor) -> torch.Tensor:
    return values


@dataclass(frozen=True)
class Share:
    """Process `rank` of `world`.

    `total` returns the sum of a tensor (any shape, floating) over all processes, the same bytes in each, and hands
    gradients back the same way; every process calls it as often and with equal shapes.
    """

    rank: int = 0
    world: int = 1
    total: Callable[[torch.Tensor], torch.Tensor] = _alone

    def patches(self, batch_size: int) -> int:
        """How many patches of a batch are this process's; raises `InvalidConfig` where they are not equal parts."""
        if batch_size % self.world:
            raise InvalidConfig(
                f"training: expected a batch_size that {self.world} workers share equally, got {batch_size}"
            )
        return batch_size // self.world

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their sums over all processes, in one exchange."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.world == 1 or not gradients:
            return
        summed = self.total(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        parts = torch.split(summed, [gradient.numel() for gradient in gradients])
        for gradient, values in zip(gradients, parts, strict=True):
            gradient.copy_(values.view(gradient.shape))


def share_normalisation(network: nn.Module, share: Share) -> None:
    """Have the batch normalisation of `network`, in place, see the batches of all processes.

    Raises `InvalidConfig` for a batch normalisation that is not of volumes.
    """
    if share.world == 1:
        return
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm3d):
                setattr(module, name, _SharedBatchNorm(child, share))
            elif isinstance(child, _BatchNorm):
                raise InvalidConfig(f"network: several workers cannot share a {type(child).__name__}")


class _SharedBatchNorm(nn.BatchNorm3d):
    """Batch normalisation by the moments of all processes; parameters and buffers are named as they were."""

    def __init__(self, norm: nn.BatchNorm3d, share: Share) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.load_state_dict(norm.state_dict())
        self.to(norm.weight.device)
        self._share = share

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Normalise (batch, channels, z, y, x)."""
        if not self.training:
            return super().forward(features)
        values = features.float()
        axes = (0, 2, 3, 4)
        own_variance, own_mean = (moment.double() for moment in torch.var_mean(values, axes, correction=0))
        sums = self._share.total(torch.stack([own_mean, own_variance + own_mean.square()]))
        mean, square = sums / self._share.world
        variance = (square - mean.square()).clamp(min=0)
        self._remember(mean.detach(), variance.detach(), self._share.world * values.numel() // values.shape[1])
        scale = self.weight * (variance + self.eps).rsqrt().float()
        shift = self.bias - mean.float() * scale
        across = (1, -1, 1, 1, 1)
        return torch.addcmul(shift.view(across), values, scale.view(across)).to(features.dtype)

    def _remember(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """Move the running moments, whose variance is the unbiased one, as torch does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.float(), self.momentum)
        self.running_var.lerp_((variance * (count / max(1, count - 1))).float(), self.momentum)
