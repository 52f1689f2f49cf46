"""What a linkage has to know of each segment besides its edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidVolume
from models.segmentation.columns import check_columns
from models.segmentation.relabel import distinct, indices_of

Ids = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Segments:
    """A table of segments, one row each, sorted by id.

    `ids`: uint64, smallest supervoxel id of the segment, never 0; `comparison_ids`: uint64, decides ties, the largest
    supervoxel id of the segment. While a watershed seam of a segment is open, its largest id is not known yet: then 0,
    which wins every tie, so that others wait for it. `frozen`: bool, whether edges or voxels of the segment are still
    unknown, so that it must not be merged.
    Raises `InvalidVolume` where the arrays break these rules, or two segments that may merge share a comparison id.
    """

    ids: Ids
    comparison_ids: Ids
    frozen: NDArray[np.bool_]

    def __post_init__(self) -> None:
        check_columns(self, {"ids": np.uint64, "comparison_ids": np.uint64, "frozen": np.bool_}, "segments")
        if not (self.ids[:-1] < self.ids[1:]).all() or (self.ids[:1] == 0).any():
            raise InvalidVolume("segments: expected ids above 0, sorted, each once")
        free = self.comparison_ids[~self.frozen]
        if distinct(free).size != free.size:
            raise InvalidVolume("segments: expected segments that are not frozen to have different comparison ids")

    def __len__(self) -> int:
        return int(self.ids.size)

    @classmethod
    def of(
        cls,
        ids: Ids,
        *,
        frozen_ids: Ids | None = None,
    ) -> Segments:
        """Single supervoxels: `ids` sorted; `frozen_ids`: those of them that are frozen."""
        frozen = np.zeros(ids.size, np.bool_)
        if frozen_ids is not None:
            frozen[indices_of(frozen_ids, ids)] = True
        return cls(ids, ids, frozen)
