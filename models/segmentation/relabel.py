"""Apply a map of ids to an array of labels: supervoxels to segments, chunk by chunk.

The map of a whole run is large and a chunk's labels are few, so labels are looked up in a hash table over the map, and
runs of one label cost one look-up. Ids are compared as 64-bit integers from end to end.
"""

# ruff: noqa: PLR0917 (compiled functions take their arrays by position)

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput, InvalidVolume
from models.segmentation.hashing import hash_id, table_bits
from models.segmentation.jit import Number, kernel

Ids = NDArray[np.uint64]


def relabelled(labels: Ids, keys: Ids, values: Ids, *, missing: Literal["error", "keep"] = "error") -> Ids:
    """A copy of `labels` with every id replaced by the map's value.

    `labels`: uint64, any shape; `keys`, `values`: uint64 of one length, keys sorted and each once. 0 (background)
    stays 0 where it is no key. An id that is no key stays as it is with `missing="keep"`, and otherwise raises
    `InvalidInput`, which names it. Raises `InvalidVolume` for other dtypes or shapes, or unsorted keys.
    """
    check_map(keys, values)
    if labels.dtype != np.uint64:
        raise InvalidVolume(f"labels: expected uint64, got {labels.dtype}")
    result = np.empty(labels.shape, np.uint64)
    flat = np.ascontiguousarray(labels).reshape(-1)
    failed = _apply(flat, keys, values, _table(keys, table_bits(keys.size)), missing == "keep", result.reshape(-1))
    if failed >= 0:
        place = tuple(int(i) for i in np.unravel_index(failed, labels.shape))
        raise InvalidInput(f"relabel: expected every id in the map, id {int(flat[failed])} at {place} is not in it")
    return result


def indices_of(ids: Ids, keys: Ids) -> NDArray[np.int64]:
    """Index of each of `ids` in the sorted `keys`. Raises `InvalidInput` naming an id that is not there."""
    check_map(keys, keys)
    table = _table(keys, table_bits(keys.size))
    indices = _find_all(ids, keys, table)
    if indices.size and indices.min() < 0:
        raise InvalidInput(f"ids: expected each among the {keys.size} known ones, {int(ids[indices.argmin()])} is not")
    return indices


def distinct(ids: Ids) -> Ids:
    """The ids that occur, sorted (several times as fast as `numpy.unique`, which hashes integers before it sorts)."""
    ids = np.sort(ids)
    return ids[np.concatenate([[True], ids[1:] != ids[:-1]])] if ids.size else ids


def check_map(keys: Ids, values: Ids) -> None:
    """Raise `InvalidVolume` unless keys and values are uint64 of one length, keys sorted and each once."""
    if not (keys.dtype == values.dtype == np.uint64 and keys.ndim == 1 and keys.shape == values.shape):
        raise InvalidVolume(
            f"map: expected keys and values of uint64 and one length, got {keys.dtype} of {keys.shape} and "
            f"{values.dtype} of {values.shape}"
        )
    if not (keys[:-1] < keys[1:]).all():
        raise InvalidVolume("map: expected keys sorted, each once")


@kernel
def _table(keys: Ids, bits: Number) -> NDArray[np.int64]:
    table = np.full(1 << bits, -1, np.int64)
    mask, shift = np.uint64(table.size - 1), np.uint64(64 - bits)
    for index in range(keys.size):
        slot = hash_id(keys[index], shift)
        while table[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        table[slot] = index
    return table


@kernel
def _find(key: Number, keys: Ids, table: NDArray[np.int64]) -> Number:
    bits = 0
    while (1 << bits) < table.size:
        bits += 1
    mask = np.uint64(table.size - 1)
    slot = hash_id(key, np.uint64(64 - bits))
    while table[slot] >= 0:
        if keys[table[slot]] == key:
            return table[slot]
        slot = (slot + np.uint64(1)) & mask
    return -1


@kernel
def _find_all(ids: Ids, keys: Ids, table: NDArray[np.int64]) -> NDArray[np.int64]:
    indices = np.empty(ids.size, np.int64)
    last, index = np.uint64(0), -1
    for i in range(ids.size):
        if i == 0 or ids[i] != last:
            last = ids[i]
            index = _find(last, keys, table)
        indices[i] = index
    return indices


@kernel
def _apply(labels: Ids, keys: Ids, values: Ids, table: NDArray[np.int64], keep: bool, result: Ids) -> Number:
    """Fill `result`; returns the place of the first label without a value, or -1."""
    last: Number = np.uint64(0)
    value: Number = np.uint64(0)
    for i in range(labels.size):
        label = labels[i]
        if i == 0 or label != last:
            index = _find(label, keys, table)
            if index >= 0:
                value = values[index]
            elif keep or label == 0:
                value = label
            else:
                return i
            last = label
        result[i] = value
    return -1
