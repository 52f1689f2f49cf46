"""`petavoxel export-precomputed`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.segment import print_summary


def export_precomputed(
    out: Annotated[str, typer.Argument(help="Output prefix of a finished `petavoxel segment`.")],
    destination: Annotated[str, typer.Argument(help="Empty folder or bucket prefix, e.g. gs://bucket/name.")],
    image: Annotated[bool, typer.Option("--image", help="Export the image too, as far as it is segmented.")] = False,
    meshes: Annotated[
        str | None, typer.Option(metavar="URL", help="Output of `petavoxel mesh`; default OUT/meshes, if it is there.")
    ] = None,
    sharded: Annotated[bool, typer.Option(help="Store 256^3 voxels as one object instead of 64^3.")] = True,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default an embedded one.")] = None,
) -> None:
    """Export segments, skeletons and meshes as precomputed layers for Neuroglancer and proofreading tools."""
    from infra.cluster import cluster
    from services.pipelines.export import export_precomputed as run
    from services.pipelines.export import prepare_export

    export = prepare_export(out, destination, image=image, sharded=sharded, meshes=meshes)
    with cluster(address):
        summary = run(export)
    print_summary(summary)
    layers = ["segmentation", *(["image"] if image else [])]
    print("\n".join(f"precomputed://{destination.rstrip('/')}/{layer}" for layer in layers))
