"""`petavoxel evaluate …`: scores against truth."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.fields import read_triple, read_voxel_size
from services.cli.reports import (
    affinity_report,
    boundary_report,
    run_length_report,
    segmentation_report,
    sweep_report,
)

app = typer.Typer(help="Score results against truth.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
BoxOfTruth = Annotated[
    str | None, typer.Option(metavar="Z0:Z1,Y0:Y1,X0:X1", help="Part of TRUTH to score; PRED may be just this part.")
]
Predicted = Annotated[str, typer.Argument(help="URL of the predicted labels (z, y, x), or output prefix of a run.")]
TrueLabels = Annotated[str, typer.Argument(help="URL of the true labels (z, y, x); 0 is not scored.")]
VoxelSizeText = Annotated[
    str | None, typer.Option(metavar="Z,Y,X", help="Voxel size in nm, if the volumes do not know theirs.")
]
OnRay = Annotated[
    str | None, typer.Option(help="Score on Ray; what was measured goes below this prefix, and a rerun goes on.")
]
ChunkOnRay = Annotated[str | None, typer.Option(metavar="Z,Y,X", help="Extent of a chunk, with --out.")]
AddressOfRay = Annotated[str | None, typer.Option(help="Ray cluster to join, with --out; default embedded.")]
Draws = Annotated[int, typer.Option(min=0, help="Bootstrap draws for the 95 % intervals; 0 for none.")]


class Background(StrEnum):
    """What voxels are that the prediction leaves at 0."""

    SEGMENT = "segment"
    SINGLETONS = "singletons"
    IGNORE = "ignore"


class Penalty(StrEnum):
    """What a merger costs in run length."""

    SEGMENT = "segment"
    SKELETON = "skeleton"


class Aggregation(StrEnum):
    """How skeletons are averaged."""

    LENGTH = "length"
    SKELETON = "skeleton"


@app.callback()
def evaluate() -> None:
    """Score results against truth."""


@app.command()
def segmentation(
    pred: Predicted,
    truth: TrueLabels,
    as_json: AsJson = False,
    box: BoxOfTruth = None,
    pred_background: Annotated[Background, typer.Option(help="How predicted 0 is scored.")] = Background.SEGMENT,
    samples: Draws = 1000,
    out: OnRay = None,
    chunk: ChunkOnRay = None,
    address: AddressOfRay = None,
) -> None:
    """VOI, adapted Rand error and CREMI score of PRED against TRUTH, read chunk by chunk."""
    if out is None:
        from services.evaluate import evaluate_segmentation

        with _progress() as advance:
            scores = evaluate_segmentation(
                pred, truth, box=box, pred_background=pred_background.value, samples=samples, on_progress=advance
            )
    else:
        from infra.cluster import cluster
        from services.pipelines.evaluate import CHUNK
        from services.pipelines.evaluate import evaluate as run

        with cluster(address):
            scores, _ = run(
                pred,
                truth,
                out,
                box=box,
                pred_background=pred_background.value,
                samples=samples,
                chunk_shape=read_triple(chunk, "chunk") or CHUNK,
            )
    _show(scores.as_json(), as_json, lambda: segmentation_report(scores))


@app.command()
def sweep(
    out: Annotated[str, typer.Argument(help="Output prefix of `petavoxel segment`.")],
    truth: TrueLabels,
    as_json: AsJson = False,
    truth_dataset: Annotated[
        str | None, typer.Option(help="Dataset inside TRUTH, for HDF5 and npz; the same as TRUTH:DATASET.")
    ] = None,
    box: Annotated[
        str | None, typer.Option(metavar="Z0:Z1,Y0:Y1,X0:X1", help="Part of TRUTH to score, within the run's box.")
    ] = None,
    thresholds: Annotated[
        str | None, typer.Option(metavar="T,T,… or FROM:TO:STEP", help="Mean affinities from 0 to 1; default by 0.02.")
    ] = None,
    pred_background: Annotated[Background, typer.Option(help="How predicted 0 is scored.")] = Background.SEGMENT,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Also draw the curves.")] = None,
) -> None:
    """Scores over agglomeration thresholds of a run, from its supervoxels and merge tree; nothing is relabelled."""
    from services.sweep import evaluate_sweep, write_plot

    wanted = _thresholds(thresholds)
    with _progress() as advance:
        found = evaluate_sweep(
            out,
            f"{truth}:{truth_dataset}" if truth_dataset else truth,
            thresholds=wanted,
            box=box,
            pred_background=pred_background.value,
            on_progress=advance,
        )
    if plot is not None:
        write_plot(found, plot)
    _show(found.as_json(), as_json, lambda: sweep_report(found))


@app.command()
def skeletons(
    pred: Predicted,
    truth: Annotated[
        str,
        typer.Argument(
            help="True skeletons (SWC, a folder of them, precomputed, AxonEM .npz), or true labels to trace."
        ),
    ],
    as_json: AsJson = False,
    box: Annotated[
        str | None, typer.Option(metavar="Z0:Z1,Y0:Y1,X0:X1", help="Part of PRED in which cable counts.")
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="No-merge mask, a volume of PRED's shape: not 0 where no true neuron is.")
    ] = None,
    merge_threshold: Annotated[
        int, typer.Option(min=1, help="Nodes of a second skeleton that make a segment merged.")
    ] = 1,
    mask_threshold: Annotated[int, typer.Option(min=1, help="Voxels inside the mask that make a segment merged.")] = 1,
    penalty: Annotated[Penalty, typer.Option(help="What a merger sets to length 0.")] = Penalty.SEGMENT,
    aggregation: Annotated[Aggregation, typer.Option(help="How skeletons are averaged.")] = Aggregation.LENGTH,
    spacing: Annotated[
        float | None, typer.Option(metavar="NM", help="Put nodes on longer edges, at most this far apart.")
    ] = None,
    min_cable: Annotated[float, typer.Option(metavar="NM", min=0, help="Leave out shorter skeletons.")] = 0.0,
    dust: Annotated[int, typer.Option(min=0, help="True labels below this many voxels are not traced.")] = 1000,
    swc_unit: Annotated[str, typer.Option(help="nm or um, for SWC files that do not say theirs.")] = "nm",
    voxel_size: VoxelSizeText = None,
    samples: Draws = 1000,
    out: OnRay = None,
    chunk: ChunkOnRay = None,
    address: AddressOfRay = None,
) -> None:
    """Expected run length (ERL) of PRED along true skeletons, with split and merge rates."""
    from models.metrics.run_length import RunLengthConvention
    from services.evaluate_skeletons import RunLengthMeasure
    from services.stages.skeletonize import SkeletonOptions

    measure = RunLengthMeasure.open(
        pred,
        truth,
        convention=RunLengthConvention(merge_threshold, mask_threshold, penalty.value, aggregation.value),
        mask=mask,
        box=box,
        spacing_nm=spacing,
        min_cable_nm=min_cable,
        swc_unit=swc_unit,
        tracing=SkeletonOptions(dust_voxels=dust),
        voxel_size_nm=read_voxel_size(voxel_size),
        samples=samples,
    )
    scores = _scored(measure, out, chunk, address)
    _show(scores.as_json(), as_json, lambda: run_length_report(scores))


@app.command()
def boundaries(
    pred: Predicted,
    truth: TrueLabels,
    tolerance: Annotated[float, typer.Option(metavar="NM", help="Distance up to which boundaries match.")],
    as_json: AsJson = False,
    box: BoxOfTruth = None,
    voxel_size: VoxelSizeText = None,
    out: OnRay = None,
    chunk: ChunkOnRay = None,
    address: AddressOfRay = None,
) -> None:
    """Boundary precision, recall and F-score of PRED against TRUTH."""
    from services.evaluate_boundaries import BoundaryMeasure

    size = read_voxel_size(voxel_size)
    measure = BoundaryMeasure.open(pred, truth, tolerance_nm=tolerance, box=box, voxel_size_nm=size)
    scores = _scored(measure, out, chunk, address)
    _show(scores.as_json(), as_json, lambda: boundary_report(scores))


@app.command()
def affinities(
    pred: Annotated[str, typer.Argument(help="URL of uint8 affinities (c, z, y, x), as in OUT/affinities.zarr.")],
    truth: TrueLabels,
    as_json: AsJson = False,
    box: BoxOfTruth = None,
    out: OnRay = None,
    chunk: ChunkOnRay = None,
    address: AddressOfRay = None,
) -> None:
    """Average precision of affinities against TRUTH."""
    from services.evaluate_boundaries import AffinityMeasure

    scores = _scored(AffinityMeasure.open(pred, truth, box=box), out, chunk, address)
    _show(scores.as_json(), as_json, lambda: affinity_report(scores))


def _scored(measure: Any, out: str | None, chunk: str | None, address: str | None) -> Any:
    """Measure here, or on Ray where there is an output prefix."""
    if out is None:
        with _progress() as advance:
            return measure.scores([measure.measured(measure.box, advance)])
    from infra.cluster import cluster
    from services.pipelines.evaluate import CHUNK, evaluate_measure

    with cluster(address):
        return evaluate_measure(measure, out, chunk_shape=read_triple(chunk, "chunk") or CHUNK)[0]


def _show(content: dict[str, Any], as_json: bool, report: Callable[[], str]) -> None:
    print(json.dumps(content) if as_json else report())


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("scoring", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _thresholds(text: str | None) -> list[Any] | None:
    """`0.1,0.2` or `0.1:0.9:0.05` (both ends included) as exact fractions; None for None."""
    from fractions import Fraction

    from models.errors import InvalidInput

    if text is None:
        return None
    try:
        if ":" not in text:
            return [Fraction(part.strip()) for part in text.split(",")]
        first, last, step = (Fraction(part.strip()) for part in text.split(":"))
        if step <= 0 or last < first:
            raise ValueError("empty range")
        return [first + i * step for i in range(min(10_000, int((last - first) / step)) + 1)]
    except (ValueError, ZeroDivisionError) as error:
        raise InvalidInput(f"thresholds: expected T,T,… or FROM:TO:STEP with numbers 0 to 1, got {text!r}") from error
