"""Volumes in .npy files: memory-mapped on local disks, read whole from buckets. Metadata lies in `FILE.npy.json`."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from infra.settings import Settings
from infra.volumes.base import Volume
from infra.volumes.info import VolumeInfo, info_of_array
from infra.volumes.location import Location
from infra.volumes.sidecar import delete_sidecar, with_sidecar, write_sidecar
from infra.volumes.stores import Objects, local_path
from models.errors import NotFound
from models.geometry import Box, VoxelSize


class ArrayVolume(Volume):
    """An array in memory or mapped into it, as a volume."""

    counts_boxes = True

    def __init__(self, location: Location, info: VolumeInfo, array: NDArray[Any], format_: str, **options: Any) -> None:
        super().__init__(location, info, **options)
        self.format = format_
        self._array = array

    def _read(self, box: Box) -> NDArray[Any]:
        return np.array(self._array[(..., *box.slices())], order="C", copy=True)

    def _write(self, box: Box, array: NDArray[Any]) -> None:
        self._array[(..., *box.slices())] = array

    def close(self) -> None:
        """Write what the operating system still holds back."""
        if isinstance(self._array, np.memmap) and self.writable:
            self._array.flush()

    def _stamp(self) -> str:
        return Objects(self.location, self.settings).stamp()


def one_section(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The storage chunk of a contiguous array: one z section."""
    return (1, *shape[-2:])


def open_(
    location: Location, *, writable: bool, level: int, voxel_size_nm: VoxelSize | None, settings: Settings
) -> Volume:
    """Open an .npy file."""
    refuse_level(location, level)
    if location.scheme == "file":
        array = open_memmap(local_path(location, ".npy"), mode="r+" if writable else "r")
    else:
        local_path(location, "writing .npy") if writable else None
        data = Objects(location, settings).read()
        if data is None:
            raise NotFound(f"{location}: no such file")
        array = np.load(io.BytesIO(data), allow_pickle=False)
    info = info_of_array(array.shape, array.dtype, str(location), chunks=one_section(array.shape))
    info = with_sidecar(info, location, settings)
    return ArrayVolume(location, info, array, "npy", writable=writable, voxel_size_nm=voxel_size_nm, settings=settings)


def create(location: Location, info: VolumeInfo, settings: Settings) -> None:
    """Create an .npy file and its sidecar."""
    path = local_path(location, "writing .npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sidecar(info, location, settings)
    array = open_memmap(path, mode="w+", dtype=info.dtype, shape=info.array_shape())
    del array
    reserve(path)


def delete(location: Location, settings: Settings) -> None:
    """Delete the file and its sidecar."""
    Objects(location, settings).delete_all()
    delete_sidecar(location, settings)


def reserve(path: os.PathLike[str]) -> None:
    """Reserve the disk space of a sparse file: writing through a map to a full disk would kill the process instead."""
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError:
            os.unlink(path)
            raise


def refuse_level(location: Location, level: int) -> None:
    """Raise `NotFound` for a level other than 0, in formats without pyramids."""
    if level:
        raise NotFound(f"{location}: {location.format} has only level 0, asked for level {level}")
