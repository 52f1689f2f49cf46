"""Inference on CPUs with OpenVINO.

The network is compiled for fixed shapes, one compiled network per patch shape: fixed shapes let the engine plan memory
and choose kernels once. Compilation takes about 0.1 s, so it is not cached on disk.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import properties
from openvino.properties import hint

from infra.runtimes.session import check_patches
from models.catalog import Model
from models.errors import InvalidModel, RuntimeUnavailable
from models.geometry import Triple

DEVICE = "CPU"
COMPILED_SHAPES = 8
"""Compiled shapes that one session keeps: the six axis orders of a patch, and spare ones."""

_TYPES = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16, "fp16": openvino.Type.f16}
_NAMES = {value: key for key, value in _TYPES.items()}
_CAPABILITY = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}


def open_model(
    model: Model, *, precision: str = "auto", threads: int | None = None, batch_size: int = 1
) -> OpenVinoSession:
    """Open the exported network on the CPU; see `infra.runtimes.session.open_session`."""
    del batch_size  # each shape is compiled when it first comes
    card = model.card
    return OpenVinoSession(
        model.onnx_path,
        divisor=card.patch.divisor,
        channels=len(card.output.offsets),
        precision=precision,
        threads=threads,
    )


def run_onnx(path: Path, patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run an ONNX file once in fp32, without a card; what exports are checked with."""
    return OpenVinoSession(path, precision="fp32").run(patches)


class OpenVinoSession:
    """A network on the CPU; see `infra.runtimes.session.Session`. `channels` None admits any output."""

    def __init__(
        self,
        path: Path,
        *,
        divisor: Triple = (1, 1, 1),
        channels: int | None = None,
        precision: str = "auto",
        threads: int | None = None,
    ) -> None:
        self._core = openvino.Core()
        self._divisor, self._channels = divisor, channels
        self._precision = _choose(precision, self._core.get_property(DEVICE, properties.device.capabilities))
        self._threads = threads or len(os.sched_getaffinity(0))
        self._requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self._lock = threading.Lock()
        try:
            self._network = self._core.read_model(path)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InvalidModel(f"{path}: OpenVINO cannot read the network ({reason})") from error

    @property
    def device(self) -> str:
        """Name of the processor and number of threads."""
        name = self._core.get_property(DEVICE, properties.device.full_name)
        return f"{name.strip()}, {self._threads} threads"

    @property
    def precision(self) -> str:
        """The precision that convolutions are computed in."""
        return self._precision

    @property
    def engine(self) -> str:
        """Name and version of the engine."""
        return f"OpenVINO {openvino.__version__.split('-')[0]}"

    def run(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network; see `infra.runtimes.session.Session.run`."""
        check_patches(patches, self._divisor)
        given = np.ascontiguousarray(patches)
        with self._lock:
            request = self._request(patches.shape)
            result = np.empty(request.model_outputs[0].shape, np.float32)
            request.set_output_tensor(openvino.Tensor(result, shared_memory=True))
            request.infer({0: openvino.Tensor(given, shared_memory=True)}, share_outputs=True)
        return result

    def _request(self, shape: tuple[int, ...]) -> Any:
        if shape in self._requests:
            self._requests.move_to_end(shape)
            return self._requests[shape]
        network = self._network.clone()
        network.reshape(list(shape))
        compiled = self._core.compile_model(
            network,
            DEVICE,
            {
                hint.inference_precision: _TYPES[self._precision],
                hint.performance_mode: hint.PerformanceMode.LATENCY,
                properties.num_streams: 1,
                properties.inference_num_threads: self._threads,
                hint.enable_cpu_pinning: False,
            },
        )
        used = _NAMES.get(compiled.get_property(hint.inference_precision))
        if used != self._precision:
            raise RuntimeUnavailable(f"OpenVINO: asked for {self._precision}, the engine compiled for {used}")
        outputs = tuple(compiled.output(0).shape)
        if self._channels is not None and outputs != (shape[0], self._channels, *shape[2:]):
            raise InvalidModel(f"network: card promises {self._channels} channels of {shape[2:]}, it returns {outputs}")
        self._requests[shape] = compiled.create_infer_request()
        if len(self._requests) > COMPILED_SHAPES:
            self._requests.popitem(last=False)
        return self._requests[shape]


def _choose(precision: str, capabilities: list[str]) -> str:
    if precision == "auto":
        return "bf16" if "BF16" in capabilities else "fp32"
    if _CAPABILITY[precision] not in capabilities:
        raise RuntimeUnavailable(
            f"OpenVINO: this processor does not compute {precision} natively (it offers {', '.join(capabilities)})"
        )
    return precision
