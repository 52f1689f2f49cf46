"""One protocol for every inference engine, and the one place that chooses between them.

Nothing falls back silently: a runtime or precision that was asked for by name is used or refused, and what "auto"
chose is logged and can be read from the session.
"""

from __future__ import annotations

import importlib
import logging
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from infra.runtimes import tensorrt_modules
from models.catalog import Model
from models.errors import InvalidInput, InvalidVolume
from models.geometry import Triple

logger = logging.getLogger(__name__)

RUNTIMES = ("auto", "openvino", "tensorrt", "torch")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class Session(Protocol):
    """An exported network, ready to run on one device. Calls from several threads are taken one after another."""

    @property
    def device(self) -> str:
        """Where it runs, as the engine names it."""
        ...

    @property
    def precision(self) -> str:
        """The precision that convolutions are computed in: "fp32", "bf16" or "fp16"."""
        ...

    @property
    def engine(self) -> str:
        """Name and version of the engine."""
        ...

    def run(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network.

        Parameters
        ----------
        patches
            float32 (batch, 1, z, y, x), normalised; extents are multiples of the network's divisor.

        Returns
        -------
        float32 (batch, channels, z, y, x), probabilities in [0, 1]; the caller's to keep.
        """
        ...


class SessionAround:
    """A `Session` that says of itself what the one inside says; subclasses run it in their own way."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def device(self) -> str:
        """Where it runs, as the engine names it."""
        return self._session.device

    @property
    def precision(self) -> str:
        """The precision that convolutions are computed in."""
        return self._session.precision

    @property
    def engine(self) -> str:
        """Name and version of the engine."""
        return self._session.engine


def open_session(
    model: Model,
    *,
    runtime: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    patch_shape: Triple | None = None,
    batch_size: int = 1,
) -> Session:
    """Open the exported network of `model` in an inference engine.

    Parameters
    ----------
    model
        A verified model, from `models.catalog.find_model`.
    runtime
        "openvino" (CPU), "tensorrt" (NVIDIA), "torch" (research), or "auto": TensorRT where a GPU and the module are
        present, else OpenVINO.
    precision
        "fp32", "bf16", "fp16", or "auto": the fastest that the device computes natively.
    threads
        CPU threads; default all that the process may use.
    batch_size
        The largest batch that will be run.
    patch_shape
        Run once with patches of this shape, so the first caller does not wait for compilation.

    Raises `InvalidInput` for unknown names, `RuntimeUnavailable` where the engine, device or precision is missing, and
    `InvalidModel` where the engine cannot read the file.
    """
    if runtime not in RUNTIMES:
        raise InvalidInput(f"runtime: expected one of {', '.join(RUNTIMES)}, got {runtime!r}")
    if precision not in PRECISIONS:
        raise InvalidInput(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if threads is not None and threads < 1:
        raise InvalidInput(f"threads: expected at least 1, got {threads}")
    chosen = chosen_runtime(runtime)
    opened = importlib.import_module(f"infra.runtimes.{chosen}_session")
    session: Session = opened.open_model(model, precision=precision, threads=threads, batch_size=batch_size)
    logger.info(
        "model %s runs on %s, %s, %s%s", model.card.name, session.engine, session.device, session.precision,
        " (chosen automatically)" if runtime == "auto" else "",
    )  # fmt: skip
    if patch_shape is not None:
        session.run(np.zeros((batch_size, 1, *patch_shape), np.float32))
    return session


def chosen_runtime(runtime: str) -> str:
    """The runtime that `open_session` takes for `runtime` on this machine."""
    if runtime != "auto":
        return runtime
    return "tensorrt" if tensorrt_modules.usable() else "openvino"


def check_patches(patches: NDArray[np.float32], divisor: Triple) -> None:
    """Refuse, with `InvalidVolume`, patches of another layout or of extents that the network cannot halve."""
    shape = patches.shape
    fits = len(shape) == 5 and shape[0] > 0 and shape[1] == 1 and patches.dtype == np.float32
    if not fits or any(n < 1 or n % d for n, d in zip(shape[2:], divisor, strict=False)):
        raise InvalidVolume(
            f"patches: expected float32 (batch, 1, z, y, x) with multiples of {divisor}, got {patches.dtype} {shape}"
        )
