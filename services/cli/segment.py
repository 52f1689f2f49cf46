"""`petavoxel segment`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.fields import read_triple, read_voxel_size

if TYPE_CHECKING:
    from services.pipelines.stage import Summary


def segment(
    image: Annotated[
        str, typer.Argument(help="Volume URL: zarr, precomputed, HDF5 (file.h5:/dataset), TIFF, npy, npz.")
    ],
    out: Annotated[str, typer.Argument(help="Output prefix, a folder or a bucket prefix; an interrupted run goes on.")],
    model: Annotated[str, typer.Option(help="Name in the zoo, or folder of a model.")] = "fib25-affinity",
    chunk: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Extent of a chunk; default fits the patches.")
    ] = None,
    box: Annotated[str | None, typer.Option(metavar="Z0:Z1,Y0:Y1,X0:X1", help="Part of the image.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default an embedded one.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Mean affinity down to which segments merge.")] = None,
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")] = "auto",
    runtime: Annotated[str, typer.Option(help="auto, openvino, tensorrt or torch.")] = "auto",
    augment: Annotated[bool, typer.Option("--augment", help="Average predictions over flips and transposes.")] = False,
    skeletons: Annotated[bool, typer.Option(help="Trace skeletons as well.")] = True,
    voxel_size: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Voxel size in nm, if IMAGE has none.")
    ] = None,
    any_voxel_size: Annotated[
        bool, typer.Option("--any-voxel-size", help="Accept voxels unlike the training's.")
    ] = False,
) -> None:
    """Segment an image into neurons: supervoxels, segments with pyramid, region graph, merges and skeletons in OUT."""
    from pydantic import ValidationError

    from infra.cluster import cluster
    from models.errors import InvalidConfig
    from services.pipelines.segment import Request, prepare
    from services.pipelines.segment import segment as run_pipeline
    from services.run import SegmentOptions

    try:
        options = SegmentOptions.model_validate(
            {
                "runtime": runtime,
                "precision": precision,
                "augment": augment,
                "agglomeration": {} if threshold is None else {"threshold": threshold},
                **({} if skeletons else {"skeletons": None}),
            }
        )
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidConfig(f"options: {wrong}") from error
    request = Request(
        image, out, model, options, box, read_triple(chunk, "chunk"), any_voxel_size, read_voxel_size(voxel_size)
    )
    run = prepare(request)
    with cluster(address):
        summary = run_pipeline(run)
    print_summary(summary)
    print(f"{out}: done; look at it with: petavoxel view {out}")


def print_summary(summary: Summary) -> None:
    """Print one line per stage."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "chunks", "computed", "seconds", "Mvoxel/s")
    for stage in summary.stages:
        table.add_row(
            stage.stage,
            str(stage.chunks),
            str(stage.computed),
            f"{stage.seconds:.1f}",
            f"{stage.voxels_per_s / 1e6:.2f}",
        )
    Console().print(table)
