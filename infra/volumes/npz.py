"""Volumes in .npz archives, `file.npz:key`: read only, each array loaded whole when first read.

The key may be left out where the archive holds one array. Metadata of the archive may lie in `FILE.npz.json`.
"""

from __future__ import annotations

import io
import zipfile
from functools import cached_property
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from infra.settings import Settings
from infra.volumes.base import Volume
from infra.volumes.info import VolumeInfo, info_of_array
from infra.volumes.location import Location
from infra.volumes.npy import one_section, refuse_level
from infra.volumes.sidecar import with_sidecar
from infra.volumes.stores import Objects
from models.errors import AccessDenied, InvalidVolume, NotFound
from models.geometry import Box, VoxelSize


class NpzVolume(Volume):
    """One array of an archive as a volume."""

    format = "npz"
    counts_boxes = True

    def __init__(self, location: Location, info: VolumeInfo, key: str, **options: Any) -> None:
        super().__init__(location, info, **options)
        self._key = key

    @cached_property
    def _array(self) -> NDArray[Any]:
        with _opened(self.location, self.settings) as source, np.load(source, allow_pickle=False) as archive:
            array: NDArray[Any] = archive[self._key]
            return array

    def _read(self, box: Box) -> NDArray[Any]:
        return np.array(self._array[(..., *box.slices())], order="C", copy=True)

    def _write(self, box: Box, array: NDArray[Any]) -> None:
        raise AccessDenied(f"{self.url}: .npz is read only")

    def _stamp(self) -> str:
        return Objects(self.location, self.settings).stamp()


def open_(
    location: Location, *, writable: bool, level: int, voxel_size_nm: VoxelSize | None, settings: Settings
) -> Volume:
    """Open one array of an archive; its voxels are not loaded yet."""
    refuse_level(location, level)
    if writable:
        raise AccessDenied(f"{location}: .npz is read only; write .npy or zarr")
    with _opened(location, settings) as source, zipfile.ZipFile(source) as archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        key = _chosen(location, keys)
        with archive.open(f"{key}.npy") as member:
            shape, dtype = _header(member)
    info = info_of_array(shape, dtype, str(location), chunks=one_section(shape))
    info = with_sidecar(info, Location(location.scheme, location.path), settings)
    return NpzVolume(location, info, key, voxel_size_nm=voxel_size_nm, settings=settings)


def create(location: Location, info: VolumeInfo, settings: Settings) -> None:
    """Refuse: an archive cannot be written box by box."""
    raise InvalidVolume(f"{location}: .npz cannot be written box by box; write .npy or zarr")


def delete(location: Location, settings: Settings) -> None:
    """Refuse, as `create` does."""
    raise InvalidVolume(f"{location}: .npz is read only; write .npy or zarr")


def _opened(location: Location, settings: Settings) -> IO[bytes]:
    if location.scheme == "file":
        return open(location.path, "rb")
    data = Objects(location, settings).read()
    if data is None:
        raise NotFound(f"{location}: no such file")
    return io.BytesIO(data)


def _chosen(location: Location, keys: list[str]) -> str:
    if location.member is None and len(keys) == 1:
        return keys[0]
    if location.member in keys:
        return str(location.member)
    listed = ", ".join(sorted(keys)) or "none"
    if location.member is None:
        raise InvalidVolume(f"{location}: expected a key, as in {location}:KEY; its arrays: {listed}")
    raise NotFound(f"{location}: no array {location.member!r}; its arrays: {listed}")


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    read = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
    version = npy_format.read_magic(member)
    shape, _, dtype = read.get(version, npy_format.read_array_header_2_0)(member)
    return tuple(shape), dtype
