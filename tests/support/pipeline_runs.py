"""Ways to run the pipeline on a small image in tests."""

from pathlib import Path

import numpy as np

from models.catalog import Model
from models.geometry import Box, Triple
from models.segmentation.merge_tree import MergeTree
from models.segmentation.region_graph import RegionGraph
from services.pipelines.preparation import Request, check, prepare
from services.pipelines.segment import PHASES, create_arrays
from services.run import AgglomerationOptions, Engine, Run, SegmentOptions, WatershedOptions, stage_keys
from services.stages.node_tables import read_faces, read_graph, read_merges
from services.stages.pyramid import pyramid_factors
from services.stages.skeletonize import SkeletonOptions

SHAPE = (30, 44, 37)
OPTIONS = SegmentOptions(
    watershed=WatershedOptions(low=0, high=0.8),
    agglomeration=AgglomerationOptions(basin_voxels=5, threshold=0.45),
    skeletons=SkeletonOptions(dust_voxels=50, const_nm=20, chunk_voxels=(20, 20, 20)),
)


def request(image: str, out: str | Path, model: Model, chunk: Triple | None = None, box: str | None = None) -> Request:
    return Request(image, str(out), str(model.folder), OPTIONS, chunk=chunk, box=box)


def run_in_process(asked: Request, *, skeletons: bool = False, rng: np.random.Generator | None = None) -> Run:
    """All stages without Ray, the chunks of each in random order where `rng` is given."""
    run = prepare(check(asked))
    for phase in PHASES:
        run_phase_in_process(run, phase, skeletons=skeletons, rng=rng)
    return run


def run_phase_in_process(
    run: Run, phase: str, *, skeletons: bool = False, rng: np.random.Generator | None = None
) -> None:
    """All stages of a phase without Ray and without the ledger's opinion of what is done."""
    create_arrays(run, phase)
    for stage in PHASES[phase](run):
        if stage.ledger.stage.startswith("skelet") and not skeletons:
            break
        apply = stage.make(*stage.arguments)
        for i in rng.permutation(len(stage.chunks)) if rng else range(len(stage.chunks)):
            apply(stage.chunks[i])


def given_affinities(shape: Triple, options: SegmentOptions, chunk: Triple, out: str) -> Run:
    """A run whose affinities come from somewhere else; `affinities.zarr` has to be written."""
    return Run(
        image="",
        image_identity="",
        out=out,
        model="",
        model_name="",
        model_sha256="",
        voxel_size_nm=(10, 10, 10),
        offset_voxels=(0, 0, 0),
        volume_shape=shape,
        domain=Box.from_shape(shape),
        chunk_shape=chunk,
        threads=1,
        engine=Engine("openvino", "fp32", "given", False),
        options=options,
        keys=stage_keys("given", options, pyramid_factors(shape, (10, 10, 10))),
    )


def region_graph_of(run: Run) -> RegionGraph:
    """The region graph of the whole run."""
    edges = [read_graph(run.folder, f"region_graph/edges/{chunk.name}") for chunk in run.grid]
    faces = [read_faces(run.folder, f"region_graph/faces/{chunk.name}").graph for chunk in run.grid]
    return RegionGraph.sum_of([*edges, *faces])


def merges_of(run: Run) -> MergeTree:
    """The merges of all nodes."""
    nodes = [(level, node) for level in range(run.octree.depth + 1) for node in run.octree.nodes(level)]
    return MergeTree.joined(
        read_merges(run.folder, f"agglomeration/merges/{level}/{node.name}") for level, node in nodes
    )
