"""Where a network is trained, and in which precision."""

from __future__ import annotations

from collections.abc import Callable

import torch

from models.errors import InvalidConfig


def chosen_device(name: str) -> torch.device:
    """The device "auto", "cpu" or "cuda"; raises `InvalidConfig` for a "cuda" that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("training: device 'cuda' was asked for, and there is none")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def computes_in_bf16(precision: str, device: torch.device) -> bool:
    """Whether "bf16", "fp32" or "auto" (what the device computes natively) means bf16."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    supported: Callable[[], bool] = torch.ops.mkldnn._is_mkldnn_bf16_supported
    return bool(supported())
