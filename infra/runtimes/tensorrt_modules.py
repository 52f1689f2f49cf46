"""Finds TensorRT's Python module and a GPU without loading either before they are needed."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from infra.runtimes import cuda_driver
from models.errors import RuntimeUnavailable

NAMES = ("tensorrt", "tensorrt_rtx")
"""Both have the same interface; TensorRT-RTX compiles on the fly for consumer and workstation GPUs."""


def load() -> ModuleType:
    """Import `tensorrt`, or else `tensorrt_rtx`; raises `RuntimeUnavailable` where neither works."""
    reasons = []
    for name in NAMES:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            reasons.append(
                f"{name}: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
            )
            continue
        if hasattr(module, "Builder"):
            return module
        reasons.append(f"{name}: the package is a stub without libraries")
    raise RuntimeUnavailable(f"TensorRT: no module could be loaded ({'; '.join(reasons)})")


def usable() -> bool:
    """Whether a TensorRT module is installed and an NVIDIA GPU is present."""
    return any(importlib.util.find_spec(name) for name in NAMES) and cuda_driver.device_count() > 0
