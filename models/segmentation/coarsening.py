"""The next coarser level of a pyramid: the most frequent label, or the mean, of each block of voxels.

Every block is decided by its own voxels, so a level does not depend on the boxes in which it is made, as long as these
begin at multiples of the factor. Blocks that the volume's end cuts off count the voxels that are there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidVolume
from models.geometry import Triple, triple
from models.segmentation.jit import kernel


def most_frequent(labels: NDArray[np.unsignedinteger[Any]], factor: Triple) -> NDArray[np.unsignedinteger[Any]]:
    """The most frequent label of each block of `factor` voxels; among several the one that comes first in z, y, x.

    `labels` is (z, y, x) of any unsigned dtype, and so is the result, with extents rounded up. Raises `InvalidVolume`
    for another dtype or number of axes, `InvalidInput` for a factor below one.
    """
    if labels.ndim != 3 or labels.dtype.kind != "u":
        raise InvalidVolume(f"labels: expected unsigned integers (z, y, x), got {labels.dtype} of shape {labels.shape}")
    result = np.empty(_coarser(labels.shape, factor), labels.dtype)
    _most_frequent(np.ascontiguousarray(labels), *factor, result)
    return result


def means(image: NDArray[Any], factor: Triple) -> NDArray[Any]:
    """The mean of each block of `factor` voxels, of the image's dtype; integers are rounded, halves up.

    `image` is (z, y, x), integers of up to 32 bits or floats. Raises as `most_frequent`.
    """
    whole = image.dtype.kind in "iu"
    if image.ndim != 3 or not (image.dtype.kind == "f" or (whole and image.dtype.itemsize <= 4)):
        raise InvalidVolume(
            f"image: expected integers of up to 32 bits or floats (z, y, x), got {image.dtype} of shape {image.shape}"
        )
    result = np.empty(_coarser(image.shape, factor), image.dtype)
    (_integer_means if whole else _float_means)(np.ascontiguousarray(image), *factor, result)
    return result


def _coarser(shape: tuple[int, ...], factor: Triple) -> tuple[int, ...]:
    steps = triple(factor, "factor", minimum=1)
    return tuple(-(-n // f) for n, f in zip(shape, steps, strict=True))


@kernel
def _most_frequent(labels: NDArray[Any], fz: int, fy: int, fx: int, result: NDArray[Any]) -> None:
    nz, ny, nx = labels.shape
    block = np.empty(fz * fy * fx, labels.dtype)
    for z in range(result.shape[0]):
        for y in range(result.shape[1]):
            for x in range(result.shape[2]):
                size = 0
                for i in range(z * fz, min(nz, z * fz + fz)):
                    for j in range(y * fy, min(ny, y * fy + fy)):
                        for k in range(x * fx, min(nx, x * fx + fx)):
                            block[size] = labels[i, j, k]
                            size += 1
                best, most = block[0], 0
                for a in range(size):
                    if 2 * most >= size:
                        break  # nothing that comes later can be more frequent
                    count = 0
                    for b in range(size):
                        count += block[a] == block[b]
                    if count > most:
                        best, most = block[a], count
                result[z, y, x] = best


@kernel
def _integer_means(image: NDArray[Any], fz: int, fy: int, fx: int, result: NDArray[Any]) -> None:
    nz, ny, nx = image.shape
    for z in range(result.shape[0]):
        for y in range(result.shape[1]):
            for x in range(result.shape[2]):
                total, size = np.int64(0), np.int64(0)
                for i in range(z * fz, min(nz, z * fz + fz)):
                    for j in range(y * fy, min(ny, y * fy + fy)):
                        for k in range(x * fx, min(nx, x * fx + fx)):
                            total += np.int64(image[i, j, k])
                            size += 1
                result[z, y, x] = (2 * total + size) // (2 * size)


@kernel
def _float_means(image: NDArray[Any], fz: int, fy: int, fx: int, result: NDArray[Any]) -> None:
    nz, ny, nx = image.shape
    for z in range(result.shape[0]):
        for y in range(result.shape[1]):
            for x in range(result.shape[2]):
                total, size = 0.0, 0
                for i in range(z * fz, min(nz, z * fz + fz)):
                    for j in range(y * fy, min(ny, y * fy + fy)):
                        for k in range(x * fx, min(nx, x * fx + fx)):
                            total += image[i, j, k]
                            size += 1
                result[z, y, x] = total / size
