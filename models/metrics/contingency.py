"""Contingency tables: which predicted segment shares how many voxels with which true one.

Every score of a segmentation is a function of this table alone, and tables of disjoint boxes add up. So a volume of any
size is scored chunk by chunk, in any order, with the same integers as a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.errors import InvalidInput, InvalidVolume
from models.segmentation.relabel import relabelled

PredBackground = Literal["segment", "singletons", "ignore"]
"""How voxels that the prediction leaves at 0 are scored.

- `segment`: 0 is a segment like any other, so unlabelled voxels of different neurons count as merged (scikit-image).
- `singletons`: every such voxel is a segment of its own (the script of the SNEMI3D challenge).
- `ignore`: they are left out; this scores only what was labelled and says nothing about the rest.
"""

_BLOCK_VOXELS = 1 << 20  # voxels widened to uint64 at a time, so that a small dtype costs no eightfold copy
_PENDING_PAIRS = 1 << 20  # pairs that merge_tables collects before it sums them up


@dataclass(frozen=True)
class ContingencyTable:
    """Pairs of ids with the number of voxels they share, sorted by (truth, pred), each pair once.

    `pred` and `truth` are uint64 of shape (n,), `counts` int64 of shape (n,) and positive. `ignored` counts the voxels
    that were left out because of their true id.
    """

    pred: NDArray[np.uint64]
    truth: NDArray[np.uint64]
    counts: NDArray[np.int64]
    ignored: int = 0

    @property
    def voxels(self) -> int:
        """Number of voxels counted in the table, without the ignored ones."""
        return int(self.counts.sum())

    @property
    def unlabelled(self) -> int:
        """Number of counted voxels that the prediction leaves at 0."""
        return int(self.counts[self.pred == 0].sum())


def contingency_table(
    pred: NDArray[np.integer], truth: NDArray[np.integer], *, ignore_truth: Sequence[int] = (0,)
) -> ContingencyTable:
    """Count the pairs of ids of two label arrays.

    `pred` and `truth` have the same shape (any number of axes), an integer dtype and ids from 0 to 2^64 - 1. Voxels
    whose true id is in `ignore_truth` are only counted in `ignored`. Memory grows with the pairs, not with the voxels.
    Raises `InvalidVolume` for other dtypes, unequal shapes or negative ids.
    """
    if pred.shape != truth.shape:
        raise InvalidVolume(f"labels: expected prediction and truth of one shape, got {pred.shape} and {truth.shape}")
    flat_pred, flat_truth = _flat_labels(pred, "prediction"), _flat_labels(truth, "truth")
    ignore = np.unique(np.array([_label_id(i) for i in ignore_truth], dtype=np.uint64))
    # Open addressing; three columns (pred, truth, count) of a power of two rows, at most half full.
    table = np.zeros((3, 1 << 12), dtype=np.uint64)
    used, ignored = 0, 0
    for begin in range(0, flat_pred.size, _BLOCK_VOXELS):
        block = slice(begin, begin + _BLOCK_VOXELS)
        table, used, left_out = _count_pairs(
            flat_pred[block].astype(np.uint64), flat_truth[block].astype(np.uint64), ignore, table, used
        )
        ignored += left_out
    filled = table[2] > 0
    return _sorted_table(table[0, filled], table[1, filled], table[2, filled].astype(np.int64), ignored)


def merge_tables(tables: Iterable[ContingencyTable]) -> ContingencyTable:
    """The table of all voxels together, whatever the order of `tables`; no table at all gives an empty one.

    Memory is that of the result plus about a million pairs.
    """
    total = ContingencyTable(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))
    pending: list[ContingencyTable] = []
    waiting = 0
    for table in tables:
        pending.append(table)
        waiting += table.counts.size
        if waiting > max(_PENDING_PAIRS, total.counts.size):
            total, pending, waiting = _summed([total, *pending]), [], 0
    return _summed([total, *pending])


def without_truth(table: ContingencyTable, ids: Sequence[int] = (0,)) -> ContingencyTable:
    """The table without the voxels of some true ids, which are counted in `ignored` instead."""
    left_out = np.isin(table.truth, np.array([_label_id(i) for i in ids], dtype=np.uint64))
    kept = _selected(table, ~left_out)
    return replace(kept, ignored=table.ignored + int(table.counts[left_out].sum()))


def merged_predictions(
    table: ContingencyTable, keys: NDArray[np.uint64], values: NDArray[np.uint64]
) -> ContingencyTable:
    """The table of the prediction in which every id in `keys` is renamed to its value; others keep theirs.

    `keys`, `values`: uint64 of one length, keys sorted and each once. Exactly the table that relabelling every voxel
    would give.
    """
    renamed = relabelled(table.pred, keys, values, missing="keep")
    return _sorted_table(renamed, table.truth, table.counts, table.ignored)


def with_background(
    table: ContingencyTable, pred_background: PredBackground
) -> tuple[ContingencyTable, ContingencyTable]:
    """Split a table into ordinary pairs and pairs whose predicted voxels are singletons, under a convention.

    The second table holds the predicted-0 pairs for `singletons` and is empty otherwise. Raises `InvalidInput` for an
    unknown convention, or where no voxel is left to score.
    """
    if pred_background not in ("segment", "singletons", "ignore"):
        raise InvalidInput(f"pred_background: expected segment, singletons or ignore, got {pred_background!r}")
    zero = table.pred == 0
    kept = np.ones_like(zero) if pred_background == "segment" else ~zero
    single = zero if pred_background == "singletons" else np.zeros_like(zero)
    if not (kept | single).any():
        raise InvalidInput(
            f"score: expected at least one voxel to score, got none ({table.ignored} ignored by their true id, "
            f"{table.unlabelled} unlabelled, predicted background: {pred_background})"
        )
    return _selected(table, kept), _selected(table, single)


def _selected(table: ContingencyTable, mask: NDArray[np.bool_]) -> ContingencyTable:
    return ContingencyTable(table.pred[mask], table.truth[mask], table.counts[mask], table.ignored)


def _flat_labels(labels: NDArray[np.integer], what: str) -> NDArray[np.integer]:
    if labels.dtype.kind not in "iu":
        raise InvalidVolume(f"{what}: expected integer labels, got dtype {labels.dtype}")
    if labels.dtype.kind == "i" and labels.size and int(labels.min()) < 0:
        raise InvalidVolume(f"{what}: expected ids of at least 0, got {int(labels.min())}")
    return labels.reshape(-1)


def _label_id(value: int) -> int:
    if not 0 <= int(value) < 1 << 64:
        raise InvalidInput(f"ignore_truth: expected ids from 0 to 2^64 - 1, got {value!r}")
    return int(value)


def _summed(tables: list[ContingencyTable]) -> ContingencyTable:
    return _sorted_table(
        np.concatenate([table.pred for table in tables]),
        np.concatenate([table.truth for table in tables]),
        np.concatenate([table.counts for table in tables]),
        sum(table.ignored for table in tables),
    )


def _sorted_table(
    pred: NDArray[np.uint64], truth: NDArray[np.uint64], counts: NDArray[np.int64], ignored: int
) -> ContingencyTable:
    order = np.lexsort((pred, truth))
    pred, truth, counts = pred[order], truth[order], counts[order]
    if counts.size:
        first = np.ones(counts.size, dtype=bool)
        first[1:] = (pred[1:] != pred[:-1]) | (truth[1:] != truth[:-1])
        pred, truth, counts = pred[first], truth[first], np.add.reduceat(counts, np.flatnonzero(first))
    return ContingencyTable(pred, truth, counts, ignored)


@njit(cache=True, nogil=True)
def _slot(pred, truth, table):  # type: ignore[no-untyped-def]
    """The row of a pair: where it is, or the free row where it goes."""
    mask = np.uint64(table.shape[1] - 1)
    mixed = (pred * np.uint64(0x9E3779B97F4A7C15)) ^ (truth * np.uint64(0xC2B2AE3D27D4EB4F))
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    row = (mixed ^ (mixed >> np.uint64(32))) & mask
    while table[2, row] != 0 and (table[0, row] != pred or table[1, row] != truth):
        row = (row + np.uint64(1)) & mask
    return row


@njit(cache=True, nogil=True)
def _grown(table):  # type: ignore[no-untyped-def]
    larger = np.zeros((3, table.shape[1] * 2), dtype=np.uint64)
    for old in range(table.shape[1]):
        if table[2, old] != 0:
            row = _slot(table[0, old], table[1, old], larger)
            for column in range(3):
                larger[column, row] = table[column, old]
    return larger


@njit(cache=True, nogil=True)
def _count_pairs(pred, truth, ignore, table, used):  # type: ignore[no-untyped-def]
    """Add the pairs of two flat blocks to the table, run by run: neighbours along x mostly share their pair."""
    ignored = 0
    begin = 0
    while begin < pred.size:
        a, b = pred[begin], truth[begin]
        end = begin + 1
        while end < pred.size and pred[end] == a and truth[end] == b:
            end += 1
        at = np.searchsorted(ignore, b)
        if at < ignore.size and ignore[at] == b:
            ignored += end - begin
        else:
            row = _slot(a, b, table)
            if table[2, row] == 0:
                table[0, row] = a
                table[1, row] = b
                used += 1
            table[2, row] += np.uint64(end - begin)
            if used * 2 > table.shape[1]:
                table = _grown(table)
        begin = end
    return table, used, ignored
