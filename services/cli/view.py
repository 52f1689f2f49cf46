"""`petavoxel view`."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from services.cli.fields import read_voxel_size


def view(
    target: Annotated[str, typer.Argument(metavar="OUT|IMAGE", help="Output of a run, or URL of an image (z, y, x).")],
    *,
    segmentation: Annotated[
        str | None, typer.Option(metavar="URL", help="Labels to show instead of the run's.")
    ] = None,
    png: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a picture instead of serving a viewer.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the viewer; 0 takes a free one.", min=0, max=65535)] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    voxel_size: Annotated[
        str | None, typer.Option(metavar="Z,Y,X", help="Voxel size in nm, if IMAGE has none.")
    ] = None,
) -> None:
    """Look at a run or an image: Neuroglancer in the browser until Ctrl-C, or a picture."""
    from services.view import find_scene, start_viewer, write_picture

    scene = find_scene(target, segmentation, read_voxel_size(voxel_size))
    if png is not None:
        caption = write_picture(scene, png)
        print(f"{png}: {caption}")
        return
    viewer = start_viewer(scene, port=port, host=host)
    try:
        print(f"Open in a browser: {viewer}\nCtrl-C ends it.", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        import neuroglancer

        neuroglancer.stop()
