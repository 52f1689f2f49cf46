"""Hash functions of ids and pairs of ids for the open-addressing tables of this package.

Ids are voxel indices, so their low bits follow the strides of the volume; a multiplication by a large odd constant
spreads them, and the tables take the top bits of the product (Fibonacci hashing; Knuth, TAOCP 3, section 6.4).
"""

from __future__ import annotations

import numpy as np

from models.segmentation.jit import Number, kernel

_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xC2B2AE3D27D4EB4F)
_HALF = np.uint64(32)


@kernel
def hash_id(key: Number, shift: Number) -> Number:
    """Slot of a uint64 id in a table of 2 ** (64 - shift) slots; `shift` is uint64."""
    return (key * _SPREAD) >> shift


@kernel
def hash_pair(first: Number, second: Number, shift: Number) -> Number:
    """Slot of an ordered pair of uint64 ids in a table of 2 ** (64 - shift) slots; `shift` is uint64."""
    mixed = first * _MIX
    return ((mixed ^ (mixed >> _HALF) ^ second) * _SPREAD) >> shift


def table_bits(entries: int) -> int:
    """Bits of the smallest table that `entries` entries fill to at most a half; at least 3."""
    return max(3, (2 * entries - 1).bit_length())
