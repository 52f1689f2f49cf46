"""`petavoxel report`."""

from __future__ import annotations

from typing import Annotated

import typer


def report(
    run: Annotated[str, typer.Argument(help="Output prefix of `petavoxel segment`, or folder of `petavoxel train`.")],
    out: Annotated[str | None, typer.Option(metavar="FILE.html", help="Default: report.html in RUN.")] = None,
    truth: Annotated[str | None, typer.Option(metavar="URL", help="True labels: score a segmentation.")] = None,
    box: Annotated[str | None, typer.Option(metavar="Z0:Z1,Y0:Y1,X0:X1", help="Part of TRUTH to score.")] = None,
    worst: Annotated[int, typer.Option(min=0, max=50, help="Splits, and mergers, to show.")] = 6,
) -> None:
    """Write one self-contained HTML page: stages or curves, scores with intervals, worst mistakes, configuration."""
    from services.report import write_report

    print(write_report(run, out, truth=truth, box=box, worst=worst))
