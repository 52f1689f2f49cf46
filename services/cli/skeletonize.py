"""`petavoxel skeletonize`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.segment import SkeletonNm, print_summary


def skeletonize(
    segmentation: Annotated[str, typer.Argument(help="URL of a label volume (z, y, x) that knows its voxel size.")],
    out: Annotated[str, typer.Argument(help="Output prefix: precomputed/ and swc/ID.swc.")],
    box: Annotated[str | None, typer.Option(metavar="Z0:Z1,Y0:Y1,X0:X1", help="Part of the volume.")] = None,
    dust: Annotated[int, typer.Option(help="Segments below this many voxels are left out.", min=0)] = 1000,
    swc: Annotated[bool, typer.Option(help="Write a file per segment too; not for millions of segments.")] = True,
    skeleton_nm: SkeletonNm = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default an embedded one.")] = None,
) -> None:
    """Trace the centre lines of all segments, in nm."""
    from infra.cluster import cluster
    from services.pipelines.skeletonize import prepare_skeletons
    from services.pipelines.skeletonize import skeletonize as run
    from services.stages.skeletonize import SkeletonOptions

    options = SkeletonOptions(dust_voxels=dust, swc=swc)
    if skeleton_nm is not None:
        options = options.model_copy(update={"voxel_nm": skeleton_nm})
    job = prepare_skeletons(segmentation, out, options, box=box)
    with cluster(address):
        summary = run(job)
    print_summary(summary)
