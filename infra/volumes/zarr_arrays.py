"""Volumes in zarr, versions 2 and 3, sharded or not: single arrays and the levels of OME-Zarr pyramids.

Axes are stored z, y, x or c, z, y, x. All channels of a voxel lie in one stored chunk: every read wants them all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.core.buffer import default_buffer_prototype

from infra.settings import Settings
from infra.volumes.base import Incomplete, Volume
from infra.volumes.info import DOCUMENT, VolumeInfo, info_of_array, nearest_voxels
from infra.volumes.location import Location
from infra.volumes.ome import axis_names, multiscale_of, ome_attributes, placement
from infra.volumes.presence import confirm_present, refuse_vanished_folder
from infra.volumes.stores import Objects
from infra.volumes.zarr_store import zarr_store
from models.errors import InvalidVolume, NotFound
from models.geometry import Box, Triple, VoxelSize

MARKERS = ("zarr.json", ".zarray", ".zgroup")
"""Objects that say that a zarr array or group lies at a prefix."""


class ZarrVolume(Volume):
    """A zarr array as a volume."""

    format = "zarr"

    def __init__(self, location: Location, info: VolumeInfo, array: zarr.Array[Any], path: str, **options: Any) -> None:
        super().__init__(location, info, **options)
        self._array = array
        self._array_path = path
        self._pid = os.getpid()

    def _opened(self) -> zarr.Array[Any]:
        if self._pid != os.getpid():  # event loop and connections do not survive a fork
            self._array = open_array(self.location, self._array_path, self.settings, writable=self.writable)
            self._pid = os.getpid()
        return self._array

    def _selection(self, box: Box) -> tuple[int | slice, ...]:
        slices: tuple[slice, ...] = box.slices()
        if self.info.channels is not None:
            slices = (slice(None), *slices)
        return (0,) * (self._array.ndim - len(slices)) + slices

    def _read(self, box: Box) -> NDArray[Any]:
        with self._presence_confirmed() as opened:
            return np.asarray(opened[self._selection(box)])

    def _write(self, box: Box, array: NDArray[Any]) -> None:
        refuse_vanished_folder(self._place, self._metadata_name)
        with self._presence_confirmed() as opened:  # pieces that the box covers in part are read first
            opened[self._selection(box)] = array

    @contextmanager
    def _presence_confirmed(self) -> Iterator[zarr.Array[Any]]:
        """The array; once the block has ended, it is asked for again if any of its objects was missing meanwhile."""
        opened = self._opened()
        store = opened.store
        before = store.absences  # type: ignore[attr-defined]
        yield opened
        if store.absences != before:  # type: ignore[attr-defined]
            expected, name = _layout(opened.metadata), self._metadata_name
            of = type(opened.metadata).from_dict
            confirm_present(self._objects(), name, lambda content: _layout(of(json.loads(content))) == expected)

    @property
    def _metadata_name(self) -> str:
        return "zarr.json" if self._array.metadata.zarr_format == 3 else ".zarray"

    @property
    def _place(self) -> Location:
        return self.location.child(self._array_path) if self._array_path else self.location

    def _objects(self) -> Objects:
        return Objects(self._place, self.settings)

    def _stamp(self) -> str:
        return self._objects().stamp(self._metadata_name)


def _layout(metadata: Any) -> str:
    """What decides how an array's objects are read: its metadata without the attributes."""
    documents = metadata.to_buffer_dict(default_buffer_prototype())
    name = "zarr.json" if metadata.zarr_format == 3 else ".zarray"
    layout = json.loads(documents[name].to_bytes())
    return json.dumps({key: value for key, value in layout.items() if key != "attributes"}, sort_keys=True)


def open_array(location: Location, path: str, settings: Settings, *, writable: bool) -> zarr.Array[Any]:
    """The zarr array at `path` below a location."""
    store = zarr_store(location, settings, read_only=not writable)
    return zarr.open_array(store=store, path=path, mode="r+" if writable else "r")


def open_(
    location: Location, *, writable: bool, level: int, voxel_size_nm: VoxelSize | None, settings: Settings
) -> Volume:
    """Open an array, or level `level` of a pyramid."""
    url = str(location)
    store = zarr_store(location, settings, read_only=not writable)
    try:
        node = zarr.open(store=store, mode="r+" if writable else "r")
    except FileNotFoundError as error:
        raise NotFound(f"{url}: no zarr array or group is there") from error
    if isinstance(node, zarr.Group):
        multiscale, path = _level(node, level, url)
        found = node.get(path)
        if not isinstance(found, zarr.Array):
            raise Incomplete(f"{url}: level {level} names the array {path!r}, which is not there")
        array = found
    else:
        if level:
            raise NotFound(f"{url}: a single array has only level 0, asked for level {level}")
        array, path, multiscale = node, "", None
    info = _info(array, multiscale, level, url)
    return ZarrVolume(
        location, info, array, path, writable=writable, level=level, voxel_size_nm=voxel_size_nm, settings=settings
    )


def _level(group: zarr.Group, level: int, url: str) -> tuple[Mapping[str, Any], str]:
    multiscale = multiscale_of(group.attrs.asdict())
    if multiscale is None:
        arrays = ", ".join(sorted(group.array_keys())) or "none"
        raise InvalidVolume(f"{url}: a zarr group without OME multiscales; its arrays: {arrays}")
    datasets = multiscale["datasets"]
    if not 0 <= level < len(datasets):
        raise NotFound(f"{url}: expected a level from 0 to {len(datasets) - 1}, asked for {level}")
    return multiscale, str(datasets[level]["path"])


def _info(array: zarr.Array[Any], multiscale: Mapping[str, Any] | None, level: int, url: str) -> VolumeInfo:
    attributes = array.attrs.asdict()
    stored: Any = getattr(array.metadata, "dimension_names", None) or attributes.get("_ARRAY_DIMENSIONS") or ()
    names = tuple(str(name) for name in stored) if multiscale is None else axis_names(multiscale)
    shape, chunks, shards = array.shape, array.chunks, array.shards
    if len(shape) == 5 or names[:1] == ("t",):
        if shape[0] != 1:
            raise InvalidVolume(f"{url}: expected one time point, got an array of shape {shape}")
        shape, chunks, shards = shape[1:], chunks[1:], None if shards is None else shards[1:]
    if set(names[-3:]) == {"z", "y", "x"} and names[-3:] != ("z", "y", "x"):
        raise InvalidVolume(f"{url}: expected axes z, y, x, got {', '.join(names)}")
    info = info_of_array(shape, array.dtype, url, chunks=chunks, shards=shards)
    if DOCUMENT in attributes:
        return info.with_document(attributes[DOCUMENT], url)
    placed = _foreign_placement(attributes, url) if multiscale is None else placement(multiscale, level, url)
    return replace(info, **placed)


def _foreign_placement(attributes: Mapping[str, Any], url: str) -> dict[str, Any]:
    """Voxel size and offset in nanometres, as several connectomics packages write them beside an array."""
    size = attributes.get("voxel_size", attributes.get("resolution"))
    if not isinstance(size, Sequence) or len(size) != 3:
        return {}
    voxel_size: VoxelSize = (float(size[0]), float(size[1]), float(size[2]))
    offset = attributes.get("offset", (0, 0, 0))
    return {"voxel_size_nm": voxel_size, "offset_voxels": nearest_voxels(offset, voxel_size, url)}


def create(location: Location, info: VolumeInfo, settings: Settings) -> None:
    """Create a single array; zarr 3 unless the URL begins with zarr2://."""
    create_array(location, "", info, settings)


def create_array(location: Location, path: str, info: VolumeInfo, settings: Settings) -> None:
    """Create the array `path` below a location, filled with 0."""
    version = zarr_version(location)
    if version == 2 and info.shard_shape is not None:
        raise InvalidVolume(f"{location}: zarr 2 has no shards, got shard_shape {info.shard_shape}")
    leading = () if info.channels is None else (info.channels,)
    chunk = info.chunk_shape or _default_chunk(info)
    zarr.create_array(
        store=zarr_store(location, settings, read_only=False),
        name=path or None,
        shape=info.array_shape(),
        dtype=info.dtype,
        chunks=(*leading, *chunk),
        shards=None if info.shard_shape is None else (*leading, *info.shard_shape),
        compressors=_compressor(info.dtype, version),
        fill_value=0,
        zarr_format=version,
        chunk_key_encoding={"name": "v2", "separator": "/"} if version == 2 else None,
        dimension_names=info.axes if version == 3 else None,
        attributes={DOCUMENT: info.document()},
    )


def create_levels(
    location: Location, levels: Sequence[VolumeInfo], factors: Sequence[Triple], settings: Settings
) -> None:
    """Create an OME-Zarr pyramid, finest level first; `factors` of each level against the finest."""
    paths = [str(level) for level in range(len(levels))]
    version = zarr_version(location)
    name = location.path.rsplit("/", 1)[-1]
    store = zarr_store(location, settings, read_only=False)
    attributes = ome_attributes(levels[0], factors, paths, name, zarr_version=version)
    group = zarr.open_group(store=store, mode="a", zarr_format=version, attributes=attributes)
    # Finest level last: where it is there, all are. After an interruption the levels that are there are kept.
    for path, info in reversed(list(zip(paths, levels, strict=True))):
        if path not in group:
            create_array(location, path, info, settings)


def delete(location: Location, settings: Settings) -> None:
    """Delete the array or pyramid with all its objects."""
    Objects(location, settings).delete_all()


def zarr_version(location: Location) -> Literal[2, 3]:
    """The zarr version that a new volume gets."""
    return 2 if location.format == "zarr2" else 3


def _default_chunk(info: VolumeInfo) -> tuple[int, ...]:
    return tuple(min(64, extent) for extent in info.shape)


def _compressor(dtype: np.dtype[Any], version: int) -> Any:
    # Measured on FIB-SEM, chunks of 64^3, one core, ratio and MB/s written and read with zarr-python:
    # uint64 labels   zstd-3 88x 473/1293, blosc-zstd-1 with shuffle 28x 350/331, blosc-lz4 with shuffle 10x 839/1740
    # uint8 affinity  zstd-1 1.36x 128/297, zstd-3 1.47x 71/233, blosc-lz4 1.15x 120/260, blosc-zstd-3 1.48x 49/182
    # Shuffling breaks up the runs that make labels compress, so labels do without it. The checksum finds damaged bytes.
    level = 3 if dtype.itemsize >= 4 and dtype.kind in "ui" else 1
    if version == 3:
        return ZstdCodec(level=level, checksum=True)
    from numcodecs import Zstd  # type: ignore[import-untyped]

    return Zstd(level=level, checksum=True)
