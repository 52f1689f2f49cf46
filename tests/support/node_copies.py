"""Large nodes of the octree from a small run: what its root reads, many times over with disjoint ids."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from infra.chunk_map import ChunkFunction, Report
from services.run import Run
from services.stages.basins_tree import PLACE as BASINS
from services.stages.basins_tree import basins_up
from services.stages.merges_tree import PLACE as MERGES
from services.stages.merges_tree import merges_up
from services.stages.seams_tree import seams_up

NODES: dict[str, tuple[Callable[[Run, int], ChunkFunction], str, tuple[str, ...]]] = {
    "seams": (seams_up, "watershed/seams", ("pairs/{}", "open/{}")),
    "small basins": (basins_up, BASINS, ("left/{}.basins", "left/{}.edges", "faces/{}")),
    "mean affinity": (merges_up, MERGES, ("left/{}.segments", "left/{}.edges", "faces/{}")),
}
"""Per step: what a node computes, and which tables of its children it reads, below work/."""
_STEP = 1 << 40
"""Distance between the ids of two copies."""
_IDS = frozenset(("ids", "labels", "first", "second", "u", "v", "id", "largest", "own", "before", "key", "value"))


def compute_root(run: Run, step: str) -> Report:
    """Compute the root of a run for one of the steps, in this process."""
    tree = run.octree
    (root,) = tree.nodes(tree.depth)
    report: Report = NODES[step][0](run, tree.depth)(root)
    return report


def copy_children(run: Run, into: Run, step: str, copies: int) -> None:
    """Write what the root of `run` reads into another prefix, `copies` times over."""
    _, place, tables = NODES[step]
    below = run.octree.depth - 1
    for child in run.octree.nodes(below):
        for table in tables:
            name = f"work/{place}/{table.format(f'{below}/{child.name}')}.parquet"
            into.folder.write_table(name, _repeated(run.folder.read_table(name), copies))


def _repeated(columns: Mapping[str, NDArray[np.generic]], copies: int) -> dict[str, NDArray[np.generic]]:
    """Rows sorted by ids stay so, as each copy's ids lie above those of the copy before."""
    shifts = np.repeat(np.arange(copies, dtype=np.uint64) * np.uint64(_STEP), len(next(iter(columns.values()))))
    found = {
        name: np.tile(column, copies) + (shifts if name in _IDS else column.dtype.type(0))
        for name, column in columns.items()
    }
    if "axis" in found:  # rows of faces are sorted by it first
        order = np.argsort(found["axis"], kind="stable")
        found = {name: column[order] for name, column in found.items()}
    return found
