"""`petavoxel demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Argument(help="Output folder.")] = Path("demo-out"),
) -> None:
    """Segment a crop of FIB-25 that ships with petavoxel, score it, and write a picture."""
    from rich.console import Console
    from rich.table import Table

    from infra.cluster import cluster
    from services.demo import demo as run

    with cluster():
        result = run(out)
    table = Table("", "", title="FIB-25, 50×250×125 voxels of 10 nm, never trained on", show_header=False)
    scores = result.scores
    table.add_row("VOI", f"{scores.voi.total:.3f} bits (split {scores.voi.split:.3f}, merge {scores.voi.merge:.3f})")
    table.add_row(
        "adapted Rand error",
        f"{scores.rand.error:.4f} (precision {scores.rand.precision:.3f}, recall {scores.rand.recall:.3f})",
    )
    table.add_row("all stages", f"{result.seconds:.1f} s, {result.voxels / result.seconds / 1e6:.2f} Mvoxel/s")
    for stage in result.summary.joined():
        table.add_row(stage.stage, f"{stage.seconds:.1f} s, {stage.chunks} chunks")
    Console().print(table)
    print(f"picture:      {result.picture}\nsegmentation: {out}/segmentation.zarr\nskeletons:    {out}/skeletons/")
    print(f"look at it:   petavoxel view {out}")
