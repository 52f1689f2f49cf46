"""The region graph: which supervoxels touch, over how many faces, with what summed and largest affinity.

All figures are integers, so graphs of parts add up to the graph of the whole exactly, in any order: edges inside the
chunks' cores (`region_graph`), edges across the chunks' faces (`face_graph`), and `RegionGraph.sum_of` all of them.
Faces are aggregated in a hash table while they are scanned; sorting every face instead costs several times the memory.
"""

# ruff: noqa: PLR0917 (compiled functions take their arrays by position)

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidVolume
from models.segmentation.columns import check_columns, stacked
from models.segmentation.hashing import hash_id, hash_pair
from models.segmentation.jit import Number, kernel
from models.segmentation.relabel import distinct, relabelled

Ids = NDArray[np.uint64]
_FIELDS = {
    "u": np.uint64,
    "v": np.uint64,
    "affinity_sum": np.int64,
    "face_count": np.int64,
    "affinity_max": np.uint8,
}
_RULES = (
    "0 < u < v in every edge",
    "edges sorted by (u, v), each once",
    "face counts of at least 1 and max <= sum <= count * max",
)
_Arrays = tuple[Ids, Ids, NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]
_START = 1 << 12  # edges that the tables of a scan hold before they grow


@dataclass(frozen=True, eq=False)
class RegionGraph:
    """Edges between touching segments, one row each, sorted by (u, v).

    `u` < `v`: uint64 ids, never 0; `affinity_sum`: int64, sum of the affinities (0 to 255) of all faces between the
    two; `face_count`: int64, their number, at least 1; `affinity_max`: uint8, the largest of them.
    Raises `InvalidVolume` where the arrays break these rules.
    """

    u: Ids
    v: Ids
    affinity_sum: NDArray[np.int64]
    face_count: NDArray[np.int64]
    affinity_max: NDArray[np.uint8]

    def __post_init__(self) -> None:
        check_columns(self, _FIELDS, "region graph")
        broken = _broken_rule(self.u, self.v, self.affinity_sum, self.face_count, self.affinity_max)
        if broken < len(_RULES):
            raise InvalidVolume(f"region graph: expected {_RULES[broken]}")

    def __len__(self) -> int:
        return int(self.u.size)

    @property
    def ids(self) -> Ids:
        """Ids that have an edge, sorted."""
        return distinct(np.concatenate([self.u, self.v]))

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RegionGraph):
            return NotImplemented
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in _FIELDS)

    @classmethod
    def empty(cls) -> RegionGraph:
        """A graph without edges."""
        return cls(*(np.empty(0, dtype) for dtype in _FIELDS.values()))

    @classmethod
    def sum_of(cls, graphs: Iterable[RegionGraph]) -> RegionGraph:
        """The exact sum: edges of the same pair add sums and counts and keep the largest affinity."""
        return cls.sum_of_all([graph for graph in graphs if len(graph)])

    @classmethod
    def sum_of_all(cls, graphs: list[RegionGraph]) -> RegionGraph:
        """As `sum_of`; the list is emptied, and the memory of graphs that nobody else holds given back on the way."""
        if len(graphs) < 2:
            return graphs.pop() if graphs else cls.empty()
        u, v, total, faces, largest = stacked(graphs, _FIELDS)
        order = np.lexsort((v, u))
        return cls(*_add_runs(u, v, total, faces, largest, order, order))

    @classmethod
    def aggregated(
        cls,
        u: Ids,
        v: Ids,
        affinity_sum: NDArray[np.int64],
        face_count: NDArray[np.int64],
        affinity_max: NDArray[np.uint8],
    ) -> RegionGraph:
        """The graph of rows in any order and direction, pairs repeated or not; u = v and id 0 are dropped."""
        kept = np.flatnonzero((u != v) & (u != 0) & (v != 0))
        u, v = u[kept], v[kept]
        u, v = np.minimum(u, v), np.maximum(u, v)
        order = np.lexsort((v, u))
        return cls(*_add_runs(u, v, affinity_sum, face_count, affinity_max, order, kept[order]))

    def relabelled(self, keys: Ids, values: Ids) -> RegionGraph:
        """The graph of the segments that a map makes of these: edges within a segment vanish, parallel ones add up.

        `keys` (sorted, each once) and `values`: uint64 of one length; ids that are no key stay as they are.
        """
        u, v = (relabelled(ids, keys, values, missing="keep") for ids in (self.u, self.v))
        return RegionGraph.aggregated(u, v, self.affinity_sum, self.face_count, self.affinity_max)

    def selected(self, mask: NDArray[np.bool_]) -> RegionGraph:
        """The edges where `mask` is true."""
        return RegionGraph(*(getattr(self, name)[mask] for name in _FIELDS))


def region_graph(affinities: NDArray[np.uint8], fragments: Ids) -> RegionGraph:
    """Edges between the fragments of one array, over faces with both voxels in it.

    `affinities`: (3, z, y, x) uint8, channel c stored at p for the face to p - 1 on axis c; values at coordinate 0 are
    ignored. `fragments`: (z, y, x) uint64 over the same voxels, 0 = background, which has no edges. Views are fine:
    nothing is copied. Raises `InvalidVolume` for other shapes or dtypes.
    """
    if affinities.ndim != 4 or affinities.shape != (3, *fragments.shape) or affinities.dtype != np.uint8:
        raise InvalidVolume(
            f"affinities: expected {(3, *fragments.shape)} of uint8, got {affinities.shape} of {affinities.dtype}"
        )
    _check_ids(fragments, "fragments")
    return _sorted(_scan(affinities, fragments))


def face_graph(ids_above: Ids, ids_below: Ids, affinities: NDArray[np.uint8]) -> RegionGraph:
    """Edges across one chunk face.

    `ids_above`: the first plane of the chunk that owns the face; `ids_below`: the plane before it, in the next chunk;
    both uint64, 0 = background. `affinities`: uint8, of the edges between them. All of one 2D shape.
    Raises `InvalidVolume` for other shapes or dtypes.
    """
    _check_ids(ids_above, "ids above")
    _check_ids(ids_below, "ids below")
    if not (ids_above.ndim == 2 and ids_above.shape == ids_below.shape == affinities.shape):
        shapes = ids_above.shape, ids_below.shape, affinities.shape
        raise InvalidVolume(f"face: expected three planes of one shape, got {shapes}")
    if affinities.dtype != np.uint8:
        raise InvalidVolume(f"affinities: expected uint8, got {affinities.dtype}")
    return _sorted(_scan_face(ids_above, ids_below, affinities))


def segment_sizes(labels: Ids) -> tuple[Ids, NDArray[np.int64]]:
    """Ids that occur in `labels` (uint64, any shape; 0 is left out), sorted, and their number of voxels (int64)."""
    _check_ids(labels, "labels")
    ids, sizes = _count(np.ascontiguousarray(labels).reshape(-1))
    order = np.argsort(ids)
    return ids[order], sizes[order]


def _check_ids(ids: Ids, what: str) -> None:
    if ids.dtype != np.uint64:
        raise InvalidVolume(f"{what}: expected ids of uint64, got {ids.dtype}")


def _sorted(rows: Ids) -> RegionGraph:
    """The graph of a scan's rows: u, v, sum of affinities, face count * 256 + largest affinity."""
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    u, v, total, packed = (rows[order, column] for column in range(4))
    faces = (packed >> np.uint64(8)).astype(np.int64)
    return RegionGraph(u, v, total.astype(np.int64), faces, (packed & np.uint64(255)).astype(np.uint8))


@kernel
def _broken_rule(
    u: Ids, v: Ids, total: NDArray[np.int64], faces: NDArray[np.int64], largest: NDArray[np.uint8]
) -> Number:
    """The first of `_RULES` that an edge breaks, their number where none does; without arrays in between."""
    broken = 3
    for i in range(u.size):
        if u[i] == 0 or u[i] >= v[i]:
            return 0
        if i > 0 and (u[i - 1] > u[i] or (u[i - 1] == u[i] and v[i - 1] >= v[i])):
            broken = min(broken, 1)
        if faces[i] < 1 or total[i] < largest[i] or total[i] // faces[i] > largest[i]:
            broken = min(broken, 2)
    return broken


@kernel
def _add_runs(
    u: Ids,
    v: Ids,
    total: NDArray[np.int64],
    faces: NDArray[np.int64],
    largest: NDArray[np.uint8],
    order: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> _Arrays:
    """Add up rows that follow each other in `order` and have one pair; `rows`: where their figures are."""
    runs = 0
    for i in range(order.size):
        runs += i == 0 or u[order[i]] != u[order[i - 1]] or v[order[i]] != v[order[i - 1]]
    new_u, new_v = np.empty(runs, np.uint64), np.empty(runs, np.uint64)
    new_total, new_faces = np.zeros(runs, np.int64), np.zeros(runs, np.int64)
    new_largest = np.zeros(runs, np.uint8)
    run = -1
    for i in range(order.size):
        row = order[i]
        if run < 0 or u[row] != new_u[run] or v[row] != new_v[run]:
            run += 1
            new_u[run], new_v[run] = u[row], v[row]
        row = rows[i]
        new_total[run] += total[row]
        new_faces[run] += faces[row]
        new_largest[run] = max(new_largest[run], largest[row])
    return new_u, new_v, new_total, new_faces, new_largest


@kernel
def _grown(table: NDArray[np.int32], rows: Ids, used: Number) -> tuple[NDArray[np.int32], Ids]:
    """Tables of twice the size with the same edges."""
    new_rows = np.empty((2 * rows.shape[0], 4), np.uint64)
    new_rows[:used] = rows[:used]
    new_table = np.full(2 * table.size, -1, np.int32)
    mask, shift = np.uint64(new_table.size - 1), _shift(new_table.size)
    for edge in range(used):
        slot = hash_pair(rows[edge, 0], rows[edge, 1], shift)
        while new_table[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        new_table[slot] = edge
    return new_table, new_rows


@kernel
def _shift(slots: Number) -> Number:
    bits = 0
    while (1 << bits) < slots:
        bits += 1
    return np.uint64(64 - bits)


@kernel
def _edge_of(table: NDArray[np.int32], rows: Ids, used: Number, shift: Number, first: Number, second: Number) -> Number:
    """Index of the pair's edge; equal to `used` where it is new (it is entered then)."""
    low, high = min(first, second), max(first, second)
    mask = np.uint64(table.size - 1)
    slot = hash_pair(low, high, shift)
    edge = table[slot]
    while edge >= 0:
        if rows[edge, 0] == low and rows[edge, 1] == high:
            return edge
        slot = (slot + np.uint64(1)) & mask
        edge = table[slot]
    table[slot] = used
    rows[used, 0], rows[used, 1], rows[used, 2], rows[used, 3] = low, high, 0, 0
    return used


@kernel
def _scan(affinities: NDArray[np.uint8], fragments: Ids) -> Ids:
    depth, height = fragments.shape[:2]
    rows = np.empty((_START, 4), np.uint64)
    table = np.full(2 * _START, -1, np.int32)
    used = 0
    for z in range(depth):
        for y in range(height):
            here = fragments[z, y]
            if z > 0:
                table, rows, used = _scan_row(here, fragments[z - 1, y], affinities[0, z, y], table, rows, used)
            if y > 0:
                table, rows, used = _scan_row(here, fragments[z, y - 1], affinities[1, z, y], table, rows, used)
            table, rows, used = _scan_row(here[1:], here[:-1], affinities[2, z, y, 1:], table, rows, used)
    return rows[:used]


@kernel
def _scan_face(ids_above: Ids, ids_below: Ids, affinities: NDArray[np.uint8]) -> Ids:
    rows = np.empty((_START, 4), np.uint64)
    table = np.full(2 * _START, -1, np.int32)
    used = 0
    for y in range(ids_above.shape[0]):
        table, rows, used = _scan_row(ids_above[y], ids_below[y], affinities[y], table, rows, used)
    return rows[:used]


@kernel
def _scan_row(
    here: Ids, there: Ids, affinity: NDArray[np.uint8], table: NDArray[np.int32], rows: Ids, used: Number
) -> tuple[NDArray[np.int32], Ids, Number]:
    """Add the faces between two rows. Neighbouring faces mostly belong to one pair, so the last edge is kept."""
    while used + here.size > rows.shape[0]:
        table, rows = _grown(table, rows, used)
    shift = _shift(table.size)
    first, second, edge = np.uint64(0), np.uint64(0), 0
    for x in range(here.size):
        a, b = here[x], there[x]
        if a == b or min(a, b) == 0:
            continue
        if a != first or b != second:
            edge = _edge_of(table, rows, used, shift, a, b)
            used += edge == used
            first, second = a, b
        value = np.uint64(affinity[x])
        rows[edge, 2] += value
        packed = rows[edge, 3] + np.uint64(256)
        rows[edge, 3] = (packed & ~np.uint64(255)) | max(packed & np.uint64(255), value)
    return table, rows, used


@kernel
def _count(labels: Ids) -> tuple[Ids, NDArray[np.int64]]:
    ids, sizes = np.empty(_START, np.uint64), np.empty(_START, np.int64)
    table = np.full(2 * _START, -1, np.int32)
    shift, used = _shift(table.size), 0
    last, index = np.uint64(0), 0
    for label in labels:
        if label == 0:
            continue
        if label != last:
            if used == ids.size:
                ids, sizes, table = _grown_counts(ids, sizes)
                shift = _shift(table.size)
            index = _index_of(table, ids, used, shift, label)
            if index == used:
                ids[used], sizes[used] = label, 0
                used += 1
            last = label
        sizes[index] += 1
    return ids[:used].copy(), sizes[:used].copy()


@kernel
def _index_of(table: NDArray[np.int32], ids: Ids, used: Number, shift: Number, label: Number) -> Number:
    """Index of a label; equal to `used` where it is new (its slot is taken then)."""
    mask = np.uint64(table.size - 1)
    slot = hash_id(label, shift)
    while table[slot] >= 0:
        if ids[table[slot]] == label:
            return table[slot]
        slot = (slot + np.uint64(1)) & mask
    table[slot] = used
    return used


@kernel
def _grown_counts(ids: Ids, sizes: NDArray[np.int64]) -> tuple[Ids, NDArray[np.int64], NDArray[np.int32]]:
    used = ids.size
    new_ids, new_sizes = np.empty(2 * used, np.uint64), np.empty(2 * used, np.int64)
    new_ids[:used], new_sizes[:used] = ids, sizes
    table = np.full(4 * used, -1, np.int32)
    shift = _shift(table.size)
    for index in range(used):
        _index_of(table, ids, index, shift, ids[index])
    return new_ids, new_sizes, table
