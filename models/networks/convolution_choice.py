"""Which convolutions of a network are done by Fourier transform: decided per layer by measuring both.

Where the break-even lies depends on kernel, image, channels, precision and machine, so nothing but a stopwatch knows
it. Measurements are kept by shape, so that equal layers are measured once.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field

import torch
from torch import nn

from models.networks.fft_convolution import FFTConv3d, transformable

logger = logging.getLogger(__name__)

ROUNDS = 3
"""Each way is run so often after a first time, and the quickest run counts."""


@dataclass
class Measurements:
    """Seconds of a forward and backward pass, direct and by transform, by layer and shape; see `layer_key`."""

    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)

    def of(self, convolution: nn.Conv3d, maps: torch.Tensor) -> tuple[float, float]:
        """Seconds of both ways for maps of this shape, measured if they are not known yet."""
        key = layer_key(convolution, maps)
        if key not in self.seconds:
            self.seconds[key] = (_seconds(convolution, maps), _seconds(FFTConv3d.of(convolution), maps))
            logger.info("%s: direct %.4f s, by transform %.4f s", key, *self.seconds[key])
        return self.seconds[key]


def layer_key(convolution: nn.Conv3d, maps: torch.Tensor) -> str:
    """What the time of a layer depends on, as one line."""
    parts = {
        "maps": "x".join(map(str, maps.shape)),
        "out": convolution.out_channels,
        "kernel": "x".join(map(str, convolution.kernel_size)),
        "dilation": "x".join(map(str, convolution.dilation)),
        "padding": str(convolution.padding),
        "dtype": str(torch.get_autocast_dtype(maps.device.type) if _autocast(maps) else maps.dtype),
        "device": torch.cuda.get_device_name(maps.device)
        if maps.is_cuda
        else f"cpu, {torch.get_num_threads()} threads",
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items())


def choose_convolutions(network: nn.Module, image: torch.Tensor, measurements: Measurements) -> list[str]:
    """Replace, in place, the convolutions that a transform does faster; return their names.

    `image` has the shape that the network will be trained or run with; autocast counts as it is set around the call.
    Parameters stay the same objects under the same names. Convolutions of one voxel's kernel, or that `FFTConv3d`
    cannot stand for, stay as they are.
    """
    seen: dict[str, torch.Tensor] = {}
    found = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv3d) and math.prod(module.kernel_size) > 1 and transformable(module)
    }
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].detach()}))
        for name, module in found.items()
    ]
    try:
        with torch.no_grad():
            network(image)
    finally:
        for hook in hooks:
            hook.remove()
    chosen = []
    for name, maps in seen.items():
        direct, fft = measurements.of(found[name], maps)
        if fft < direct:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, FFTConv3d.of(found[name]))
            chosen.append(name)
    return chosen


def _autocast(maps: torch.Tensor) -> bool:
    return torch.is_autocast_enabled(maps.device.type)


def _seconds(convolution: nn.Conv3d, maps: torch.Tensor) -> float:
    """The quickest of some forward and backward passes, after a first one that warms up."""
    least = math.inf
    with torch.enable_grad():
        for turn in range(ROUNDS + 1):
            given = maps.detach().requires_grad_()
            begin = _now(maps)
            result = convolution(given)
            torch.autograd.grad(result, [given, convolution.weight], torch.ones_like(result))
            if turn:
                least = min(least, _now(maps) - begin)
    return least


def _now(maps: torch.Tensor) -> float:
    if maps.is_cuda:
        torch.cuda.synchronize(maps.device)
    return time.perf_counter()
