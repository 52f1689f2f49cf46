"""Options chosen on one part of a volume, scored on another; the difference of two segmentations with its interval."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.metrics.bootstrap import Interval, Terms, bootstrap
from models.metrics.contingency import ContingencyTable, contingency_table, merged_predictions
from models.metrics.cremi import cremi_score
from models.metrics.objects import object_terms
from models.metrics.rand import adapted_rand
from models.metrics.voi import variation_of_information
from models.segmentation.merge_tree import cut
from models.segmentation.region_graph import region_graph
from models.segmentation.watershed import watershed
from models.segmentation.whole import merge_supervoxels

SAMPLES = 1000
"""Draws of a bootstrap."""


@dataclass(frozen=True)
class Options:
    """Upper watershed threshold, voxels of a small basin, and where the merge tree is cut; None: it is not used."""

    high: int
    basin_voxels: int
    threshold: float | None


@dataclass(frozen=True)
class Grid:
    """The options that are tried; no thresholds at all: basins alone."""

    highs: Sequence[int]
    sizes: Sequence[int]
    thresholds: Sequence[float] = ()


def tables(
    affinities: NDArray[np.uint8], truth: NDArray[np.integer], grid: Grid
) -> Iterator[tuple[Options, ContingencyTable]]:
    """Every combination with its table; true 0 is ignored, and every voxel is labelled."""
    filled = np.maximum(affinities, 1) if affinities[0].any() else affinities
    for high in grid.highs:
        supervoxels = watershed(filled, low=1, high=high)
        graph = region_graph(filled, supervoxels)
        fine = contingency_table(supervoxels, truth)
        for size in grid.sizes:
            floor = min(grid.thresholds, default=1.0)
            whole = merge_supervoxels(supervoxels, graph, basin_voxels=size, basin_affinity=1, floor=floor)
            basins = merged_predictions(fine, whole.ids, whole.basins)
            if not grid.thresholds:
                yield Options(high, size, None), basins
            for threshold in grid.thresholds:
                merged = merged_predictions(basins, *cut(whole.merges, threshold))
                yield Options(high, size, threshold), merged


def chosen(affinities: NDArray[np.uint8], truth: NDArray[np.integer], grid: Grid) -> Options:
    """The options of lowest CREMI score, the geometric mean of VOI and adapted Rand error."""
    scored = ((cremi(table), options) for options, table in tables(affinities, truth, grid))
    return min(scored, key=lambda pair: pair[0])[1]


def table_at(affinities: NDArray[np.uint8], truth: NDArray[np.integer], options: Options) -> ContingencyTable:
    """The table of one set of options."""
    thresholds = () if options.threshold is None else (options.threshold,)
    ((_, table),) = tables(affinities, truth, Grid((options.high,), (options.basin_voxels,), thresholds))
    return table


def cremi(table: ContingencyTable) -> float:
    """CREMI score of a table."""
    return cremi_score(variation_of_information(table), adapted_rand(table))


def sections(affinities: NDArray[np.uint8], truth: NDArray[np.integer]) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """Affinities without edges between sections, and the parts of each label per section, with ids of their own."""
    from skimage.measure import label

    flat = affinities.copy()
    flat[1:] = np.maximum(flat[1:], 1)
    flat[0] = 0
    parts = [label(section, connectivity=1, background=0).astype(np.uint64) for section in truth]
    return flat, np.stack([np.where(part > 0, part + np.uint64(z << 32), 0) for z, part in enumerate(parts)])


def terms(found: Sequence[ContingencyTable]) -> Terms:
    """What each true object adds to the sums, over several tables of the same objects."""
    divided = [object_terms(table) for table in found]
    if any(not np.array_equal(one.truth, divided[0].truth) for one in divided):
        raise ValueError("expected tables of the same true objects")
    return np.sum([one.matrix for one in divided], axis=0)


def scores(sums: Terms) -> dict[str, NDArray[np.float64]]:
    """VOI and adapted Rand error of sums (samples, 6) of `terms`."""
    voxels, split, merge, both, in_pred, in_truth = sums.T
    return {
        "voi": (split + merge) / voxels,
        "voi_split": split / voxels,
        "voi_merge": merge / voxels,
        "rand": 1 - 2 * both / (in_pred + in_truth),
    }


def scored(found: Terms, *, seed: int = 0) -> dict[str, tuple[float, Interval]]:
    """Each score of `terms` with its interval over objects."""
    statistics = {name: lambda sums, name=name: scores(sums)[name] for name in scores(found[:1])}
    intervals = bootstrap(found, statistics, rng=np.random.default_rng(seed))
    values = scores(found.sum(0, keepdims=True))
    return {name: (float(values[name][0]), intervals[name]) for name in intervals}


def difference(first: Sequence[Terms], second: Sequence[Terms], *, seed: int = 0) -> dict[str, tuple[float, Interval]]:
    """Each score of the first less that of the second, means over training seeds (an item of either side each).

    The interval is over the objects, the same draw for both sides and all seeds, and over the seeds, drawn in pairs.
    """
    if len(first) != len(second):
        raise ValueError(f"expected as many seeds on both sides, got {len(first)} and {len(second)}")
    both = np.hstack([*first, *second])
    seeds = np.random.default_rng(seed).integers(len(first), size=(SAMPLES, len(first)))

    def less(sums: Terms, name: str, drawn: NDArray[np.integer]) -> NDArray[np.float64]:
        each = scores(sums.reshape(-1, 6))[name].reshape(len(sums), 2, -1)
        return np.take_along_axis(each[:, 0] - each[:, 1], drawn, axis=1).mean(axis=1)

    statistics = {name: lambda sums, name=name: less(sums, name, seeds) for name in ("voi", "rand")}
    intervals = bootstrap(both, statistics, rng=np.random.default_rng(seed), samples=SAMPLES)
    total, all_of_them = both.sum(0, keepdims=True), np.arange(len(first))[None]
    return {name: (float(less(total, name, all_of_them)[0]), intervals[name]) for name in intervals}


def verdict(found: tuple[float, Interval]) -> str:
    """What a difference of errors, claimed to be negative, says."""
    if found[1].high < 0:
        return "holds"
    return "fails" if found[1].low > 0 else "not shown"
