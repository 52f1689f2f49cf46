"""`petavoxel export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.errors import NotFound, RuntimeUnavailable


def export(
    checkpoint: Annotated[Path, typer.Argument(help="What `petavoxel train` wrote, e.g. RUN/last.pt.")],
    folder: Annotated[Path, typer.Argument(help="Folder that gets model.onnx and card.json.")],
    name: Annotated[str | None, typer.Option(help="The model's name; default the folder's.")] = None,
    model_version: Annotated[str, typer.Option(help="The model's version.")] = "1",
    data: Annotated[str, typer.Option(help="What the network was trained on, for the card.")] = "not stated",
    terms: Annotated[str, typer.Option(help="Terms of use of that data, for the card.")] = "not stated",
    scores: Annotated[
        Path | None, typer.Option(help='JSON file: [{"dataset": …, "split": …, "values": {"voi": …}}, …].')
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="A uint8 volume that ONNX and torch are compared on; default synthetic cells.")
    ] = None,
) -> None:
    """Export a checkpoint as a model: an ONNX file, compared with torch, and its card."""
    try:
        from models.training.export import export_checkpoint
    except ImportError as error:
        raise RuntimeUnavailable(
            f"exporting needs the extra 'train': pip install 'petavoxel[train]' ({error})"
        ) from error
    from infra.runtimes.openvino_session import run_onnx
    from infra.volumes import open_volume
    from models.catalog import Score, Training, read_scores
    from models.geometry import Box

    reached: tuple[Score, ...] = ()
    if scores is not None:
        try:
            reached = read_scores(scores.read_text(), str(scores))
        except OSError as error:
            raise NotFound(f"{scores}: cannot read the scores ({error.strerror})") from error
    pixels = None
    if image is not None:
        volume = open_volume(image)
        whole = Box.from_shape(volume.info.shape)
        shape = (96, 384, 384)  # networks without padding see far within the section
        z, y, x = (max(0, (n - m) // 2) for n, m in zip(whole.shape, shape, strict=True))
        pixels = volume.read(Box.from_shape(shape, (z, y, x)).intersection(whole))
    model = export_checkpoint(
        checkpoint,
        folder,
        run=run_onnx,
        training=Training(data, terms),
        name=name,
        version=model_version,
        image=pixels,
        scores=reached,
    )
    print(f"{model.folder}: {model.card.name}, {model.card.file.size:,} bytes, SHA-256 {model.card.file.sha256}")
