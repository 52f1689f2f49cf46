"""`petavoxel segment`: an image of any size to supervoxels, segments and skeletons.

::

    image → predict → watershed → seams → basins → merges → cut → relabel → pyramid → skeletons
            each over the chunks  └ over an octree of chunks ┘    over the chunks

Seams, basins and merges go up the octree, level by level, and down again with what became of the ids (`cut` is the way
down of the merges): no process sees more of the region graph than what is open between eight nodes.

Every stage reads and writes below the output prefix and marks its chunks in the ledger, so a run that was interrupted
goes on where it stopped.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from infra.objects import Folder
from infra.runtimes.session import chosen_runtime
from infra.volumes import Volume, VolumeInfo, create_pyramid, create_volume, open_volume
from models.catalog import Model, find_model
from models.errors import InvalidInput, InvalidVolume, RunConflict
from models.geometry import NEAREST, Box, ChunkGrid, Triple, VoxelSize, triple
from services.pipelines.skeletonize import skeleton_stages
from services.pipelines.stage import Stage, Summary, inference_threads, run_stage
from services.predict import Predictor
from services.run import Run, SegmentOptions, stage_keys
from services.stages.linkage_tree import (
    BASINS,
    STEPS,
    basins_down,
    basins_of_chunk,
    chunk_up,
    cut_down,
    node_up,
    segments_of_chunk,
)
from services.stages.predict import predict
from services.stages.pyramid import pyramid, pyramid_factors
from services.stages.relabel import relabel
from services.stages.seams import seams
from services.stages.seams_tree import seams_down, seams_up, supervoxels
from services.stages.skeletonize import SkeletonOptions
from services.stages.skeletons import SkeletonJob
from services.stages.watershed import watershed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What `petavoxel segment` was asked for.

    `box` is in voxels of the image; `chunk` None lets the patch plan decide; `any_voxel_size` lets a network run on
    voxels that it was not trained for; `voxel_size_nm` supplies what the image does not say.
    """

    image: str
    out: str
    model: str
    options: SegmentOptions
    box: str | None = None
    chunk: Triple | None = None
    any_voxel_size: bool = False
    voxel_size_nm: VoxelSize | None = None


def segment(run: Run) -> Summary:
    """Run the pipeline on the Ray that this process belongs to, and return what each stage did.

    `run` comes from `prepare`. Raises `ChunkFailed` where chunks failed repeatedly.
    """
    summary = Summary()
    if run.folder.exists("progress/complete.json"):
        logger.info("%s: finished already", run.out)
        run.folder.remove("work")
        return summary
    create_arrays(run)
    for stage in stages(run):
        run_stage(stage, summary)
    if run.options.skeletons is not None:
        for stage in skeleton_stages(skeleton_job(run, run.options.skeletons)):
            run_stage(stage, summary)
    run.folder.write_json("progress/summary.json", {"stages": summary.as_json()})
    run.folder.write_json("progress/complete.json", {"key": run.key})
    run.folder.remove("work")
    return summary


def stages(run: Run) -> Iterator[Stage]:
    """The stages up to the pyramid, in order; each needs the ones before it."""
    grid = tuple(run.grid)
    yield Stage(run.ledger("predict"), grid, predict, (run,), run.threads)
    yield Stage(run.ledger("watershed"), grid, watershed, (run,))
    yield Stage(run.ledger("seams"), grid, seams, (run,))
    yield from agglomeration_stages(run)
    yield Stage(run.ledger("relabel"), grid, relabel, (run,))
    for level, factor in enumerate(pyramid_factors(run.domain.shape, run.voxel_size_nm), start=1):
        coarse = tuple(ChunkGrid(run.volume("segmentation.zarr", level=level).box, run.chunk_shape))
        yield Stage(run.ledger(f"pyramid_{level}"), coarse, pyramid, (run, level, factor))


def agglomeration_stages(run: Run) -> Iterator[Stage]:
    """From fragments and what meets at their chunks' faces to supervoxels, basins, the merge tree and segments."""
    grid, tree = tuple(run.grid), run.octree
    levels = [(level, tuple(tree.nodes(level))) for level in range(1, tree.depth + 1)]
    for level, nodes in levels:
        yield Stage(run.ledger("seams", f"up_{level}"), nodes, seams_up, (run, level))
    for level, nodes in reversed(levels):
        yield Stage(run.ledger("seams", f"down_{level}"), nodes, seams_down, (run, level))
    yield Stage(run.ledger("seams", "down_0"), grid, supervoxels, (run,))
    for name in STEPS:
        yield Stage(run.ledger(name, "up_0"), grid, chunk_up, (run, name))
        for level, nodes in levels:
            yield Stage(run.ledger(name, f"up_{level}"), nodes, node_up, (run, name, level))
        if name == BASINS.name:
            for level, nodes in reversed(levels):
                yield Stage(run.ledger("basins", f"down_{level}"), nodes, basins_down, (run, level))
            yield Stage(run.ledger("basins", "down_0"), grid, basins_of_chunk, (run,))
    for level, nodes in reversed(levels):
        yield Stage(run.ledger("cut", f"down_{level}"), nodes, cut_down, (run, level))
    yield Stage(run.ledger("cut", "down_0"), grid, segments_of_chunk, (run,))


def prepare(request: Request) -> Run:
    """Check image, model and output prefix, and claim the prefix with `run.json`; nothing is computed yet.

    Raises `NotFound`, `InvalidVolume`, `InvalidModel` or `InvalidInput` for what cannot be used, `RunConflict` where
    the output prefix holds something else.
    """
    model = find_model(request.model)
    image = open_volume(request.image, voxel_size_nm=request.voxel_size_nm)
    voxel_size = _check_image(image, model, request.any_voxel_size)
    domain = Box.parse(request.box) if request.box else image.box
    if not image.box.contains(domain) or domain.size == 0:
        raise InvalidInput(f"box: expected voxels within the image's {image.box}, got {domain}")
    options, threads = request.options, inference_threads()
    predictor = Predictor(request.model, runtime=options.runtime, precision=options.precision, threads=threads)
    chunk_shape = triple(request.chunk or predictor.plan(image.info.shape).stride, "chunk", minimum=8)
    # Workers must compute what this machine would, so that "auto" cannot differ between them.
    resolved = {"runtime": chosen_runtime(options.runtime), "precision": predictor.session.precision}
    options = options.model_copy(update=resolved)
    source = {
        "image": image.url,
        "image_identity": image.identity(),
        "box": str(domain),
        "model": {"name": model.card.name, "version": model.card.version, "sha256": model.card.file.sha256},
        "patches": str(predictor.plan(image.info.shape)),
    }
    keys = stage_keys(source, options, chunk_shape, pyramid_factors(domain.shape, voxel_size))
    run = Run(
        image=request.image,
        out=Folder(request.out).url,
        model=str(model.folder),
        model_name=model.card.name,
        model_sha256=model.card.file.sha256,
        voxel_size_nm=voxel_size,
        offset_voxels=image.info.offset_voxels,
        volume_shape=image.info.shape,
        domain=domain,
        chunk_shape=chunk_shape,
        threads=threads,
        options=options,
        keys=keys,
    )
    description = {
        **source,
        "key": run.key,
        "voxel_size_nm": list(voxel_size),
        "offset_voxels": list(image.info.offset_voxels),
        "chunk_shape": list(chunk_shape),
        "options": options.model_dump(mode="json"),
        "versions": {name: importlib.metadata.version(name) for name in ("petavoxel", "ray", "numpy", "openvino")},
    }
    _claim(run.folder, description)
    return run


def _check_image(image: Volume, model: Model, any_voxel_size: bool) -> VoxelSize:
    info = image.info
    if info.channels is not None:
        raise InvalidVolume(f"{image.url}: expected an image (z, y, x), got {info.channels} channels")
    model.card.normalisation.check_dtype(info.dtype)
    if info.voxel_size_nm is None:
        raise InvalidVolume(
            f"{image.url}: its voxel size is not known; say it with --voxel-size, "
            f"the model {model.card.name} was trained for {model.card.voxel_size_nm} nm"
        )
    if not any_voxel_size:
        model.card.check_voxel_size(info.voxel_size_nm)
    return info.voxel_size_nm


def _claim(folder: Folder, description: dict[str, Any]) -> None:
    if not folder.exists("run.json"):
        if folder.occupied():
            raise RunConflict(f"{folder.url}: expected an empty output prefix or one of a run, there is something else")
        folder.write_json("run.json", description)
        return
    held = folder.read_json("run.json")
    if held.get("key") != description["key"]:
        different = [
            name for name in description if name not in ("key", "versions") and held.get(name) != description[name]
        ]
        raise RunConflict(
            f"{folder.url}: holds another run; different: {', '.join(different) or 'the pipeline'}. "
            f"Choose another OUT, or delete this one"
        )


def create_arrays(run: Run) -> None:
    """Create the arrays that the stages write, or open those of the interrupted run."""
    factors = pyramid_factors(run.domain.shape, run.voxel_size_nm)
    z, y, x = (a + b for a, b in zip(run.offset_voxels, run.domain.start, strict=True))

    def info(dtype: str, **extra: Any) -> VolumeInfo:
        return VolumeInfo(
            shape=run.domain.shape,
            dtype=np.dtype(dtype),
            voxel_size_nm=run.voxel_size_nm,
            offset_voxels=(z, y, x),
            chunk_shape=run.storage_chunk(),
            attributes={"model": run.model_name, "model_sha256": run.model_sha256},
            **extra,
        )

    create_volume(run.folder.at("affinities.zarr"), info("uint8", channels=3, affinity_offsets=NEAREST), exists="reuse")
    create_volume(run.folder.at("work/fragments.zarr"), info("uint64"), exists="reuse")
    create_volume(run.folder.at("supervoxels.zarr"), info("uint64"), exists="reuse")
    create_pyramid(run.folder.at("segmentation.zarr"), info("uint64"), factors, exists="reuse")


def skeleton_job(run: Run, options: SkeletonOptions) -> SkeletonJob:
    """The skeletons of a run's segmentation."""
    segmentation = run.volume("segmentation.zarr")
    return SkeletonJob(
        segmentation=run.folder.at("segmentation.zarr"),
        domain=segmentation.box,
        voxel_size_nm=run.voxel_size_nm,
        offset_voxels=segmentation.info.offset_voxels,
        options=options,
        out=run.folder.at("skeletons"),
        work=run.work.at("skeletons"),
        ledgers=run.out,
        key=run.keys["skeletonize"],
    )
