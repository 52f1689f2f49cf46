"""Inference on NVIDIA GPUs with TensorRT or TensorRT-RTX, whichever module is installed."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.runtimes import tensorrt_modules
from infra.runtimes.cuda_driver import Gpu
from infra.runtimes.session import check_patches
from infra.runtimes.tensorrt_engine import Profile, build_engine, cached_engine, collect_messages, engine_folder
from models.catalog import Model
from models.errors import InvalidModel, InvalidVolume, RuntimeUnavailable


def open_model(
    model: Model, *, precision: str = "auto", threads: int | None = None, batch_size: int = 1
) -> TensorRtSession:
    """Open the exported network on the first GPU; see `infra.runtimes.session.open_session`."""
    del threads  # the GPU has its own
    return TensorRtSession(model, precision, batch_size)


class TensorRtSession:
    """A network on a GPU; see `infra.runtimes.session.Session`. Patches may be as large as the card's default patch."""

    def __init__(self, model: Model, precision: str, batch_size: int) -> None:
        self._gpu = Gpu()
        module = tensorrt_modules.load()
        self._engine_name = f"{module.__name__} {module.__version__}"
        self._precision = _choose(precision, self._gpu.compute_capability)
        rules = model.card.patch
        self._divisor, self._channels = rules.divisor, len(model.card.output.offsets)
        self._profile = Profile(rules.divisor, rules.shape, batch_size)
        key = {
            "engine": self._engine_name,
            "gpu": self._gpu.name,
            "compute_capability": self._gpu.compute_capability,
            "model": model.card.file.sha256,
            "precision": self._precision,
            "profile": self._profile,
        }
        serialised = cached_engine(
            engine_folder(),
            key,
            lambda: build_engine(module, model.onnx_path, precision=self._precision, profile=self._profile),
        )
        self._logger, self._messages = collect_messages(module)
        self._runtime = module.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(serialised)
        if self._engine is None:
            raise RuntimeUnavailable(f"TensorRT: the engine does not load ({'; '.join(self._messages[-1:])})")
        self._context: Any = self._engine.create_execution_context()
        self._names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        if len(self._names) != 2:
            raise InvalidModel(f"{model.onnx_path}: expected one input and one output, got {self._names}")
        voxels = batch_size * math.prod(rules.shape)
        self._addresses = [self._gpu.allocate(4 * voxels), self._gpu.allocate(4 * voxels * self._channels)]
        for name, address in zip(self._names, self._addresses, strict=True):
            self._context.set_tensor_address(name, address)
        self._lock = threading.Lock()

    @property
    def device(self) -> str:
        """Name of the GPU."""
        return self._gpu.name

    @property
    def precision(self) -> str:
        """The precision that convolutions are computed in."""
        return self._precision

    @property
    def engine(self) -> str:
        """Name and version of the engine."""
        return self._engine_name

    def run(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network; see `infra.runtimes.session.Session.run`.

        Raises `InvalidVolume` for patches larger than the engine was built for.
        """
        check_patches(patches, self._divisor)
        batch, _, *extents = patches.shape
        largest = self._profile.largest
        if batch > self._profile.batch or any(n > limit for n, limit in zip(extents, largest, strict=True)):
            raise InvalidVolume(
                f"patches: the engine takes up to {self._profile.batch} of {largest}, got {batch} of {tuple(extents)}"
            )
        with self._lock:
            self._gpu.activate()
            self._gpu.upload(self._addresses[0], np.ascontiguousarray(patches))
            self._context.set_input_shape(self._names[0], tuple(patches.shape))
            if not self._context.execute_async_v3(self._gpu.stream.value):
                raise RuntimeUnavailable(f"TensorRT: the run failed ({'; '.join(self._messages[-1:])})")
            return self._gpu.download(self._addresses[1], (batch, self._channels, *extents))


def _choose(precision: str, compute_capability: tuple[int, int]) -> str:
    native_bf16 = compute_capability >= (8, 0)
    if precision == "auto":
        return "bf16" if native_bf16 else "fp16"
    if precision == "bf16" and not native_bf16:
        raise RuntimeUnavailable(f"TensorRT: compute capability {compute_capability} does not compute bf16 natively")
    return precision
