"""Expected run length (ERL): how far one follows a neuron from a random place on it before the segmentation errs.

M. Januszewski et al., "High-precision automated reconstruction of neurons with flood-filling networks", Nature Methods
15 (2018), arXiv:1611.00421; with the additions of D. Wei et al., "AxonEM dataset", MICCAI 2021, arXiv:2107.05451:
normalised by what a perfect segmentation reaches, a threshold below which touching a second neuron is no merger,
and a mask of places where no segment of a true neuron may be. The same segmentation scores differently under different
conventions, so they are part of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidInput, InvalidVolume
from models.metrics.bootstrap import Interval, Terms, bootstrap

Penalty = Literal["segment", "skeleton"]
"""What a merger costs. `segment`: the merged segment's own path counts as length 0 (Januszewski et al.). `skeleton`:
every skeleton with a node in a merged segment has run length 0 (the script of the AxonEM challenge)."""
Aggregation = Literal["length", "skeleton"]
"""How skeletons are averaged. `length`: a random place on all cable, so long neurons weigh more (both papers).
`skeleton`: the plain mean of each skeleton's own expected run length."""


@dataclass(frozen=True)
class RunLengthConvention:
    """What decides an ERL besides the data.

    A segment is merged if at least two true skeletons have `merge_threshold` or more of their nodes in it, or if it has
    `mask_threshold` or more voxels inside the no-merge mask. Raises `InvalidInput` for other values.
    """

    merge_threshold: int = 1
    mask_threshold: int = 1
    penalty: Penalty = "segment"
    aggregation: Aggregation = "length"

    def __post_init__(self) -> None:
        if self.merge_threshold < 1 or self.mask_threshold < 1:
            raise InvalidInput(
                f"merge threshold: expected at least 1 node and 1 voxel, got {self.merge_threshold}, "
                f"{self.mask_threshold}"
            )
        if self.penalty not in get_args(Penalty) or self.aggregation not in get_args(Aggregation):
            raise InvalidInput(
                f"run length: expected penalty segment or skeleton and aggregation length or skeleton, "
                f"got {self.penalty!r} and {self.aggregation!r}"
            )


@dataclass(frozen=True, eq=False)
class TrueSkeletons:
    """True skeletons as one graph.

    `ids`: uint64 (s,), each once; `skeleton`: int64 (n,), index into `ids` of each node; `edges`: int64 (m, 2), nodes;
    `lengths_nm`: float64 (m,). Raises `InvalidVolume` where arrays do not fit, or an edge joins two skeletons.
    """

    ids: NDArray[np.uint64]
    skeleton: NDArray[np.int64]
    edges: NDArray[np.int64]
    lengths_nm: NDArray[np.float64]

    def __post_init__(self) -> None:
        nodes, edges = self.skeleton.size, self.edges
        if edges.shape != (self.lengths_nm.size, 2) or (edges.size and not 0 <= edges.min() <= edges.max() < nodes):
            raise InvalidVolume(
                f"skeletons: expected edges (m, 2) between {nodes} nodes with a length each, got {edges.shape} "
                f"and {self.lengths_nm.shape} lengths"
            )
        if (self.skeleton[edges[:, 0]] != self.skeleton[edges[:, 1]]).any():
            raise InvalidVolume("skeletons: expected edges within one skeleton, got one between two")


@dataclass(frozen=True)
class RunLength:
    """ERL in nm with what it is made of and the convention under which it holds.

    `maximum_nm` is the ERL of a perfect segmentation, `normalised` the share of it that was reached. Fractions of the
    cable: `correct` both ends in one segment that is not merged, `merged` in one that is, `split` in two segments,
    `omitted` an end in background. `splits_per_mm`: split edges, `merges_per_mm`: skeletons (and the mask, if it is
    hit) that a merged segment holds beyond its first, summed over merged segments, both per mm of cable.
    """

    erl_nm: float
    maximum_nm: float
    skeletons: int
    cable_nm: float
    correct: float
    merged: float
    split: float
    omitted: float
    splits_per_mm: float
    merges_per_mm: float
    merged_segments: tuple[int, ...]
    convention: RunLengthConvention
    intervals: dict[str, Interval] = field(default_factory=dict)

    @property
    def normalised(self) -> float:
        """ERL as a share of what a perfect segmentation reaches, 0 to 1."""
        return self.erl_nm / self.maximum_nm

    def as_json(self) -> dict[str, Any]:
        """Flat numbers, the convention, and intervals as [low, high]."""
        return {
            **{name: value for name, value in asdict(self).items() if name not in ("intervals", "merged_segments")},
            "normalised_erl": self.normalised,
            "merged_segments": list(self.merged_segments),
            "intervals": {name: [interval.low, interval.high] for name, interval in self.intervals.items()},
        }


def expected_run_length(
    truth: TrueSkeletons,
    segments: NDArray[np.uint64],
    *,
    masked_segments: NDArray[np.uint64] | None = None,
    masked_voxels: NDArray[np.int64] | None = None,
    convention: RunLengthConvention = RunLengthConvention(),
    rng: np.random.Generator | None = None,
    samples: int = 1000,
) -> RunLength:
    """Score the predicted segment of every node of the true skeletons.

    `segments`: uint64 (n,), 0 where the prediction has none. `masked_segments`, `masked_voxels`: predicted ids and
    their numbers of voxels inside the no-merge mask. A run is all correct cable of one skeleton within one segment.
    With `rng` and at least two skeletons, 95 % bootstrap intervals over skeletons are added. Skeletons without length
    do not count. Raises `InvalidVolume` for other shapes or dtypes, `InvalidInput` where there is no cable at all.
    """
    if segments.dtype != np.uint64 or segments.shape != truth.skeleton.shape:
        raise InvalidVolume(
            f"segments: expected uint64 of shape {truth.skeleton.shape}, one per node, got {segments.dtype} of "
            f"{segments.shape}"
        )
    cable = np.bincount(truth.skeleton[truth.edges[:, 0]], weights=truth.lengths_nm, minlength=truth.ids.size)
    if not cable.sum() > 0:
        raise InvalidInput("run length: expected true skeletons with some length, got none")
    merged, beyond = _merged(truth, segments, masked_segments, masked_voxels, convention)
    in_merged = np.isin(segments, merged)
    first, second = segments[truth.edges[:, 0]], segments[truth.edges[:, 1]]
    omitted = (first == 0) | (second == 0)
    split = ~omitted & (first != second)
    bad = ~omitted & ~split & in_merged[truth.edges[:, 0]]
    correct = ~(omitted | split | bad)
    squares = _squared_runs(truth, first, correct)
    if convention.penalty == "skeleton":
        squares[np.unique(truth.skeleton[in_merged])] = 0
    counted = cable > 0
    terms = np.stack([squares, cable, cable**2, np.ones_like(cable)], axis=1)[counted]
    statistics = {
        "erl_nm": lambda sums: _mean(sums, 0, convention),
        "normalised_erl": lambda sums: _mean(sums, 0, convention) / _mean(sums, 2, convention),
    }
    if convention.aggregation == "skeleton":
        terms[:, [0, 2]] /= terms[:, 1:2]
    sums = terms.sum(axis=0, keepdims=True)
    total, edges = float(cable.sum()), truth.lengths_nm
    return RunLength(
        erl_nm=float(_mean(sums, 0, convention)[0]),
        maximum_nm=float(_mean(sums, 2, convention)[0]),
        skeletons=int(counted.sum()),
        cable_nm=total,
        correct=float(edges[correct].sum() / total),
        merged=float(edges[bad].sum() / total),
        split=float(edges[split].sum() / total),
        omitted=float(edges[omitted].sum() / total),
        splits_per_mm=float(split.sum() / (total * 1e-6)),
        merges_per_mm=beyond / (total * 1e-6),
        merged_segments=tuple(int(segment) for segment in merged),
        convention=convention,
        intervals=bootstrap(terms, statistics, rng=rng, samples=samples) if rng is not None and len(terms) > 1 else {},
    )


def cable_graph(
    skeletons: Sequence[tuple[int, NDArray[np.floating], NDArray[np.integer]]], *, spacing_nm: float | None = None
) -> tuple[TrueSkeletons, NDArray[np.float64]]:
    """Join skeletons (id, vertices (n, 3) in nm, edges (m, 2)) into one graph; also returns its vertices, float64.

    With `spacing_nm` edges that are longer get nodes in between, so that an edge which leaves its neuron and comes back
    is not called correct. Raises `InvalidInput` for an id that comes twice or a spacing that is not positive.
    """
    if spacing_nm is not None and not spacing_nm > 0:
        raise InvalidInput(f"spacing: expected more than 0 nm, got {spacing_nm}")
    ids = np.array([name for name, _, _ in skeletons], np.uint64)
    if np.unique(ids).size != ids.size:
        raise InvalidInput("skeletons: expected every id once")
    points, owners, pairs = [np.empty((0, 3))], [np.empty(0, np.int64)], [np.empty((0, 2), np.int64)]
    nodes = 0
    for index, (_, vertices, edges) in enumerate(skeletons):
        position, links = _subdivided(vertices.astype(np.float64), edges.astype(np.int64).reshape(-1, 2), spacing_nm)
        points.append(position)
        owners.append(np.full(len(position), index, np.int64))
        pairs.append(links + nodes)
        nodes += len(position)
    position, links = np.concatenate(points), np.concatenate(pairs)
    lengths = np.linalg.norm(position[links[:, 0]] - position[links[:, 1]], axis=1)
    return TrueSkeletons(ids, np.concatenate(owners), links, lengths), position


def _subdivided(
    vertices: NDArray[np.float64], edges: NDArray[np.int64], spacing_nm: float | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    if spacing_nm is None or not len(edges):
        return vertices, edges
    ends = vertices[edges]
    pieces = np.maximum(1, np.ceil(np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1) / spacing_nm)).astype(np.int64)
    edge_of = np.repeat(np.arange(len(edges)), pieces)  # one row per piece
    step = np.arange(edge_of.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    last = step == pieces[edge_of] - 1
    fraction = (step + 1) / pieces[edge_of]
    inner = ends[edge_of, 0] + fraction[:, None] * (ends[edge_of, 1] - ends[edge_of, 0])
    numbers = np.where(last, edges[edge_of, 1], len(vertices) + np.cumsum(~last) - 1)
    before = np.where(step == 0, edges[edge_of, 0], np.roll(numbers, 1))
    return np.concatenate([vertices, inner[~last]]), np.stack([before, numbers], axis=1)


def _merged(
    truth: TrueSkeletons,
    segments: NDArray[np.uint64],
    masked_segments: NDArray[np.uint64] | None,
    masked_voxels: NDArray[np.int64] | None,
    convention: RunLengthConvention,
) -> tuple[NDArray[np.uint64], int]:
    """The merged segments, sorted, and the sum over them of what they hold beyond their first skeleton."""
    ids, number = np.unique(segments, return_inverse=True)
    pairs, nodes = np.unique(np.stack([number, truth.skeleton]), axis=1, return_counts=True)
    held = np.bincount(pairs[0, nodes >= convention.merge_threshold], minlength=ids.size)
    if masked_segments is not None and masked_voxels is not None:
        hit = np.isin(ids, masked_segments[masked_voxels >= convention.mask_threshold])
        held = held + (hit & (held > 0))
    held[ids == 0] = 0
    return ids[held > 1], int((held[held > 1] - 1).sum())


def _squared_runs(truth: TrueSkeletons, segment: NDArray[np.uint64], correct: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Per skeleton the sum of the squared lengths of its runs, nm^2."""
    owners = truth.skeleton[truth.edges[correct, 0]]
    _, number = np.unique(segment[correct], return_inverse=True)
    runs, run = np.unique(np.stack([owners, number]), axis=1, return_inverse=True)
    lengths = np.bincount(run.reshape(-1), weights=truth.lengths_nm[correct], minlength=runs.shape[1])
    return np.bincount(runs[0], weights=lengths**2, minlength=truth.ids.size).astype(np.float64, copy=False)


def _mean(sums: Terms, column: int, convention: RunLengthConvention) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = sums[:, column] / sums[:, 1 if convention.aggregation == "length" else 3]
    return mean
