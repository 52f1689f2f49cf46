"""Tells a piece that was never written from an array that has vanished: both read as 0.

Arrays in buckets and folders do not store what is 0 throughout, so libraries take a missing object for zeros. After a
read that met a missing object, one request asks whether the array's metadata are still what they were when it was
opened. Where nothing is missing, nothing is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from infra.volumes.location import Location
from infra.volumes.stores import Objects
from models.errors import StorageFailed
from models.geometry import Box, ChunkGrid, Triple


def confirm_present(objects: Objects, name: str, same: Callable[[bytes], bool]) -> None:
    """Raise `StorageFailed` unless the metadata object `name` is there and `same` says that it tells of this array."""
    where, content = f"{objects.location}/{name}", objects.read(name)
    if content is None:
        raise StorageFailed(f"{where}: gone since the volume was opened, and with it the voxels that are missing")
    try:
        unchanged = same(content)
    except (ValueError, KeyError, TypeError, IndexError):
        unchanged = False
    if not unchanged:
        raise StorageFailed(f"{where}: changed since the volume was opened, and voxels are missing; open it again")


def refuse_vanished_folder(location: Location, name: str) -> None:
    """Raise `StorageFailed` where a local volume's folder is gone: writing would make it anew, without metadata."""
    path = Path(location.path) / name
    if location.scheme == "file" and not path.is_file():
        raise StorageFailed(f"{path}: gone since the volume was opened, nothing is written")


def has_blank_piece(found: NDArray[Any], box: Box, piece: Triple) -> bool:
    """Whether a stored piece of extent `piece` may be missing: what `box` shows of it is 0 throughout.

    `found` is (z, y, x) or (c, z, y, x) and holds `box`; pieces tile the array from its first voxel.
    """
    z, y, x = (start // extent * extent for start, extent in zip(box.start, piece, strict=True))
    for chunk in ChunkGrid(Box((z, y, x), box.stop), piece):
        part = found[(..., *chunk.box.intersection(box).slices(box.start))]
        if not part[..., 0, 0, 0].any() and not part.any():
            return True
    return False
