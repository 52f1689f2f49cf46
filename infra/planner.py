"""Which patches a network computes for a volume: a pure function of numbers, tested without any engine.

The patch grid is anchored to the volume and follows from the volume's shape and the model alone, never from the chunk
or the box that is asked for, so a voxel comes from the same patches however the work is divided. Along one axis::

    |<--------- patch --------->|
    | m |<---- stride + o -->| m |
            | m |                     | m |
            ^ o voxels that both patches predict; linear ramps blend them

`margin` m voxels on either side of a patch are discarded. With `overlap` o = 0 the patches' remainders partition the
volume, and a chunk aligned with the stride costs no more than its own patches. With o > 0 it also touches its
neighbours' patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput
from models.geometry import Box, Triple, triple


@dataclass(frozen=True)
class AxisPlan:
    """Patches along one axis of `extent` voxels: `count` patches of `patch` voxels, `stride` apart."""

    extent: int
    patch: int
    margin: int
    overlap: int
    count: int

    @property
    def stride(self) -> int:
        """Distance between neighbouring patches."""
        return self.patch - 2 * self.margin - self.overlap

    def start(self, index: int) -> int:
        """First voxel of a patch; it may lie before the volume, where the image is mirrored."""
        return index * self.stride - self.overlap // 2 - self.margin

    def valid(self, index: int) -> tuple[int, int]:
        """First and last-plus-one voxel of the volume that a patch predicts, its margin discarded."""
        begin = self.start(index) + self.margin
        return max(begin, 0), min(begin + self.stride + self.overlap, self.extent)

    def touching(self, begin: int, end: int) -> range:
        """Indices of the patches that predict voxels in [begin, end)."""
        if end <= begin:
            return range(0)
        before = self.overlap // 2
        first = (begin + before - self.overlap) // self.stride
        last = (end - 1 + before) // self.stride
        return range(max(first, 0), min(last, self.count - 1) + 1)

    def weights(self, index: int) -> NDArray[np.float32]:
        """Blending weights of the voxels in `valid(index)`, float32; over all patches they sum to one."""
        begin, end = self.valid(index)
        offset = np.arange(begin, end) - (self.start(index) + self.margin)
        weights = np.ones(end - begin, np.float32)
        if self.overlap:
            ramp = (np.arange(self.overlap, dtype=np.float32) + np.float32(0.5)) / np.float32(self.overlap)
            rising, falling = offset < self.overlap, offset >= self.stride
            if index > 0:
                weights[rising] = ramp[offset[rising]]
            if index < self.count - 1:
                weights[falling] = 1 - ramp[offset[falling] - self.stride]
        return weights


@dataclass(frozen=True)
class PatchPlan:
    """The patch grid of a volume; build it with `plan_patches`."""

    axes: tuple[AxisPlan, AxisPlan, AxisPlan]

    @property
    def volume_shape(self) -> Triple:
        """Extent of the volume."""
        return self._each("extent")

    @property
    def patch_shape(self) -> Triple:
        """Extent that the network sees."""
        return self._each("patch")

    @property
    def margin(self) -> Triple:
        """Voxels discarded on either side of a patch."""
        return self._each("margin")

    @property
    def overlap(self) -> Triple:
        """Voxels that neighbouring patches blend."""
        return self._each("overlap")

    @property
    def stride(self) -> Triple:
        """Distance between patches; chunks that are multiples of it waste least."""
        return self._each("stride")

    @property
    def counts(self) -> Triple:
        """Patches along z, y, x."""
        return self._each("count")

    @property
    def waste(self) -> float:
        """Voxels computed per voxel of the whole volume, at least 1."""
        return math.prod(self.counts) * math.prod(self.patch_shape) / math.prod(self.volume_shape)

    def patches(self, box: Box | None = None) -> Iterator[Triple]:
        """Indices of the patches that predict voxels of `box` (default: all), in the global order z, y, x."""
        box = Box.from_shape(self.volume_shape) if box is None else box
        yield from product(*(a.touching(b, e) for a, b, e in zip(self.axes, box.start, box.stop, strict=True)))

    def patch_box(self, index: Triple) -> Box:
        """The box that the network sees; it may reach beyond the volume."""
        z, y, x = (axis.start(i) for axis, i in zip(self.axes, index, strict=True))
        return Box.from_shape(self.patch_shape, (z, y, x))

    def valid_box(self, index: Triple) -> Box:
        """The voxels of the volume that a patch predicts."""
        (z0, z1), (y0, y1), (x0, x1) = (axis.valid(i) for axis, i in zip(self.axes, index, strict=True))
        return Box((z0, y0, x0), (z1, y1, x1))

    def context_box(self, box: Box) -> Box:
        """The part of the volume that must be read to predict `box`, mirror images included."""
        bounds = []
        for axis, begin, end in zip(self.axes, box.start, box.stop, strict=True):
            indices = axis.touching(begin, end)
            if not indices:
                return Box(box.start, box.start)
            start = axis.start(indices[0])
            source = reflect(start, axis.start(indices[-1]) + axis.patch - start, axis.extent)
            bounds.append((int(source.min()), int(source.max()) + 1))
        (z0, z1), (y0, y1), (x0, x1) = bounds
        return Box((z0, y0, x0), (z1, y1, x1))

    def _each(self, name: str) -> Triple:
        z, y, x = (getattr(axis, name) for axis in self.axes)
        return z, y, x


def plan_patches(
    volume_shape: Triple,
    *,
    divisor: Triple,
    max_patch: Triple,
    margin: Triple,
    overlap: Triple = (0, 0, 0),
    bytes_per_voxel: float = 0.0,
    memory_limit_bytes: float = math.inf,
) -> PatchPlan:
    """Plan the patches of a volume.

    Per axis, the patch extent is the multiple of `divisor`, at most `max_patch`, that computes fewest voxels in all;
    of equals the largest, which has fewest seams.

    Parameters
    ----------
    volume_shape, divisor, max_patch, margin, overlap
        Voxels along z, y, x. `overlap` is dropped on an axis that one patch covers.
    bytes_per_voxel, memory_limit_bytes
        The network's memory per patch voxel; the largest extents shrink until a patch fits. The limit changes which
        patches are computed, so it belongs to the run's configuration, not to the machine's state.

    Raises `InvalidInput` where the volume is empty or no patch fits the constraints.
    """
    shape = triple(volume_shape, "volume shape", minimum=1)
    limits = list(triple(max_patch, "largest patch", minimum=1))
    while True:
        constraints = zip("zyx", shape, divisor, limits, margin, overlap, strict=True)
        z, y, x = (_plan_axis(axis, n=n, d=d, limit=p, m=m, o=o) for axis, n, d, p, m, o in constraints)
        plan = PatchPlan((z, y, x))
        if math.prod(plan.patch_shape) * bytes_per_voxel <= memory_limit_bytes:
            return plan
        axis = plan.patch_shape.index(max(plan.patch_shape))
        limits[axis] = plan.patch_shape[axis] - 1


def _plan_axis(axis: str, *, n: int, d: int, limit: int, m: int, o: int) -> AxisPlan:
    single = -(-(n + 2 * m) // d) * d
    if single <= limit:
        return AxisPlan(n, single, m, 0, 1)
    smallest = -(-(2 * m + o + max(1, o)) // d) * d
    plans = [
        AxisPlan(n, p, m, o, max(1, -(-(n - (o - o // 2)) // (p - 2 * m - o)))) for p in range(smallest, limit + 1, d)
    ]
    if not plans:
        raise InvalidInput(
            f"patches: no multiple of {d} on {axis} is at most {limit} and leaves room for margin {m} and overlap {o}"
        )
    return min(plans, key=lambda plan: (plan.count * plan.patch, -plan.patch))


def reflect(start: int, length: int, extent: int) -> NDArray[np.int64]:
    """Indices within [0, extent) of `length` positions from `start`, mirrored at the first and last voxel.

    Equals what `numpy.pad(mode="reflect")` does, repeatedly where the padding is longer than the volume; int64.
    """
    if extent == 1:
        return np.zeros(length, np.int64)
    period = 2 * (extent - 1)
    position = np.arange(start, start + length, dtype=np.int64) % period
    return np.minimum(position, period - position)
