"""Test-time augmentation that is exact for affinities.

A network that sees a flipped or transposed image predicts affinities of flipped or transposed edges. To average them,
each prediction is carried back: channels swap where axes did, and where a flip reverses an edge its value moves to the
edge's other end, because it is stored at p for the edge p, p + offset. For a network that treats all symmetries alike
the mean is therefore the prediction itself, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput, InvalidModel
from models.geometry import Triple, VoxelSize


@dataclass(frozen=True)
class Symmetry:
    """Transposes axes, then flips: axis i of the result is axis `order[i]` of the image, reversed where `flips[i]`."""

    order: Triple = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    def moved(self, offset: Triple) -> Triple:
        """What `offset` becomes in the transformed image."""
        z, y, x = (-offset[axis] if flip else offset[axis] for axis, flip in zip(self.order, self.flips, strict=True))
        return z, y, x


def symmetries(tta: bool | int, voxel_size_nm: VoxelSize, divisor: Triple = (1, 1, 1)) -> tuple[Symmetry, ...]:
    """The symmetries that `tta` asks for; the first is the identity.

    False or 1: the identity. 8: all flips. 16: flips, and y swapped with x. 48: flips and all transposes. True: 16
    where y and x have the same voxel size, else 8.

    Raises `InvalidInput` for another number, or where swapped axes differ in voxel size or in `divisor`.
    """
    swaps_yx = voxel_size_nm[1] == voxel_size_nm[2] and divisor[1] == divisor[2]
    number = (16 if swaps_yx else 8) if tta is True else max(int(tta), 1)
    orders: dict[int, list[Triple]] = {1: [(0, 1, 2)], 8: [(0, 1, 2)], 16: [(0, 1, 2), (0, 2, 1)]}
    orders[48] = [(a, b, c) for a, b, c in permutations(range(3))]
    if number not in orders:
        raise InvalidInput(f"tta: expected 1, 8, 16 or 48 symmetries, got {tta}")
    for order in orders[number]:
        if any(voxel_size_nm[i] != voxel_size_nm[a] or divisor[i] != divisor[a] for i, a in enumerate(order)):
            raise InvalidInput(
                f"tta: {number} symmetries swap axes, which voxels of {voxel_size_nm} nm and a divisor of {divisor} "
                f"do not allow; ask for {16 if swaps_yx else 8}"
            )
    if number == 1:
        return (Symmetry(),)
    return tuple(Symmetry(order, (z, y, x)) for order in orders[number] for z, y, x in product((False, True), repeat=3))


def apply_to_image(image: NDArray[Any], symmetry: Symmetry) -> NDArray[Any]:
    """Transform the last three axes (z, y, x) of an array; returns a contiguous copy, or the array for the identity."""
    if symmetry == Symmetry():
        return image
    lead = image.ndim - 3
    moved = image.transpose(*range(lead), *(lead + axis for axis in symmetry.order))
    flipped = tuple(slice(None, None, -1) if flip else slice(None) for flip in symmetry.flips)
    return np.ascontiguousarray(moved[..., *flipped])


def mean_affinities(
    predictions: Iterable[NDArray[np.float32]], applied: tuple[Symmetry, ...], offsets: tuple[Triple, ...]
) -> NDArray[np.float32]:
    """Carry predictions of transformed images back and average them.

    Parameters
    ----------
    predictions
        float32 (batch, channels, z, y, x), one for each of `applied`, in their own axes.
    applied
        The symmetries that made the images; the first must be the identity.
    offsets
        Per channel; the value at p tells about p and p + offset. Closed under the symmetries, up to sign.

    Returns
    -------
    float32 (batch, channels, z, y, x). An edge whose other end lies outside the array is averaged over the symmetries
    that keep its direction, since the others predict nothing for it. Sums are exact in float64.

    Raises `InvalidModel` where a symmetry turns an offset into one that no channel has.
    """
    total: NDArray[np.float64] | None = None
    weight = np.zeros(0)
    for prediction, symmetry in zip(predictions, applied, strict=True):
        if total is None:
            total = np.zeros(prediction.shape, np.float64)
            weight = np.zeros((1, *prediction.shape[1:]), np.uint8)
        back = _undo(prediction, symmetry)
        for channel, offset in enumerate(offsets):
            source, reversed_ = _channel_of(symmetry.moved(offset), offsets)
            here, there = _shifted(offset) if reversed_ else (..., ...)
            total[:, channel][here] += back[:, source][there]
            weight[:, channel][here] += 1
    if total is None:
        raise InvalidInput("tta: expected at least one prediction")
    return (total / weight).astype(np.float32)


def _undo(prediction: NDArray[np.float32], symmetry: Symmetry) -> NDArray[np.float32]:
    flipped = tuple(slice(None, None, -1) if flip else slice(None) for flip in symmetry.flips)
    inverse = np.argsort(symmetry.order)
    return prediction[..., *flipped].transpose(0, 1, *(2 + inverse))


def _channel_of(offset: Triple, offsets: tuple[Triple, ...]) -> tuple[int, bool]:
    """The channel with this offset or its reverse, and whether it is the reverse."""
    if offset in offsets:
        return offsets.index(offset), False
    opposite = (-offset[0], -offset[1], -offset[2])
    if opposite in offsets:
        return offsets.index(opposite), True
    raise InvalidModel(f"tta: a symmetry turns an edge into offset {offset}, which no channel of {offsets} predicts")


def _shifted(offset: Triple) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Slices of the voxels p whose other end p + offset lies in the array, and of those other ends."""
    here = tuple(slice(max(0, -o), min(0, -o) or None) for o in offset)
    there = tuple(slice(max(0, o), min(0, o) or None) for o in offset)
    return (slice(None), *here), (slice(None), *there)
