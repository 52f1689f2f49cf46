"""`petavoxel datasets …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Published data sets: terms, files, conversion.", no_args_is_help=True)


@app.callback()
def datasets() -> None:
    """Published data sets: terms, files, conversion."""


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Name the data sets that can be prepared."""
    from services.datasets.registry import DATASETS

    if as_json:
        print(json.dumps({name: {"title": d.title, "licence": d.licence} for name, d in DATASETS.items()}))
        return
    for name, dataset in DATASETS.items():
        print(f"{name:<10} {dataset.title}\n{'':<10} {dataset.licence}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name of a data set, see `list`.")]) -> None:
    """Tell terms, citation, expected files and where to get them."""
    from services.datasets.registry import find_dataset

    dataset = find_dataset(name)
    rows = [
        ("name", dataset.name),
        ("title", dataset.title),
        ("licence", dataset.licence + (" (needs --accept-licence)" if dataset.needs_acceptance else "")),
        ("citation", dataset.citation),
        ("get it from", dataset.where),
        ("files", ", ".join(dataset.files)),
        *([("notes", dataset.notes)] if dataset.notes else []),
    ]
    print("\n".join(f"{key + ':':<13}{text}" for key, text in rows))


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="Name of a data set, see `list`.")],
    out: Annotated[str, typer.Argument(help="Output prefix: SAMPLE/image.zarr, labels.zarr, mask.zarr, dataset.json.")],
    source: Annotated[Path, typer.Option("--from", help="Folder with the published files, at any depth.")],
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="You accept the terms.")] = False,
) -> None:
    """Convert the published files of a data set to volumes; nothing is downloaded."""
    from services.datasets.prepare import prepare as run
    from services.datasets.registry import find_dataset

    dataset = find_dataset(name)
    print(f"{dataset.name}: {dataset.licence}\nplease cite: {dataset.citation}", flush=True)
    for sample in run(dataset, source, out, accepted=accept_licence):
        size = " x ".join(f"{extent:g}" for extent in sample.voxel_size_nm)
        splits = ", ".join(f"{split} {box}" for split, box in sample.splits.items())
        print(
            f"{sample.name}: {sample.shape} voxels of {size} nm, {sample.objects} objects, "
            f"{100 * sample.annotated:.1f} % annotated; {splits}"
        )
