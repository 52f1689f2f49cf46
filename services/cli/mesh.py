"""`petavoxel mesh`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.segment import print_summary


def mesh(
    segmentation: Annotated[str, typer.Argument(help="URL of a label volume (z, y, x) that knows its voxel size.")],
    out: Annotated[str, typer.Argument(help="Output prefix: precomputed/.")],
    simplify: Annotated[
        float,
        typer.Option(metavar="NM", min=0, help="How far surfaces may move to save triangles, e.g. a voxel; 0: none."),
    ] = 0,
    mesh_nm: Annotated[
        float, typer.Option(metavar="NM", min=0, help="Begin with a pyramid level of voxels up to this; 0: the finest.")
    ] = 0,
    levels: Annotated[int, typer.Option(help="Levels of detail at most, one per pyramid level.", min=1, max=12)] = 6,
    dust: Annotated[int, typer.Option(help="Segments below this many voxels are left out.", min=0)] = 1000,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default an embedded one.")] = None,
) -> None:
    """Make the surfaces of all segments, in nm: precomputed meshes with levels of detail, for Neuroglancer."""
    from infra.cluster import cluster
    from services.pipelines.meshes import mesh as run
    from services.pipelines.meshes import prepare_meshes
    from services.stages.meshes import MeshOptions

    options = MeshOptions(voxel_nm=mesh_nm, dust_voxels=dust, max_error_nm=simplify, levels=levels)
    job = prepare_meshes(segmentation, out, options)
    with cluster(address):
        summary = run(job)
    print_summary(summary)
