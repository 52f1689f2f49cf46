"""`petavoxel evaluate …`: scores against truth."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from services.evaluate import SegmentationScores

app = typer.Typer(help="Score results against truth.", no_args_is_help=True)


class Background(StrEnum):
    """What voxels are that the prediction leaves at 0."""

    SEGMENT = "segment"
    SINGLETONS = "singletons"
    IGNORE = "ignore"


_MEANING = {
    "segment": "predicted 0 is one segment like any other",
    "singletons": "every predicted 0 is a segment of its own",
    "ignore": "predicted 0 is left out: only labelled voxels are scored",
}


@app.callback()
def evaluate() -> None:
    """Score results against truth."""


@app.command()
def segmentation(
    pred: Annotated[str, typer.Argument(help="URL of the predicted labels (z, y, x).")],
    truth: Annotated[str, typer.Argument(help="URL of the true labels (z, y, x); 0 is not scored.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    box: Annotated[
        str | None,
        typer.Option(metavar="Z0:Z1,Y0:Y1,X0:X1", help="Part of TRUTH to score; PRED may be just this part."),
    ] = None,
    pred_background: Annotated[Background, typer.Option(help="How predicted 0 is scored.")] = Background.SEGMENT,
) -> None:
    """Variation of information and adapted Rand error of PRED against TRUTH, read chunk by chunk."""
    from rich.console import Console
    from rich.progress import Progress

    from services.evaluate import evaluate_segmentation

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("scoring", total=None)
        scores = evaluate_segmentation(
            pred,
            truth,
            box=box,
            pred_background=pred_background.value,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print(json.dumps(scores.as_json()) if as_json else _report(scores))


def _report(scores: SegmentationScores) -> str:
    total = scores.box.size
    rows = [
        ("VOI", f"{scores.voi.total:.4f} bits (split {scores.voi.split:.4f}, merge {scores.voi.merge:.4f})"),
        (
            "adapted Rand error",
            f"{scores.rand.error:.4f} (precision {scores.rand.precision:.4f}, recall {scores.rand.recall:.4f})",
        ),
        ("voxels scored", f"{scores.voxels_scored} of {total} ({100 * scores.voxels_scored / total:.1f} %)"),
        ("voxels ignored", f"{scores.voxels_ignored} (true 0)"),
        ("voxels unlabelled", f"{scores.voxels_unlabelled} (predicted 0 where truth is not)"),
        ("conventions", f"true 0 is ignored; {_MEANING[scores.pred_background]}; pairs of distinct voxels"),
        ("box", str(scores.box)),
    ]
    return "\n".join(f"{name + ':':<20}{text}" for name, text in rows)
