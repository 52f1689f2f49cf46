"""Volumes in HDF5 files, `file.h5:/dataset`, with CREMI's `resolution` and `offset` attributes (nanometres, z, y, x).

The file is opened for each box and closed after it: HDF5 locks a file that is open for writing, so this is what lets
several processes take turns. The dataset may be left out where the file holds one of three or four axes.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from infra.settings import Settings
from infra.volumes.base import Volume
from infra.volumes.info import DOCUMENT, VolumeInfo, info_of_array, nearest_voxels
from infra.volumes.location import Location
from infra.volumes.npy import one_section, refuse_level
from infra.volumes.stores import Objects, local_path
from models.errors import InvalidVolume, NotFound
from models.geometry import Box, VoxelSize


class Hdf5Volume(Volume):
    """A dataset of an HDF5 file as a volume."""

    format = "hdf5"
    counts_boxes = True

    def __init__(self, location: Location, info: VolumeInfo, dataset: str, **options: Any) -> None:
        super().__init__(location, info, **options)
        self._dataset = dataset

    def _read(self, box: Box) -> NDArray[Any]:
        with _opened(self.location, "r", self.settings) as file:
            return np.asarray(file[self._dataset][(..., *box.slices())])

    def _write(self, box: Box, array: NDArray[Any]) -> None:
        # On a full disk HDF5 swallows the failed write, or crashes, as it closes: look first, and flush before closing.
        if shutil.disk_usage(self.location.path).free < 2 * array.nbytes:
            raise OSError(errno.ENOSPC, "less than twice the box is free")
        with _opened(self.location, "r+", self.settings) as file:
            dataset = file[self._dataset]
            dataset[(..., *box.slices())] = array
            file.flush()

    def _stamp(self) -> str:
        return Objects(Location("file", self.location.path), self.settings).stamp()


def open_(
    location: Location, *, writable: bool, level: int, voxel_size_nm: VoxelSize | None, settings: Settings
) -> Volume:
    """Open a dataset."""
    refuse_level(location, level)
    with _opened(location, "r", settings) as file:
        name = _chosen(location, file)
        dataset = file[name]
        info = _info(dataset, str(location))
        # Also a view of its own file: what it shows may be another view, of another file. Links out are not followed.
        reaches_out = dataset.is_virtual or dataset.external is not None
    options = {"writable": writable, "voxel_size_nm": voxel_size_nm, "settings": settings}
    volume = Hdf5Volume(location, info, name, **options)
    volume.reaches_out = reaches_out
    return volume


def create(location: Location, info: VolumeInfo, settings: Settings) -> None:
    """Create a dataset, and the file where there is none yet."""
    if location.member is None:
        raise InvalidVolume(f"{location}: expected a dataset, as in {location}:/volumes/raw")
    if info.shard_shape is not None:
        raise InvalidVolume(f"{location}: HDF5 has no shards, got shard_shape {info.shard_shape}")
    local_path(location, "HDF5").parent.mkdir(parents=True, exist_ok=True)
    leading = () if info.channels is None else (info.channels,)
    chunk = info.chunk_shape or tuple(min(64, extent) for extent in info.shape)
    chunks = tuple(min(c, extent) for c, extent in zip((*leading, *chunk), info.array_shape(), strict=True))
    with _opened(location, "a", settings) as file:
        dataset = file.create_dataset(
            location.member,
            shape=info.array_shape(),
            dtype=info.dtype,
            chunks=chunks,
            compression="gzip",
            compression_opts=1,
            fillvalue=0,
            fletcher32=True,
        )
        dataset.attrs[DOCUMENT] = json.dumps(info.document())
        if info.voxel_size_nm is not None:
            dataset.attrs["resolution"] = info.voxel_size_nm
            offset = [o * v for o, v in zip(info.offset_voxels, info.voxel_size_nm, strict=True)]
            dataset.attrs["offset"] = offset


def delete(location: Location, settings: Settings) -> None:
    """Delete the dataset; HDF5 gives its space back only to new datasets of the same file."""
    with _opened(location, "r+", settings) as file:
        del file[_chosen(location, file)]


@contextmanager
def _opened(location: Location, mode: Literal["r", "r+", "a"], settings: Settings) -> Iterator[h5py.File]:
    """The open file; waits for other processes that have it open for writing."""
    path = local_path(location, "HDF5")
    if mode != "a" and not path.exists():
        raise NotFound(f"{location}: no such file")
    give_up = time.monotonic() + settings.storage_timeout_s
    while True:
        try:
            file = h5py.File(path, mode)
            break
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.02)
    with file:
        yield file


def _chosen(location: Location, file: h5py.File) -> str:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(f"/{name}") if isinstance(item, h5py.Dataset) else None)
    volumes = [name for name in found if file[name].ndim in (3, 4)]
    if location.member is None and len(volumes) == 1:
        return volumes[0]
    member = None if location.member is None else "/" + location.member.strip("/")
    if member in found:
        return str(member)
    listed = ", ".join(found) or "none"
    if member is None:
        raise InvalidVolume(f"{location}: expected a dataset, as in {location}:/DATASET; its datasets: {listed}")
    raise NotFound(f"{location}: no dataset {member!r}; its datasets: {listed}")


def _info(dataset: h5py.Dataset, url: str) -> VolumeInfo:
    chunks = dataset.chunks or one_section(dataset.shape)
    info = info_of_array(dataset.shape, dataset.dtype, url, chunks=chunks)
    if DOCUMENT in dataset.attrs:
        try:
            document = json.loads(dataset.attrs[DOCUMENT])
        except (TypeError, ValueError) as error:
            raise InvalidVolume(f"{url}: expected JSON in the attribute {DOCUMENT!r}: {error}") from error
        return info.with_document(document, url)
    size = np.ravel(dataset.attrs.get("resolution", ()))
    if len(size) != 3:
        return info
    voxel_size: VoxelSize = (float(size[0]), float(size[1]), float(size[2]))
    offset = [float(o) for o in np.ravel(dataset.attrs.get("offset", (0, 0, 0)))]
    return replace(info, voxel_size_nm=voxel_size, offset_voxels=nearest_voxels(offset, voxel_size, url))
