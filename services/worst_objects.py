"""Finds the true objects that cost most VOI, and the section on which the mistake is best seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.geometry import Triple
from models.metrics.contingency import ContingencyTable, contingency_table
from models.metrics.objects import ObjectTerms
from models.metrics.voi import group_totals
from services.label_pair import LabelPair

Kind = Literal["split", "merge"]


@dataclass(frozen=True)
class WorstObject:
    """A true object and what its splits or mergers add to the VOI of the volume, in bits.

    `segment`: the predicted segment that holds most of it, for a merger the one that costs most, 0 where that is
    unlabelled; `segments`: predicted segments that it falls into; `others`: true objects that share `segment` with it.
    """

    kind: Kind
    truth: int
    voxels: int
    cost_bits: float
    segment: int
    segments: int
    others: int


def worst_objects(table: ContingencyTable, terms: ObjectTerms, kind: Kind, count: int) -> list[WorstObject]:
    """The `count` objects with the largest cost of one kind, largest first; none without cost."""
    costs = (terms.split if kind == "split" else terms.merge) / terms.voxels.sum()
    filled = group_totals(table.pred, table.counts.astype(np.float64))
    found = []
    for index in np.argsort(-costs, kind="stable")[:count]:
        if costs[index] <= 0:
            break
        truth = terms.truth[index]
        own = table.truth == truth
        counts = table.counts[own]
        weight = counts if kind == "split" else counts * np.log2(filled[own] / counts)
        segment = table.pred[own][np.argmax(weight)]
        found.append(
            WorstObject(
                kind,
                int(truth),
                int(table.counts[own].sum()),
                float(costs[index]),
                int(segment),
                int(own.sum()),
                int((table.pred == segment).sum()) - 1,
            )
        )
    return found


@dataclass
class _Section:
    """Sums over one section of one object: voxels and positions (y, x) of what is right, and of the mistake."""

    right: int = 0
    wrong: int = 0
    right_at: NDArray[np.float64] | float = 0.0
    wrong_at: NDArray[np.float64] | float = 0.0


def locate(pair: LabelPair, objects: Sequence[WorstObject]) -> list[Triple]:
    """A voxel of the truth for each object: the section on which both sides of the mistake are large, between them.

    Of a split: its largest segment and the rest of the object. Of a merger: the object and the others in its segment.
    Reads the volumes block by block.
    """
    sections: list[dict[int, _Section]] = [defaultdict(_Section) for _ in objects]
    for block in pair.blocks():
        pred, truth = pair.read(block)
        if not objects:
            break
        met = contingency_table(pred, truth)
        for found, item in zip(sections, objects, strict=True):
            if item.truth not in met.truth and not (item.kind == "merge" and item.segment in met.pred):
                continue
            own, same = truth == item.truth, pred == item.segment
            right, wrong = own & same, (own & ~same) if item.kind == "split" else (same & ~own & (truth != 0))
            for z in np.flatnonzero(right.any(axis=(1, 2)) | wrong.any(axis=(1, 2))):
                section = found[block.start[0] + int(z)]
                corner = np.array(block.start[1:])
                for name, mask in (("right", right[z]), ("wrong", wrong[z])):
                    at = np.argwhere(mask)
                    setattr(section, name, getattr(section, name) + len(at))
                    setattr(section, f"{name}_at", getattr(section, f"{name}_at") + (at + corner).sum(axis=0))
    return [_best(found) for found in sections]


def _best(sections: dict[int, _Section]) -> Triple:
    z, section = max(sections.items(), key=lambda item: (min(item[1].right, item[1].wrong), item[1].wrong, -item[0]))
    centres = [
        np.asarray(total) / number
        for total, number in ((section.right_at, section.right), (section.wrong_at, section.wrong))
        if number
    ]
    y, x = np.mean(centres, axis=0)
    return z, int(y), int(x)
