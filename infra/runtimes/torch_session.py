"""Inference with torch, for research: the network is rebuilt from the card, and the weights are the exported file's."""

from __future__ import annotations

import threading

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from infra.runtimes.session import check_patches
from infra.runtimes.typed_onnx import read_onnx
from models.catalog import Model
from models.errors import RuntimeUnavailable
from models.networks.inference import rebuild


def open_model(
    model: Model, *, precision: str = "auto", threads: int | None = None, batch_size: int = 1
) -> TorchSession:
    """Open the network on a GPU if there is one, else on the CPU; see `infra.runtimes.session.open_session`.

    `threads` sets torch's number of threads for the whole process.
    """
    del batch_size
    if threads is not None:
        torch.set_num_threads(threads)
    return TorchSession(model, precision)


class TorchSession:
    """A network in torch; see `infra.runtimes.session.Session`."""

    def __init__(self, model: Model, precision: str) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._precision = "fp32" if precision == "auto" else precision
        if self._precision == "fp16" and self._device.type == "cpu":
            raise RuntimeUnavailable("torch: fp16 is not computed on the CPU; ask for fp32 or bf16")
        graph = read_onnx(model.onnx_path).graph
        weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name.startswith("network.")}
        self._network = rebuild(model.card.architecture, weights).to(self._device)
        self._divisor = model.card.patch.divisor
        self._lock = threading.Lock()

    @property
    def device(self) -> str:
        """The GPU's name, or the CPU and its number of threads."""
        if self._device.type == "cuda":
            return torch.cuda.get_device_name(self._device)
        return f"CPU, {torch.get_num_threads()} threads"

    @property
    def precision(self) -> str:
        """The precision that convolutions are computed in."""
        return self._precision

    @property
    def engine(self) -> str:
        """Name and version of the engine."""
        return f"torch {torch.__version__}"

    def run(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network; see `infra.runtimes.session.Session.run`."""
        check_patches(patches, self._divisor)
        dtype = torch.float16 if self._precision == "fp16" else torch.bfloat16
        with self._lock, torch.inference_mode():
            with torch.autocast(self._device.type, dtype=dtype, enabled=self._precision != "fp32"):
                image = torch.from_numpy(np.ascontiguousarray(patches)).to(self._device)
                result: NDArray[np.float32] = self._network(image).float().cpu().numpy()
        return result
