"""The few calls of the CUDA driver that inference needs, through ctypes.

The driver's library comes with every NVIDIA GPU, so this needs no CUDA toolkit, no framework and no extra package.

Reference: CUDA Driver API, https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import RuntimeUnavailable

LIBRARY = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_NON_BLOCKING = 1


def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    return library if library.cuInit(0) == 0 else None


def device_count() -> int:
    """Number of NVIDIA GPUs that the driver shows, 0 without a driver."""
    library = _library()
    count = ctypes.c_int(0)
    if library is None or library.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


class Gpu:
    """One GPU's primary context and a stream; raises `RuntimeUnavailable` where there is none."""

    def __init__(self, ordinal: int = 0) -> None:
        library = _library()
        if library is None or device_count() <= ordinal:
            raise RuntimeUnavailable("CUDA: no NVIDIA GPU or driver on this machine")
        self._library = library
        self._device, self._context, self.stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(ordinal))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self.activate()
        self._call("cuStreamCreate", ctypes.byref(self.stream), ctypes.c_uint(_NON_BLOCKING))

    @property
    def name(self) -> str:
        """The GPU's name, for example "NVIDIA H100"."""
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, ctypes.c_int(len(text)), self._device)
        return text.value.decode()

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Major and minor compute capability."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(major), ctypes.c_int(_CAPABILITY_MAJOR), self._device)
        self._call("cuDeviceGetAttribute", ctypes.byref(minor), ctypes.c_int(_CAPABILITY_MINOR), self._device)
        return major.value, minor.value

    def activate(self) -> None:
        """Make the context the calling thread's own; each thread must, before other calls."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, nbytes: int) -> int:
        """Address of new device memory; give it back with `free`."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(nbytes))
        return address.value

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy a contiguous array to the device, on the stream."""
        self._call(
            "cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes), self.stream,
        )  # fmt: skip

    def download(self, address: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Copy float32 from the device, on the stream, and wait until it is there."""
        array = np.empty(shape, np.float32)
        self._call(
            "cuMemcpyDtoHAsync_v2", ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes), self.stream,
        )  # fmt: skip
        self._call("cuStreamSynchronize", self.stream)
        return array

    def close(self) -> None:
        """Release stream and context."""
        self._call("cuStreamDestroy_v2", self.stream)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(ctypes.c_int(status), ctypes.byref(text))
            reason = text.value.decode() if text.value else "unknown error"
            raise RuntimeUnavailable(f"CUDA: {function} failed with {status} ({reason})")
