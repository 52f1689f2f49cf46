"""`petavoxel segment`: an image of any size to supervoxels, segments and skeletons, in four phases.

::

    predict       image → affinities                                                   chunks
    watershed     affinities → fragments → supervoxels, region graph                   chunks, octree for the seams
    agglomerate   region graph → small basins → merge tree → segment of a supervoxel   octree, up and down, twice
    relabel       supervoxels → segments → pyramid → skeletons                         chunks

Every stage reads and writes below the output prefix and marks its chunks in the ledger, so a run that was interrupted
goes on where it stopped. A phase leaves what the next ones need, and removes its own intermediate results (work/PHASE),
so each can be run again with other options. On the octree no process sees more of the region graph than what is open
between eight nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from infra.volumes import VolumeInfo, create_pyramid, create_volume
from models.errors import InvalidInput
from models.geometry import NEAREST, ChunkGrid, Triple
from services.pipelines.skeletonize import skeleton_stages
from services.pipelines.stage import Needs, Stage, Summary, announce, forget_others, run_stage
from services.run import Run, finished_with
from services.stages.basins_tree import basins_down, basins_of_chunk_down, basins_of_chunk_up, basins_up
from services.stages.merges_tree import cut_down, merges_of_chunk, merges_up, segments_of_chunk
from services.stages.predict import predict
from services.stages.pyramid import level_of_voxels, pyramid, pyramid_factors, total_factors
from services.stages.region_graph import region_graph
from services.stages.relabel import relabel
from services.stages.seams import seams
from services.stages.seams_tree import seams_down, seams_up, supervoxels
from services.stages.skeletonize import SkeletonOptions
from services.stages.skeletons import SkeletonJob
from services.stages.watershed import watershed

logger = logging.getLogger(__name__)

MOST_PASSES = 10
"""Passes of an exchange with as many sources as chunks can have names; see `infra.exchange`."""


def segment(run: Run) -> Summary:
    """Run all phases on the Ray that this process belongs to, and return what each stage did.

    `run` comes from `prepare`. Raises `ChunkFailed` where chunks failed repeatedly.
    """
    summary = Summary()
    if run.folder.exists("progress/complete.json"):
        logger.info("%s: finished already", run.out)
        run.folder.remove("work")
        return summary
    for phase in PHASES:
        run_phase(run, phase, summary)
    return summary


def run_phase(run: Run, phase: str, summary: Summary) -> None:
    """Run the stages of one phase; those before it must have finished.

    Raises `InvalidInput` where they have not, `ChunkFailed` where chunks failed repeatedly.
    """
    for stage in begin_phase(run, phase):
        run_stage(stage, summary)
    run.folder.write_json(f"progress/phases/{phase}.json", {"key": run.phase_key(phase)})
    run.folder.write_json("progress/summary.json", {"stages": summary.as_json()})
    last = phase == "relabel"
    if last:
        run.folder.write_json("progress/complete.json", {"key": run.key})
    run.folder.remove("work" if last else f"work/{phase}")


def begin_phase(run: Run, phase: str) -> list[Stage]:
    """The stages of a phase, ready to be run one after the other.

    Where the phase has finished with other options, it counts as unfinished from here on, and the markers that these
    options decide are removed at once, in order: its intermediate results are gone, so what is left of the markers
    must never name one that a later stage still reads.
    """
    check_ready(run, phase)
    create_arrays(run, phase)
    planned = [replace(stage, phase=phase) for stage in PHASES[phase](run)]
    if finished_with(run.folder, phase) not in (None, run.phase_key(phase)):
        run.folder.write_json(f"progress/phases/{phase}.json", {"key": ""})
        for stage in planned:
            forget_others(stage.ledger, stage.ledger.markers())
    announce(planned)
    return planned


def predict_stages(run: Run) -> Iterator[Stage]:
    """Image → affinities."""
    needs, number = _predicting(run)
    yield Stage(run.ledger("predict"), run.grid, predict, (run,), needs, number)


def _predicting(run: Run) -> tuple[Needs, int]:
    """What a worker that predicts needs, and the number that goes with it: threads, or workers beside endpoints."""
    if run.endpoints is not None:
        from services.served import served_workers  # with Serve and FastAPI behind it

        return "endpoints", served_workers(run.endpoints)
    return ("a GPU" if run.engine.gpu else "processors"), run.threads


def watershed_stages(run: Run) -> Iterator[Stage]:
    """Affinities → fragments of each chunk → supervoxels and their region graph."""
    grid, levels = run.grid, _levels(run)
    yield Stage(run.ledger("watershed"), grid, watershed, (run,))
    yield Stage(run.ledger("seams"), grid, seams, (run,))
    for level, nodes in levels:
        yield Stage(run.ledger("seams", f"up_{level}"), nodes, seams_up, (run, level))
    for level, nodes in reversed(levels):
        yield Stage(run.ledger("seams", f"down_{level}"), nodes, seams_down, (run, level))
    yield Stage(run.ledger("seams", "down_0"), grid, supervoxels, (run,))
    yield Stage(run.ledger("region_graph"), grid, region_graph, (run,))


def agglomerate_stages(run: Run) -> Iterator[Stage]:
    """Region graph → small basins → merge tree → its cut at the threshold: the segment of each supervoxel."""
    grid, levels = run.grid, _levels(run)
    yield Stage(run.ledger("basins", "up_0"), grid, basins_of_chunk_up, (run,))
    for level, nodes in levels:
        yield Stage(run.ledger("basins", f"up_{level}"), nodes, basins_up, (run, level))
    for level, nodes in reversed(levels):
        yield Stage(run.ledger("basins", f"down_{level}"), nodes, basins_down, (run, level))
    yield Stage(run.ledger("basins", "down_0"), grid, basins_of_chunk_down, (run,))
    yield Stage(run.ledger("merges", "up_0"), grid, merges_of_chunk, (run,))
    for level, nodes in levels:
        yield Stage(run.ledger("merges", f"up_{level}"), nodes, merges_up, (run, level))
    for level, nodes in reversed(levels):
        yield Stage(run.ledger("cut", f"down_{level}"), nodes, cut_down, (run, level))
    yield Stage(run.ledger("cut", "down_0"), grid, segments_of_chunk, (run,))


def relabel_stages(run: Run) -> Iterator[Stage]:
    """Supervoxels → segments, their pyramid and skeletons."""
    yield Stage(run.ledger("relabel"), run.grid, relabel, (run,))
    for level, factor in enumerate(pyramid_factors(run.domain.shape, run.voxel_size_nm), start=1):
        coarse = ChunkGrid(run.volume("segmentation.zarr", level=level).box, _coarse_chunk(run, factor))
        yield Stage(run.ledger(f"pyramid_{level}"), coarse, pyramid, (run, level, factor))
    if run.options.skeletons is not None:
        yield from skeleton_stages(skeleton_job(run, run.options.skeletons))


def _coarse_chunk(run: Run, factor: Triple) -> Triple:
    """What a chunk of the run becomes one level higher, in whole stored pieces: more would take more memory to read."""
    pieces = zip(run.chunk_shape, factor, run.storage_chunk(), strict=True)
    z, y, x = (-(-chunk // (f * piece)) * piece for chunk, f, piece in pieces)
    return z, y, x


PHASES: dict[str, Callable[[Run], Iterator[Stage]]] = {
    "predict": predict_stages,
    "watershed": watershed_stages,
    "agglomerate": agglomerate_stages,
    "relabel": relabel_stages,
}


def _levels(run: Run) -> list[tuple[int, ChunkGrid]]:
    """Levels of the octree above the chunks, with their nodes."""
    tree = run.octree
    return [(level, tree.nodes(level)) for level in range(1, tree.depth + 1)]


def check_ready(run: Run, phase: str) -> None:
    """Raise `InvalidInput` where a phase before this one has not finished with the run's options."""
    names = list(PHASES)
    for before in names[: names.index(phase)]:
        if finished_with(run.folder, before) != run.phase_key(before):
            raise InvalidInput(f"{run.out}: {phase} needs {before}, which has not finished with these options")


def create_arrays(run: Run, phase: str) -> None:
    """Create the arrays that a phase writes, or open those of the interrupted run.

    Skeletons of another segmentation are removed: their files have the names of segments.
    """
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

    at = run.folder.at
    if phase == "predict":
        create_volume(at("affinities.zarr"), info("uint8", channels=3, affinity_offsets=NEAREST), exists="reuse")
    elif phase == "watershed":
        create_volume(at("work/watershed/fragments.zarr"), info("uint64"), exists="reuse")
        create_volume(at("supervoxels.zarr"), info("uint64"), exists="reuse")
    elif phase == "relabel":
        factors = pyramid_factors(run.domain.shape, run.voxel_size_nm)
        create_pyramid(at("segmentation.zarr"), info("uint64"), factors, exists="reuse")
        _claim_skeletons(run)


def _claim_skeletons(run: Run) -> None:
    """Remove skeletons of another segmentation or of other options, and before them all markers that vouch for them.

    The claim is empty meanwhile, so that whichever options come after an interruption do the same again.
    """
    claim, key = "progress/phases/skeletons.json", run.keys["skeletonize"]
    if finished_with(run.folder, "skeletons") == key:
        return
    run.folder.write_json(claim, {"key": ""})
    passes = (f"skeletons_pass_{number}" for number in range(1, MOST_PASSES + 1))
    for stage in ("skeletons", *passes, "skeletonize"):
        run.folder.remove(f"progress/{stage}")
    run.folder.remove("skeletons")
    run.folder.write_json(claim, {"key": key})


def skeleton_job(run: Run, options: SkeletonOptions) -> SkeletonJob:
    """The skeletons of a run's segmentation."""
    segmentation = run.volume("segmentation.zarr")
    factors = total_factors(pyramid_factors(run.domain.shape, run.voxel_size_nm))
    level = level_of_voxels(run.voxel_size_nm, factors, options.voxel_nm)
    return SkeletonJob(
        segmentation=run.folder.at("segmentation.zarr"),
        domain=segmentation.box,
        voxel_size_nm=run.voxel_size_nm,
        offset_voxels=segmentation.info.offset_voxels,
        options=options,
        out=run.folder.at("skeletons"),
        work=run.work("relabel").at("skeletons"),
        ledgers=run.out,
        key=run.keys["skeletonize"],
        made_from=run.made_from("skeletonize"),
        level=level,
        factor=factors[level],
    )
