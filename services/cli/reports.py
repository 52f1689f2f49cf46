"""Scores as text for a terminal: numbers first, then the conventions under which they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.metrics.bootstrap import Interval
    from services.evaluate import SegmentationScores
    from services.evaluate_boundaries import AffinityScores, BoundaryScores
    from services.evaluate_skeletons import RunLengthScores
    from services.sweep import Sweep

_MEANING = {
    "segment": "predicted 0 is one segment like any other",
    "singletons": "every predicted 0 is a segment of its own",
    "ignore": "predicted 0 is left out: only labelled voxels are scored",
}
_PENALTY = {
    "segment": "the merged segment's own cable has run length 0",
    "skeleton": "every skeleton that a merged segment touches has run length 0",
}
_AGGREGATION = {
    "length": "mean over all cable (long skeletons weigh more)",
    "skeleton": "plain mean over skeletons",
}


def segmentation_report(scores: SegmentationScores) -> str:
    """VOI, adapted Rand error, CREMI score, and how voxels counted."""
    total, intervals = scores.box.size, scores.intervals
    rand, voi = scores.rand, scores.voi
    voi_text = f"{voi.total:.4f} bits (split {voi.split:.4f}, merge {voi.merge:.4f})"
    rand_text = f"{rand.error:.4f} (precision {rand.precision:.4f}, recall {rand.recall:.4f})"
    return _lines(
        [
            ("VOI", voi_text + _interval(intervals, "voi_sum")),
            ("adapted Rand error", rand_text + _interval(intervals, "adapted_rand_error")),
            ("CREMI score", f"{scores.cremi:.4f}" + _interval(intervals, "cremi_score")),
            ("voxels scored", f"{scores.voxels_scored} of {total} ({100 * scores.voxels_scored / total:.1f} %)"),
            ("voxels ignored", f"{scores.voxels_ignored} (true 0)"),
            ("voxels unlabelled", f"{scores.voxels_unlabelled} (predicted 0 where truth is not)"),
            ("conventions", f"true 0 is ignored; {_MEANING[scores.pred_background]}; pairs of distinct voxels"),
            *_interval_line(intervals, "true objects"),
            ("box", str(scores.box)),
        ]
    )


def sweep_report(found: Sweep) -> str:
    """A table over thresholds, the best of them, and the conventions."""
    head = f"{'threshold':>9} {'VOI':>8} {'split':>8} {'merge':>8} {'Rand err':>9} {'CREMI':>8} {'segments':>9}"
    rows = [
        f"{p.threshold:9.4g} {p.voi.total:8.4f} {p.voi.split:8.4f} {p.voi.merge:8.4f} {p.rand.error:9.4f} "
        f"{p.cremi:8.4f} {p.segments:9d}{' *' if p is found.best else ''}"
        for p in found.points
    ]
    best, rand = found.best, found.best_rand
    own = f"; the run's own threshold is {found.threshold:g}" if found.threshold is not None else ""
    lines = _lines(
        [
            ("best VOI", f"{best.voi.total:.4f} bits at threshold {best.threshold:g}{own}"),
            ("best Rand error", f"{rand.rand.error:.4f} at threshold {rand.threshold:g}"),
            ("supervoxels", f"{found.supervoxels}; merge tree down to {found.floor:g}"),
            (
                "conventions",
                f"pairs merge whose mean affinity is at least the threshold; true 0 is ignored; "
                f"{_MEANING[found.pred_background]}; VOI in bits",
            ),
            ("box", str(found.box)),
        ]
    )
    return "\n".join([head, *rows, "", lines])


def run_length_report(scores: RunLengthScores) -> str:
    """ERL, rates, and every convention that decides them."""
    found, rule = scores.run_length, scores.run_length.convention
    size = " x ".join(f"{extent:g}" for extent in scores.voxel_size_nm)
    nodes = "as they come" if scores.spacing_nm is None else f"at most {scores.spacing_nm:g} nm apart"
    mask = "none" if scores.mask is None else f"{scores.mask}, from {rule.mask_threshold} voxels"
    return _lines(
        [
            ("ERL", f"{found.erl_nm:.1f} nm" + _interval(found.intervals, "erl_nm", 1)),
            (
                "normalised ERL",
                f"{found.normalised:.4f} of {found.maximum_nm:.1f} nm" + _interval(found.intervals, "normalised_erl"),
            ),
            ("cable", f"{found.cable_nm / 1000:.2f} um in {found.skeletons} skeletons"),
            (
                "of the cable",
                f"correct {100 * found.correct:.2f} %, merged {100 * found.merged:.2f} %, "
                f"split {100 * found.split:.2f} %, omitted {100 * found.omitted:.2f} %",
            ),
            ("splits", f"{found.splits_per_mm:.1f} per mm"),
            ("mergers", f"{found.merges_per_mm:.1f} per mm, in {len(found.merged_segments)} segments"),
            ("resolution", f"{size} nm voxels (z, y, x); nodes {nodes}"),
            ("merge threshold", f"{rule.merge_threshold} nodes of a second skeleton"),
            ("no-merge mask", mask),
            ("a merger costs", _PENALTY[rule.penalty]),
            ("aggregation", _AGGREGATION[rule.aggregation]),
            ("skeletons from", f"{scores.truth}: {scores.skeletons}; at least {scores.min_cable_nm:g} nm"),
            *_interval_line(found.intervals, "skeletons"),
            ("box", f"{scores.box}; {scores.edges_outside} edges outside are left out"),
        ]
    )


def boundary_report(scores: BoundaryScores) -> str:
    """Boundary F-score and its tolerance."""
    counts = scores.counts
    size = " x ".join(f"{extent:g}" for extent in scores.voxel_size_nm)
    return _lines(
        [
            (
                "boundary F-score",
                f"{counts.f_score:.4f} (precision {counts.precision:.4f}, recall {counts.recall:.4f})",
            ),
            ("boundary voxels", f"{counts.pred} predicted, {counts.truth} true"),
            ("conventions", f"match within {scores.tolerance_nm:g} nm; voxels of {size} nm; 0 is an id like any other"),
            ("box", str(scores.box)),
        ]
    )


def affinity_report(scores: AffinityScores) -> str:
    """Average precision, overall and by channel."""
    overall = scores.overall
    channels = [
        (
            f"offset {','.join(map(str, offset))}",
            f"cut {found.cut:.4f}, joined {found.joined:.4f}" if found else "has not both kinds of edges",
        )
        for offset, found in zip(scores.offsets, scores.channels, strict=True)
    ]
    return _lines(
        [
            ("average precision", f"{overall.cut:.4f} for cut edges, {overall.joined:.4f} for joined ones"),
            ("edges", f"{overall.cut_edges} cut, {overall.joined_edges} joined"),
            *channels,
            (
                "conventions",
                "edges of true 0 and edges that leave the box do not count; equal affinities enter together",
            ),
            ("box", str(scores.box)),
        ]
    )


def _lines(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name + ':':<20}{text}" for name, text in rows)


def _interval(intervals: dict[str, Interval], name: str, digits: int = 4) -> str:
    if name not in intervals:
        return ""
    found = intervals[name]
    return f"  [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _interval_line(intervals: dict[str, Interval], objects: str) -> list[tuple[str, str]]:
    if not intervals:
        return []
    one = next(iter(intervals.values()))
    return [("intervals", f"{100 * one.confidence:g} %, bootstrap over {one.objects} {objects}, {one.samples} draws")]
