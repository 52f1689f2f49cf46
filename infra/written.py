"""What a chunk stored, with checksums: what its marker says, and what can be checked later.

Checksums find damage, not forgery, and every voxel that a run writes passes through them, so they are those of xxHash
(XXH3, 128 bits; https://xxhash.com), which reads memory as fast as it comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from models.geometry import Box


@dataclass(frozen=True)
class Written:
    """One object, or one box of an array, as it was stored.

    `url` names the object or the array; `box` and `level` say which voxels of the array, in its own coordinates; the
    checksum is that of the object's bytes, or of the box's values.
    """

    url: str
    checksum: str
    box: Box | None = None
    level: int = 0

    @classmethod
    def content(cls, url: str, content: bytes) -> Written:
        """An object of these bytes."""
        return cls(url, xxhash.xxh3_128_hexdigest(content))

    @classmethod
    def voxels(cls, url: str, box: Box, values: NDArray[Any], level: int = 0) -> Written:
        """The voxels of `box` in an array, channels first where it has any."""
        return cls(url, checksum([values]), box, level)


def checksum(arrays: Iterable[NDArray[Any]]) -> str:
    """A checksum of arrays, their shapes and dtypes, independent of memory layout."""
    sums = xxhash.xxh3_128()
    for array in arrays:
        sums.update(f"{array.dtype.str}{array.shape}".encode())
        sums.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return sums.hexdigest()
