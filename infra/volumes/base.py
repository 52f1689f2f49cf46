"""`Volume`: what every format offers, and the checks that all of them share.

A volume reads and writes boxes of array coordinates, (0, 0, 0) to `info.shape`; where the volume lies in the physical
frame is `info.offset_voxels`. It can be pickled, and is then opened again from its URL.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from infra.settings import Settings
from infra.volumes.failures import storage_errors
from infra.volumes.info import VolumeInfo
from infra.volumes.location import Location
from infra.volumes.metering import count
from models.errors import AccessDenied, InvalidVolume, NotFound
from models.geometry import Box, VoxelSize


class Incomplete(NotFound):
    """A pyramid whose creation was interrupted: its metadata names arrays that are not there."""


class Volume(ABC):
    """An opened volume.

    Processes may write at the same time if their boxes are disjoint and aligned to `info.write_shape`; boxes that share
    a stored chunk may lose voxels of one of the writers.
    """

    format: str
    counts_boxes: bool = False
    """Whether the meter counts boxes of local files, because the format keeps its file open or mapped."""
    reaches_out: bool = False
    """Whether some of its voxels lie in other files, which its metadata name."""

    def __init__(
        self,
        location: Location,
        info: VolumeInfo,
        *,
        writable: bool = False,
        level: int = 0,
        voxel_size_nm: VoxelSize | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.location = location
        self.url = str(location)
        self.info = info if voxel_size_nm is None else replace(info, voxel_size_nm=voxel_size_nm)
        self.writable = writable
        self.level = level
        self.settings = settings or Settings()
        self._given_voxel_size = voxel_size_nm

    def __repr__(self) -> str:
        return f"<{self.format} volume {self.url} {self.info.array_shape()} {self.info.dtype}>"

    def __reduce__(self) -> tuple[Callable[..., Volume], tuple[Any, ...]]:
        return reopen, (self.url, "r+" if self.writable else "r", self.level, self._given_voxel_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - most formats hold nothing open
        """Let go of what is held open; the volume must not be used afterwards."""

    @property
    def box(self) -> Box:
        """The box of all voxels, in array coordinates."""
        return self.info.box

    def read(self, box: Box, *, fill: float | int | None = None) -> NDArray[Any]:
        """The voxels of `box`, as a new C-ordered array (z, y, x) or (c, z, y, x) of `info.dtype`.

        A box beyond the volume's edge raises `InvalidVolume`, unless `fill` is given: then what lies outside has that
        value. Voxels that were never written read as 0. Raises `StorageFailed` for damaged bytes or a store that fails,
        `AccessDenied` where it refuses.
        """
        inside = self.box.intersection(box)
        if inside != box and fill is None and box.size:
            raise InvalidVolume(f"{self.url}: box {box} lies beyond the volume's bounds {self.box}")
        if inside == box and box.size:
            return self._read_checked(box)
        out = np.full(self.info.array_shape(box), 0 if fill is None else fill, dtype=self.info.dtype)
        if inside.size:
            out[(..., *inside.slices(box.start))] = self._read_checked(inside)
        return out

    def write(self, box: Box, array: NDArray[Any]) -> None:
        """Write `array`, (z, y, x) or (c, z, y, x) of exactly `info.dtype`, into `box`.

        Raises `InvalidVolume` for a box beyond the edge, another shape or another dtype (nothing is cast),
        `AccessDenied` for a volume opened for reading, `StorageFailed` where the store fails, e.g. a full disk.
        """
        if not self.writable:
            raise AccessDenied(f"{self.url}: opened for reading; open it with mode 'r+' to write box {box}")
        if not self.box.contains(box):
            raise InvalidVolume(f"{self.url}: box {box} lies beyond the volume's bounds {self.box}")
        if array.dtype != self.info.dtype:
            raise InvalidVolume(f"{self.url}: box {box}: expected dtype {self.info.dtype}, got {array.dtype}")
        if array.shape != self.info.array_shape(box):
            raise InvalidVolume(
                f"{self.url}: box {box}: expected shape {self.info.array_shape(box)}, got {array.shape}"
            )
        if box.size:
            with storage_errors(f"{self.url}: writing box {box}"):
                self._write(box, array)
            if self.counts_boxes and self.location.scheme == "file":
                count("put", bytes_out=array.nbytes)

    def identity(self) -> str:
        """A stable text that differs once the volume is replaced: its layout, and the stamp of its metadata or file.

        Voxels that are overwritten in place need not change it.
        """
        info = self.info
        return (
            f"{self.format} level={self.level} shape={info.array_shape()} dtype={info.dtype} "
            f"voxel_size_nm={info.voxel_size_nm} offset={info.offset_voxels} {self._stamp()}"
        )

    def _read_checked(self, box: Box) -> NDArray[Any]:
        with storage_errors(f"{self.url}: reading box {box}"):
            found = self._read(box)
        if self.counts_boxes and self.location.scheme == "file":
            count("get", bytes_in=found.nbytes)
        expected = self.info.array_shape(box)
        if found.shape != expected:
            raise InvalidVolume(f"{self.url}: box {box}: expected shape {expected}, the format gave {found.shape}")
        return np.ascontiguousarray(found, dtype=self.info.dtype)

    @abstractmethod
    def _read(self, box: Box) -> NDArray[Any]:
        """The voxels of a box inside the volume, in an array of the caller's own."""

    @abstractmethod
    def _write(self, box: Box, array: NDArray[Any]) -> None:
        """Write a checked array into a box inside the volume."""

    @abstractmethod
    def _stamp(self) -> str:
        """What changes when the volume is replaced."""


def reopen(url: str, mode: str, level: int, voxel_size_nm: VoxelSize | None) -> Volume:
    """Open a pickled volume again."""
    from infra.volumes.opening import open_volume

    return open_volume(url, "r+" if mode == "r+" else "r", level=level, voxel_size_nm=voxel_size_nm)
