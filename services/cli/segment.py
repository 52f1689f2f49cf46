"""`petavoxel segment`, and its phases one by one: `predict`, `watershed`, `agglomerate`, `relabel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.fields import read_triple, read_voxel_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.pipelines.stage import Summary
    from services.run import Run, SegmentOptions

Image = Annotated[str, typer.Argument(help="Volume URL: zarr, precomputed, HDF5 (file.h5:/dataset), TIFF, npy, npz.")]
Out = Annotated[str, typer.Argument(help="Output prefix, a folder or a bucket prefix; an interrupted run goes on.")]
Held = Annotated[str, typer.Argument(help="Output prefix of `petavoxel segment` or `petavoxel predict`.")]
Model = Annotated[str, typer.Option(help="Name, NAME@VERSION, folder or URL of a model.")]
ChunkShape = Annotated[str | None, typer.Option(metavar="Z,Y,X", help="Extent of a chunk; default fits the patches.")]
Region = Annotated[str | None, typer.Option(metavar="Z0:Z1,Y0:Y1,X0:X1", help="Part of the image.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join; default an embedded one.")]
Precision = Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")]
Runtime = Annotated[str, typer.Option(help="auto, openvino, tensorrt or torch.")]
Augment = Annotated[bool, typer.Option("--augment", help="Average predictions over flips and transposes.")]
Size = Annotated[str | None, typer.Option(metavar="Z,Y,X", help="Voxel size in nm, if IMAGE has none.")]
AnySize = Annotated[bool, typer.Option("--any-voxel-size", help="Accept voxels unlike the training's.")]
Threshold = Annotated[float | None, typer.Option(help="Mean affinity down to which segments merge.")]
Skeletons = Annotated[bool | None, typer.Option(help="Trace skeletons as well.")]
SkeletonNm = Annotated[
    float | None,
    typer.Option(metavar="NM", min=0, help="Trace a pyramid level of voxels up to this; default 32, 0: the finest."),
]
Endpoints = Annotated[
    str | None,
    typer.Option(metavar="APP", help="Predict with running endpoints of that cluster (petavoxel serve: petavoxel)."),
]
Low = Annotated[float | None, typer.Option(help="Affinity up to which voxels stay apart.")]
High = Annotated[float | None, typer.Option(help="Affinity from which voxels always join.")]
BasinVoxels = Annotated[int | None, typer.Option(help="Basins below this many voxels join a neighbour.")]
BasinAffinity = Annotated[float | None, typer.Option(help="Affinity that such a neighbour needs.")]
Floor = Annotated[float | None, typer.Option(help="Mean affinity down to which the merge tree is made.")]


def segment(
    image: Image,
    out: Out,
    model: Model = "fib25-affinity",
    chunk: ChunkShape = None,
    box: Region = None,
    address: Address = None,
    threshold: Threshold = None,
    low: Low = None,
    high: High = None,
    basin_voxels: BasinVoxels = None,
    basin_affinity: BasinAffinity = None,
    precision: Precision = "auto",
    runtime: Runtime = "auto",
    augment: Augment = False,
    skeletons: Skeletons = True,
    skeleton_nm: SkeletonNm = None,
    voxel_size: Size = None,
    any_voxel_size: AnySize = False,
    endpoints: Endpoints = None,
) -> None:
    """Segment an image into neurons: supervoxels, segments with pyramid, region graph, merges and skeletons in OUT.

    Thresholds that are not given are those of the model's card.
    """
    from infra.cluster import cluster
    from services.pipelines.preparation import Request, check, prepare
    from services.pipelines.segment import segment as run_pipeline

    options = _options(
        {"runtime": runtime, "precision": precision, "augment": augment, **_skeletons(skeletons, skeleton_nm)},
        watershed={"low": low, "high": high},
        agglomeration={"threshold": threshold, "basin_voxels": basin_voxels, "basin_affinity": basin_affinity},
    )
    chunk_shape, size = read_triple(chunk, "chunk"), read_voxel_size(voxel_size)
    request = Request(image, out, model, options, box, chunk_shape, any_voxel_size, size, endpoints)
    checked = check(request)
    with cluster(address):
        summary = run_pipeline(prepare(checked))
    print_summary(summary)
    print(f"{out}: done; look at it with: petavoxel view {out}")


def predict(
    image: Image,
    out: Out,
    model: Model = "fib25-affinity",
    chunk: ChunkShape = None,
    box: Region = None,
    address: Address = None,
    precision: Precision = "auto",
    runtime: Runtime = "auto",
    augment: Augment = False,
    voxel_size: Size = None,
    any_voxel_size: AnySize = False,
    endpoints: Endpoints = None,
) -> None:
    """Predict affinities of an image: the first phase of `petavoxel segment`; `petavoxel watershed OUT` comes next."""
    from services.pipelines.preparation import Request, check, prepare

    options = _options({"runtime": runtime, "precision": precision, "augment": augment})
    chunk_shape, size = read_triple(chunk, "chunk"), read_voxel_size(voxel_size)
    request = Request(image, out, model, options, box, chunk_shape, any_voxel_size, size, endpoints)
    checked = check(request)
    _run_phase(lambda: prepare(checked, predictions_only=True), "predict", address, "petavoxel watershed")


def watershed(out: Held, low: Low = None, high: High = None, address: Address = None) -> None:
    """Supervoxels and their region graph from the affinities in OUT; `petavoxel agglomerate OUT` comes next."""
    run = _changed(out, "watershed", watershed={"low": low, "high": high})
    _run_changed(run, "watershed", address, "petavoxel agglomerate")


def agglomerate(
    out: Held,
    threshold: Threshold = None,
    basin_voxels: BasinVoxels = None,
    basin_affinity: BasinAffinity = None,
    tree_floor: Floor = None,
    address: Address = None,
) -> None:
    """Merge the supervoxels in OUT: the whole merge tree, cut at the threshold; `petavoxel relabel OUT` comes next."""
    changes = {
        "threshold": threshold,
        "basin_voxels": basin_voxels,
        "basin_affinity": basin_affinity,
        "tree_floor": tree_floor,
    }
    run = _changed(out, "agglomerate", agglomeration=changes)
    _run_changed(run, "agglomerate", address, "petavoxel relabel")


def relabel(out: Held, skeletons: Skeletons = None, skeleton_nm: SkeletonNm = None, address: Address = None) -> None:
    """Segments, their pyramid and skeletons from the agglomeration in OUT: the last phase of `petavoxel segment`."""
    run = _changed(out, "relabel", **_skeletons(skeletons, skeleton_nm))
    _run_changed(run, "relabel", address, "petavoxel view")


def _run_phase(prepared: Callable[[], Run], phase: str, address: str | None, following: str) -> None:
    """Run a phase of the run that `prepared` gives on the cluster."""
    from infra.cluster import cluster
    from services.pipelines.segment import run_phase
    from services.pipelines.stage import Summary

    summary = Summary()
    with cluster(address):
        run = prepared()
        run_phase(run, phase, summary)
    print_summary(summary)
    print(f"{run.out}: {phase} done; next: {following} {run.out}")


def _run_changed(run: Run, phase: str, address: str | None, following: str) -> None:
    """Run a phase of a run with changed options, which its prefix holds from when the cluster is there."""
    from services.pipelines.preparation import hold

    _run_phase(lambda: hold(run), phase, address, following)


def _changed(out: str, phase: str, **changes: Any) -> Run:
    """The run in OUT with some options changed, ready for the phase; None keeps what is there."""
    from services.pipelines.preparation import changed_run, opened_run
    from services.pipelines.segment import check_ready

    run = opened_run(out)
    held = run.options.model_dump()
    for name, change in changes.items():
        partly = isinstance(change, dict) and held[name] is not None
        held[name] = {**held[name], **_given(change)} if partly else change
    changed = changed_run(run, _options(held))
    check_ready(changed, phase)
    return changed


def _skeletons(wanted: bool | None, voxel_nm: float | None) -> dict[str, Any]:
    """The options of skeletons: none, those of the run with what is given, or no change."""
    if wanted is False:
        if voxel_nm is not None:
            raise typer.BadParameter("expected skeletons with it, got --no-skeletons", param_hint="--skeleton-nm")
        return {"skeletons": None}
    return {"skeletons": _given({"voxel_nm": voxel_nm})} if wanted or voxel_nm is not None else {}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _options(values: dict[str, Any], **groups: dict[str, Any]) -> SegmentOptions:
    from pydantic import ValidationError

    from models.errors import InvalidConfig
    from services.run import SegmentOptions

    try:
        return SegmentOptions.model_validate({**values, **{name: _given(group) for name, group in groups.items()}})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidConfig(f"options: {wrong}") from error


def print_summary(summary: Summary) -> None:
    """Print one line per stage."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "chunks", "computed", "seconds", "Mvoxel/s")
    for stage in summary.joined():
        rate = f"{stage.voxels_per_s / 1e6:.2f}"
        table.add_row(stage.stage, str(stage.chunks), str(stage.computed), f"{stage.seconds:.1f}", rate)
    Console().print(table)
