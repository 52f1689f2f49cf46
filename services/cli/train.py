"""`petavoxel train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from models.errors import RuntimeUnavailable


def train(
    config: Annotated[Path, typer.Argument(help="The recipe, a YAML file; see models/zoo/*/train.yaml.")],
    out: Annotated[Path, typer.Argument(help="Folder of the run; a run that is there goes on.")],
    data: Annotated[Path, typer.Option(help="Folder that relative volume paths in CONFIG start from.")] = Path(),
    preview: Annotated[
        Path | None, typer.Option(help="Write a PNG of every augmentation to this file, and do not train.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the CPU, of each worker; default all cores.", min=1)
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes that share each batch, a GPU each where there are some.", min=1)
    ] = 1,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to train on; OUT and data are shared folders.")
    ] = None,
) -> None:
    """Train a network: checkpoint, configuration and TensorBoard logs in OUT."""
    try:
        import torch
    except ImportError as error:
        raise RuntimeUnavailable(
            f"training needs the extra 'train': pip install 'petavoxel[train]' ({error})"
        ) from error
    from PIL import Image

    from services.training import TrainConfig
    from services.training import train as run

    recipe = TrainConfig.read(config)
    if preview:
        Image.fromarray(recipe.preview(data)).save(preview)
        print(preview)
        return

    if workers > 1 or address:
        from infra.cluster import cluster, own_processors
        from services.training_workers import Workers, train_on_workers

        each = threads or (1 if address else max(1, own_processors() // workers))
        with cluster(address, cpus=max(own_processors(), workers * each)):
            print(train_on_workers(recipe, out, data, Workers(workers, each)))
        return
    if threads:
        torch.set_num_threads(threads)
    print(run(recipe, out, data))
