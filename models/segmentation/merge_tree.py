"""The dendrogram of an agglomeration: every merge with its exact score, from which any threshold is cut at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidVolume
from models.segmentation.columns import check_columns
from models.segmentation.jit import Number, kernel
from models.segmentation.ratios import Threshold, affinity_ratio, ratio_key
from models.segmentation.relabel import relabelled
from models.segmentation.union_find import union_find

Ids = NDArray[np.uint64]
_FIELDS = {"a": np.uint64, "b": np.uint64, "affinity_sum": np.int64, "face_count": np.int64}


@dataclass(frozen=True, eq=False)
class MergeTree:
    """Merges, one row each: segment `b` became part of segment `a`.

    `a` < `b`: uint64, both segments by their smallest supervoxel id, so `a` is the merged segment's id too, and an id
    is absorbed (is a `b`) at most once. Score: mean affinity of the edge that was merged, exactly, as `affinity_sum`
    over `face_count` (int64). Rows from one call are in merge order, with scores that never rise.
    Raises `InvalidVolume` where the arrays break these rules.
    """

    a: Ids
    b: Ids
    affinity_sum: NDArray[np.int64]
    face_count: NDArray[np.int64]

    def __post_init__(self) -> None:
        check_columns(self, _FIELDS, "merge tree")
        if not ((self.a < self.b).all() and (self.face_count >= 1).all() and (self.affinity_sum >= 0).all()):
            raise InvalidVolume("merge tree: expected a < b, sums of at least 0 and counts of at least 1")

    def __len__(self) -> int:
        return int(self.a.size)

    @property
    def scores(self) -> NDArray[np.float64]:
        """Mean affinity of each merge from 0 to 1, rounded to float64: for display and plots, not for comparisons."""
        return self.affinity_sum / self.face_count / 255

    @classmethod
    def joined(cls, trees: Iterable[MergeTree]) -> MergeTree:
        """The tree of several parts in canonical order (by `b`), the same for every way to divide the work."""
        parts = list(trees)
        if not parts:
            return cls(*(np.empty(0, dtype) for dtype in _FIELDS.values()))
        columns = [np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS]
        order = np.argsort(columns[1], kind="stable")
        return cls(*(column[order] for column in columns))


def cut(tree: MergeTree, threshold: Threshold, ids: Ids | None = None) -> tuple[Ids, Ids]:
    """The map from supervoxels to segments at a threshold: all merges with a score of at least it.

    `threshold`: 0 to 1, see `affinity_ratio`; not below the one that the tree was made with. Returns (supervoxel ids,
    segment ids), uint64, sorted by supervoxel; a segment's id is its smallest supervoxel id. Without `ids` only
    supervoxels that take part in a merge are listed, all others being their own segment; with `ids` (sorted) those.
    """
    numerator, denominator = affinity_ratio(threshold)
    chosen = _at_least(tree.affinity_sum, tree.face_count, numerator, denominator)
    keys, values = union_find(tree.a[chosen], tree.b[chosen])
    return (keys, values) if ids is None else (ids, relabelled(ids, keys, values, missing="keep"))


@kernel
def _at_least(
    total: NDArray[np.int64], faces: NDArray[np.int64], numerator: Number, denominator: Number
) -> NDArray[np.bool_]:
    limit = ratio_key(numerator, denominator)
    chosen = np.empty(total.size, np.bool_)
    for merge in range(total.size):
        chosen[merge] = ratio_key(total[merge], faces[merge]) >= limit
    return chosen
