"""Training targets: affinities of a label volume, and the weights that mask and balance them.

The nearest-neighbour channels are the primary task. Their targets come from labels whose boundaries were widened by
`boundary_voxels` on either side, so that the whole membrane reads "not connected"; this separates thin neurites more
clearly than a boundary without thickness. What was widened may keep a little affinity (`boundary_target`), so that the
watershed finds the boundary within the membrane. Long-range channels are the auxiliary task and use the labels as they
are. A map of the inside of objects is the affinity of a voxel with itself (`INSIDE`).

Labels are positive for objects, 0 where nothing is known, and `BACKGROUND` where it is known that there is no object,
such as membranes that were annotated as such: no edge there is connected, and all of them count. Where sections were
annotated for their membranes alone, all else is `SOME_OBJECT`: neighbours within a section are connected, and nothing
is known of other edges between such voxels.

References: K. Lee et al., arXiv:1706.00120 (long-range affinities as auxiliary task); J. Funke et al.,
arXiv:1709.02974 (affinities on eroded labels).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput
from models.geometry import NEAREST, Triple

BACKGROUND = -1
"""Label of voxels that are known to belong to no object."""

SOME_OBJECT = -2
"""Label of voxels of which nobody said to what object they belong."""

INSIDE: tuple[Triple, ...] = ((0, 0, 0),)
"""Offsets of a network whose one channel says how likely a voxel lies inside of an object, not in a boundary."""


def long_range_offsets(voxel_size_nm: tuple[float, float, float]) -> tuple[Triple, ...]:
    """Auxiliary offsets: 3, 9, 27 within sections, and 2, 3, 4 across them where voxels are at least twice as deep.

    For voxels that are near cubic, 3, 9 and 27 on every axis.
    """
    deep = voxel_size_nm[0] >= 2 * max(voxel_size_nm[1:])
    steps_z = (2, 3, 4) if deep else (3, 9, 27)
    return (
        *((-step, 0, 0) for step in steps_z),
        *((0, -step, 0) for step in (3, 9, 27)),
        *((0, 0, -step) for step in (3, 9, 27)),
    )


def widen_boundaries(labels: NDArray[np.integer], voxels: int) -> NDArray[np.integer]:
    """Return a copy of (z, y, x) labels in which background and voxels near another label are 0.

    A voxel is cleared when one of its six neighbours carries another label, then the neighbours of cleared voxels,
    `voxels` times in all. Background counts as another label; neither the volume's faces nor unlabelled voxels (0) are
    a boundary.
    """
    widened = labels.copy()
    boundary = np.zeros(labels.shape, bool)
    for turn in range(voxels):
        grown = boundary.copy()
        for axis in range(3):
            lower, upper = _pair(axis, 1)
            if turn == 0:
                near = (labels[upper] != labels[lower]) & (labels[upper] != 0) & (labels[lower] != 0)
            else:
                near = boundary[upper] | boundary[lower]
            grown[upper] |= near
            grown[lower] |= near
        boundary = grown
    widened[boundary | (labels == BACKGROUND)] = 0
    return widened


def affinity_targets(
    labels: NDArray[np.integer], offsets: tuple[Triple, ...], *, boundary_voxels: int, boundary_target: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return affinities and their mask.

    Parameters
    ----------
    labels
        (z, y, x) integers; 0 is unlabelled and masks every edge that ends there; see the module's docstring.
    offsets
        One per channel, no positive component; channel c at p concerns p and p + offset.
    boundary_voxels
        Widening of boundaries (each side) for offsets of length one and zero.
    boundary_target
        Affinity, below 0.5, of edges within one label that widening has cut.

    Returns
    -------
    targets, mask
        float32 (len(offsets), z, y, x): 1 where both ends belong to one object; mask 1 where the edge is known.

    Raises `InvalidInput` for a boundary target outside [0, 0.5).
    """
    if not 0 <= boundary_target < 0.5:
        raise InvalidInput(f"boundary_target: expected at least 0 and below 0.5, got {boundary_target}")
    shape = (len(offsets), *labels.shape)
    targets, mask = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    interior = widen_boundaries(labels, boundary_voxels)
    for channel, offset in enumerate(offsets):
        source = interior if offset in NEAREST + INSIDE else labels
        within = offset in NEAREST[1:] + INSIDE
        here = tuple(slice(-step, None) if step else slice(None) for step in offset)
        there = tuple(slice(None, step) if step else slice(None) for step in offset)
        first, second = labels[here], labels[there]
        joined = (source[here] == source[there]) & _of_object(source[here], within)
        cut = ~joined & (first == second) & _of_object(first, within)
        vague = (first != BACKGROUND) & (second != BACKGROUND) & ((first == SOME_OBJECT) | (second == SOME_OBJECT))
        targets[channel][here] = joined + np.float32(boundary_target) * cut
        mask[channel][here] = (first != 0) & (second != 0) & ~(vague & ~(joined | cut))
    return targets, mask


def _of_object(labels: NDArray[np.integer], some: bool) -> NDArray[np.bool_]:
    """Where labels are of an object that is known, or with `some` of any."""
    return (labels > 0) | (labels == SOME_OBJECT) if some else labels > 0


def balance_weights(
    targets: NDArray[np.float32], mask: NDArray[np.float32], *, exponent: float, limit: float = 10.0
) -> NDArray[np.float32]:
    """Return per-edge weights that give both classes of a channel a more equal say.

    A class that makes up the fraction f of a channel's known edges weighs (0.5 / f) ** exponent, at most `limit`;
    exponent 0 leaves the classes as they are, 1 balances them fully. Masked edges weigh 0.
    """
    axes = (1, 2, 3)
    known = np.maximum(mask.sum(axes, dtype=np.float64), 1.0)
    positive = np.clip((targets * mask).sum(axes, dtype=np.float64) / known, 1e-6, 1 - 1e-6)
    weigh_one = np.minimum((0.5 / positive) ** exponent, limit).astype(np.float32)[:, None, None, None]
    weigh_zero = np.minimum((0.5 / (1 - positive)) ** exponent, limit).astype(np.float32)[:, None, None, None]
    weights: NDArray[np.float32] = mask * (targets * weigh_one + (1 - targets) * weigh_zero)
    return weights


def _pair(axis: int, step: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    lower, upper = [slice(None)] * 3, [slice(None)] * 3
    lower[axis], upper[axis] = slice(None, -step), slice(step, None)
    return tuple(lower), tuple(upper)
