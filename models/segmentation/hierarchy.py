"""Watershed seams and agglomeration over an octree of chunks: what a node does with what its children leave to it.

On the way up, a node joins what is certain and hands the rest on; on the way down, it tells its children what became of
what they had handed on. No node sees more than what is open in its children, so the root sees what lies along the
volume's middle planes, not the volume. Why the result is that of the whole graph: `models.segmentation.linkage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.geometry import Chunk
from models.segmentation.faces import FaceEdges
from models.segmentation.linkage import Linkage
from models.segmentation.region_graph import RegionGraph
from models.segmentation.relabel import distinct, indices_of, relabelled
from models.segmentation.segments import Segments
from models.segmentation.union_find import union_find

Ids = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class IdMap:
    """A map of ids, uint64, `keys` sorted and each once; an id that is no key stays what it is."""

    keys: Ids
    values: Ids

    @classmethod
    def empty(cls) -> IdMap:
        """The identity."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64))

    @classmethod
    def joined(cls, maps: Sequence[IdMap]) -> IdMap:
        """Several maps that agree where they share keys."""
        keys, values = (np.concatenate([np.empty(0, np.uint64), *(getattr(m, n) for m in maps)]) for n in _MAP)
        keys, firsts = np.unique(keys, return_index=True)
        return cls(keys, values[firsts])

    def of(self, ids: Ids) -> Ids:
        """The values of `ids`, any shape."""
        return relabelled(ids, self.keys, self.values, missing="keep")


_MAP = ("keys", "values")


@dataclass(frozen=True, eq=False)
class ClosedSeams:
    """What a node makes of the seams between its children.

    `roots`: from the representatives that its children know to those of the node, the smallest id of each component.
    `open`: from the fragments at the node's own open seams to their representatives.
    """

    roots: IdMap
    open: IdMap


def close_seams(known: IdMap, own: Ids, before: Ids, open_fragments: Ids) -> ClosedSeams:
    """Join the pairs (own, before) of fragments across a node's inner faces.

    `known`: the children's `open`; `open_fragments`: fragments within the node at its outer seams, in any order.
    """
    roots = IdMap(*union_find(known.of(own), known.of(before)))
    fragments = distinct(open_fragments)
    return ClosedSeams(roots, IdMap(fragments, roots.of(known.of(fragments))))


@dataclass(frozen=True, eq=False)
class HandedUp:
    """What a linkage could not decide in a node: frozen segments, and the edges between them."""

    segments: Segments
    edges: RegionGraph

    @classmethod
    def of(cls, linkage: Linkage) -> HandedUp:
        """What is left to the node above."""
        left = linkage.segments
        rows = left.frozen
        frozen = Segments(left.ids[rows], left.comparison_ids[rows], left.frozen[rows])
        return cls(frozen, linkage.waiting)


def gathered(children: list[HandedUp], inner: FaceEdges, outer_ids: Ids) -> HandedUp:
    """What a node has to merge: all that its children hand up, and the edges between them.

    `inner`: rows of the faces between the children; `outer_ids`: ids at the node's open faces, of either side; the
    segments among them are frozen, all others are free again. The list of children is emptied (see `sum_of_all`).
    """
    names = ("ids", "comparison_ids")
    ids, comparison = (np.concatenate([getattr(child.segments, name) for child in children]) for name in names)
    merged, firsts = np.unique(ids, return_index=True)
    segments = Segments(merged, comparison[firsts], np.isin(merged, outer_ids))
    graphs = [*(child.edges for child in children), inner.graph]
    children.clear()
    return HandedUp(segments, RegionGraph.sum_of_all(graphs))


def single_chunk(graph: RegionGraph, ids: Ids, face_ids: Ids) -> HandedUp:
    """What a chunk has to merge: its own edges and segments, frozen where they touch one of its faces."""
    return HandedUp(Segments.of(ids, frozen_ids=ids[np.isin(ids, face_ids)]), graph)


def inner_axes(child: Chunk) -> list[int]:
    """Lower faces of a child that lie within its parent."""
    return [axis for axis in range(3) if child.index[axis] % 2]


def outer_axes(child: Chunk) -> list[int]:
    """Lower faces of a child that are its parent's too."""
    return [axis for axis in range(3) if not child.index[axis] % 2]


def resolved(own: IdMap, handed_up: Ids, above: IdMap) -> IdMap:
    """What became of the ids of a node's children: first in the node (`own`), then above it.

    `handed_up`: the node's ids that went up; `above`: what the node above says of its children's ids. Only ids that
    changed are listed.
    """
    keys = distinct(np.concatenate([own.keys, handed_up]))
    values = above.of(own.of(keys))
    changed = keys != values
    return IdMap(keys[changed], values[changed])


def added_up(ids: Ids, sizes: NDArray[np.int64]) -> tuple[Ids, NDArray[np.int64]]:
    """Ids, sorted and each once, with the sums of their sizes."""
    merged = distinct(ids)
    total = np.zeros(merged.size, np.int64)
    np.add.at(total, indices_of(ids, merged), sizes)
    return merged, total
