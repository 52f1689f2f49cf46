"""Finds the format of a URL and opens or creates the volume there.

A format is a module with `open_`, `create` and `delete`; it is imported when its first volume is opened, so that a
worker that reads zarr never loads HDF5.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Literal, Protocol, cast

from infra.settings import Settings, current_settings
from infra.volumes.base import Incomplete, Volume
from infra.volumes.failures import storage_errors
from infra.volumes.info import VolumeInfo
from infra.volumes.location import Location
from infra.volumes.pyramid import pyramid_levels
from infra.volumes.stores import Objects
from models.errors import InvalidInput, InvalidVolume, NotFound
from models.geometry import Triple, VoxelSize

Exists = Literal["error", "reuse", "replace"]

_MODULES = {
    "zarr": "infra.volumes.zarr_arrays",
    "zarr2": "infra.volumes.zarr_arrays",
    "zarr3": "infra.volumes.zarr_arrays",
    "precomputed": "infra.volumes.precomputed",
    "hdf5": "infra.volumes.hdf5",
    "tiff": "infra.volumes.tiff",
    "npy": "infra.volumes.npy",
    "npz": "infra.volumes.npz",
}
_PREFIXES = ("zarr", "zarr2", "zarr3", "precomputed")
"""Formats whose volume is all that lies below a prefix."""
_MARKERS = {"zarr.json": "zarr", ".zarray": "zarr", ".zgroup": "zarr", "info": "precomputed"}


class _Format(Protocol):
    def open_(
        self, location: Location, *, writable: bool, level: int, voxel_size_nm: VoxelSize | None, settings: Settings
    ) -> Volume: ...

    def create(self, location: Location, info: VolumeInfo, settings: Settings) -> None: ...

    def delete(self, location: Location, settings: Settings) -> None: ...


class _PyramidFormat(Protocol):
    def create_levels(
        self, location: Location, levels: Sequence[VolumeInfo], factors: Sequence[Triple], settings: Settings
    ) -> None: ...


def open_volume(
    url: str | os.PathLike[str],
    mode: Literal["r", "r+"] = "r",
    *,
    level: int = 0,
    voxel_size_nm: VoxelSize | None = None,
) -> Volume:
    """Open the volume at a URL: `[FORMAT://][file://|gs://|s3://|memory://]PATH[:MEMBER]`.

    `mode` "r" reads, "r+" also writes; `level` picks a level of a pyramid, 0 the finest; `voxel_size_nm` (z, y, x)
    supplies or overrides what the volume says. Relative paths are relative to the working directory.

    Raises `NotFound`, `AccessDenied`, `StorageFailed`, or `InvalidVolume` for what is no volume of three dimensions.
    """
    if mode not in ("r", "r+"):
        raise InvalidInput(f"{url}: expected mode 'r' or 'r+', got {mode!r}")
    settings, location = current_settings(), Location.parse(url)
    with storage_errors(str(location)):
        return _open(location, writable=mode == "r+", level=level, voxel_size_nm=voxel_size_nm, settings=settings)


def create_volume(url: str | os.PathLike[str], info: VolumeInfo, *, exists: Exists = "error") -> Volume:
    """Create a volume full of zeros and open it for writing.

    The name says the format (.zarr, .h5:/dataset, .tif, .npy), or a prefix does: `zarr2://`, `zarr3://` (what .zarr
    means), `precomputed://`. Where a volume already is, `exists` "error" refuses, "reuse" opens it if its shape, dtype
    and metadata are the same, "replace" deletes it first. What is not recognised as a volume is never deleted.

    Raises `InvalidVolume` for an existing or different volume and for what the format cannot store.
    """
    settings, location = current_settings(), _for_creation(url)
    with storage_errors(str(location)):
        found = _make_way(location, info, exists, settings)
        if found is not None:
            return found
        _format(location).create(location, info, settings)
        return _open(location, writable=True, level=0, voxel_size_nm=None, settings=settings)


def create_pyramid(
    url: str | os.PathLike[str], info: VolumeInfo, factors: Sequence[Triple], *, exists: Exists = "error"
) -> list[Volume]:
    """Create a pyramid whose finest level is `info`, and open all its levels for writing, finest first.

    `factors[i]` (z, y, x) is what level i + 1 is coarser than level i by. The voxels of every level are the caller's to
    write. OME-Zarr (`.zarr`, `zarr2://`) and `precomputed://` hold pyramids; `exists` as in `create_volume`.
    """
    settings, location = current_settings(), _for_creation(url)
    if location.format not in _PREFIXES:
        raise InvalidInput(f"{location}: expected zarr or precomputed for a pyramid, got {location.format}")
    levels, totals = pyramid_levels(info, factors)
    with storage_errors(str(location)):
        if _make_way(location, info, exists, settings) is None:
            cast(_PyramidFormat, _format(location)).create_levels(location, levels, totals, settings)
        volumes = [
            _open(location, writable=True, level=number, voxel_size_nm=None, settings=settings)
            for number in range(len(levels))
        ]
    for wanted, volume in zip(levels, volumes, strict=True):
        if difference := _difference(wanted, volume):
            raise InvalidVolume(f"{volume.url}: level {volume.level} cannot be reused: wanted {difference} there")
    return volumes


def delete_volume(url: str | os.PathLike[str]) -> None:
    """Delete the volume at a URL that says the format, as `create_volume` takes it, with all its levels.

    What is not recognised as a volume is never deleted. Raises `NotFound` where there is none, and what opening it
    raises.
    """
    settings, location = current_settings(), _for_creation(url)
    with storage_errors(str(location)):
        _open(location, writable=False, level=0, voxel_size_nm=None, settings=settings).close()
        _format(location).delete(location, settings)


def _difference(wanted: VolumeInfo, found: Volume) -> str | None:
    difference = wanted.difference(found.info)
    if difference is None and found.format in ("zarr", "precomputed", "hdf5"):  # the others have no chunks to choose
        return wanted.storage_difference(found.info)
    return difference


def _format(location: Location) -> _Format:
    return cast(_Format, importlib.import_module(_MODULES[str(location.format)]))


def _open(
    location: Location, *, writable: bool, level: int, voxel_size_nm: VoxelSize | None, settings: Settings
) -> Volume:
    if location.format is None:
        location = _recognised(location, settings)
    return _format(location).open_(
        location, writable=writable, level=level, voxel_size_nm=voxel_size_nm, settings=settings
    )


def _recognised(location: Location, settings: Settings) -> Location:
    objects = Objects(location, settings)
    for marker, name in _MARKERS.items():
        if objects.read(marker) is not None:
            return Location(location.scheme, location.path, name, location.member)
    raise NotFound(
        f"{location}: no volume is there: expected a prefix that holds one of {', '.join(_MARKERS)}, "
        f"or a name ending in .zarr, .h5:/dataset, .tif, .npy or .npz"
    )


def _for_creation(url: str | os.PathLike[str]) -> Location:
    location = Location.parse(url)
    if location.format is None:
        raise InvalidInput(
            f"{location}: expected a name that says the format (.zarr, .h5:/dataset, .tif, .npy), "
            f"or a prefix zarr://, zarr2:// or precomputed://"
        )
    return location


def _make_way(location: Location, info: VolumeInfo, exists: Exists, settings: Settings) -> Volume | None:
    """The volume to reuse, or None once nothing is in the way of a new one."""
    if exists not in ("error", "reuse", "replace"):
        raise InvalidInput(f"exists: expected 'error', 'reuse' or 'replace', got {exists!r}")
    try:
        found = _open(location, writable=exists == "reuse", level=0, voxel_size_nm=None, settings=settings)
    except FileNotFoundError as error:
        if isinstance(error, Incomplete) and exists == "reuse":
            return None
        if location.format in _PREFIXES and Objects(location, settings).occupied():
            raise InvalidVolume(f"{location}: holds something that is no volume; it is left alone, delete it") from None
        return None
    if exists == "error":
        raise InvalidVolume(f"{location}: a volume is already there: {found.identity()}")
    if exists == "replace":
        found.close()
        _format(location).delete(location, settings)
        return None
    if difference := _difference(info, found):
        raise InvalidVolume(f"{location}: the volume there cannot be reused: wanted {difference} there")
    return found
