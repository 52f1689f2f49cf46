"""Skeletons as data, and the two formats that other tools read: SWC and Neuroglancer's precomputed skeletons.

In memory a vertex is z, y, x in nanometres, like everything here. Both formats speak x, y, z; this file alone knows.
Precomputed: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/skeletons.md.
SWC: R. C. Cannon et al., J. Neurosci. Methods 84 (1998), DOI 10.1016/S0165-0270(98)00091-0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from infra.objects import Folder
from infra.shards import Entry, ShardedObjects, Sharding
from infra.volumes.location import Location
from infra.written import Written
from models.errors import InvalidInput, InvalidVolume, NotFound

_INFO = {
    "@type": "neuroglancer_skeletons",
    "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],  # vertices are stored in nm
    "vertex_attributes": [{"id": "radius", "data_type": "float32", "num_components": 1}],
}
_UNITS_NM = {"nm": 1.0, "um": 1000.0}
_FIRST_COLUMNS = 7  # of an SWC line: id, type, x, y, z, radius, parent


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A graph in physical space; usually a tree, or a forest where a segment has several parts.

    `vertices`: float32 (n, 3), z, y, x in nm. `edges`: uint32 (m, 2), indices of vertices. `radii`: float32 (n,), nm,
    the distance to the nearest border. Other number types are converted; raises `InvalidInput` for shapes that do not
    fit, indices outside the vertices, and coordinates or radii that are not finite.
    """

    vertices: NDArray[np.float32]
    edges: NDArray[np.uint32]
    radii: NDArray[np.float32]

    def __post_init__(self) -> None:
        vertices = np.ascontiguousarray(self.vertices, dtype=np.float32).reshape(-1, 3)
        edges = np.asarray(self.edges).reshape(-1, 2)
        radii = np.ascontiguousarray(self.radii, dtype=np.float32).reshape(-1)
        if len(radii) != len(vertices):
            raise InvalidInput(f"skeleton: expected one radius per vertex ({len(vertices)}), got {len(radii)}")
        if not (np.isfinite(vertices).all() and np.isfinite(radii).all()):
            raise InvalidInput("skeleton: expected finite coordinates and radii, got NaN or infinity")
        if edges.size and (int(edges.min()) < 0 or int(edges.max()) >= len(vertices)):
            raise InvalidInput(
                f"skeleton: expected edges between vertices 0 to {len(vertices) - 1}, "
                f"got indices {int(edges.min())} to {int(edges.max())}"
            )
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "edges", np.ascontiguousarray(edges, dtype=np.uint32))
        object.__setattr__(self, "radii", radii)

    @property
    def cable_length_nm(self) -> float:
        """Sum of the lengths of all edges, in nm."""
        ends = self.vertices.astype(np.float64)[self.edges]
        return float(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1).sum())

    @cached_property
    def degrees(self) -> NDArray[np.int64]:
        """Number of edges at each vertex, int64 (n,)."""
        return np.bincount(self.edges.reshape(-1).astype(np.int64), minlength=len(self.vertices))

    @property
    def end_points(self) -> NDArray[np.intp]:
        """Indices of the vertices with exactly one edge."""
        return np.flatnonzero(self.degrees == 1)

    @cached_property
    def components(self) -> NDArray[np.int32]:
        """Number of the connected component of each vertex, int32 (n,), counted in the order of first vertices."""
        labels = connected_components(self._adjacency(), directed=False)[1]
        numbers: NDArray[np.int32] = labels.astype(np.int32)
        return numbers

    def _adjacency(self) -> coo_array:
        n = len(self.vertices)
        rows, columns = self.edges.astype(np.int64).T
        return coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(n, n))


# --- SWC ---


def to_swc(skeleton: Skeleton, *, unit: str = "nm") -> str:
    """The skeleton as SWC text: one tree per part, its first line says the unit (nm or um) of x, y, z and radius.

    The root of a part is its first vertex; a parent always comes before its children; type is 0 (undefined). float32
    values in nm survive a round trip exactly. Raises `InvalidInput` for an unknown unit, or a skeleton with a cycle,
    which SWC cannot hold.
    """
    scale = _unit_nm(unit)
    order, parents = _tree_order(skeleton)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(1, len(order) + 1)
    values = np.column_stack([skeleton.vertices[:, ::-1], skeleton.radii])
    texts = (values.astype(np.float64) / scale).astype(np.float32).astype(str) if scale != 1.0 else values.astype(str)
    lines = [f"# unit: {unit}", "# columns: id type x y z radius parent"]
    for vertex in order:
        parent = parents[vertex]
        lines.append(f"{place[vertex]} 0 {' '.join(texts[vertex])} {place[parent] if parent >= 0 else -1}")
    return "\n".join(lines) + "\n"


def from_swc(text: str, *, unit: str = "nm") -> Skeleton:
    """Read SWC text; `unit` (nm or um) holds where no header line `# unit: …` says another.

    Raises `InvalidVolume` for a line that is not SWC, a parent that is not there or an id that comes twice.
    """
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.strip()
        if content.startswith("#"):
            key, _, value = content.lstrip("# ").partition(":")
            unit = value.strip() if key.strip().lower() == "unit" else unit
        elif content:
            try:
                rows.append([float(item) for item in content.split()[:_FIRST_COLUMNS]])
                if len(rows[-1]) < _FIRST_COLUMNS:
                    raise ValueError("too few columns")
            except ValueError as error:
                raise InvalidVolume(
                    f"SWC line {number}: expected id type x y z radius parent, got {content!r}"
                ) from error
    table = np.array(rows, dtype=np.float64).reshape(-1, _FIRST_COLUMNS)
    index = {int(name): row for row, name in enumerate(table[:, 0])}
    if len(index) != len(table):
        raise InvalidVolume(f"SWC: expected every id once, got {len(table)} lines with {len(index)} ids")
    try:
        edges = [(row, index[int(parent)]) for row, parent in enumerate(table[:, 6]) if parent >= 0]
    except KeyError as error:
        raise InvalidVolume(f"SWC: expected parents among the ids, got parent {error.args[0]}") from error
    scaled = (table[:, 2:6] * _unit_nm(unit)).astype(np.float32)
    return Skeleton(scaled[:, 2::-1], np.array(edges, dtype=np.uint32).reshape(-1, 2), scaled[:, 3])


def write_swc(url: str, skeleton: Skeleton, *, unit: str = "nm") -> None:
    """Write one SWC file to a local path or bucket URL; raises the storage errors of `models.errors`."""
    folder, name = _parted(url)
    folder.write(name, to_swc(skeleton, unit=unit).encode())


def read_swc(url: str, *, unit: str = "nm") -> Skeleton:
    """Read one SWC file from a local path or bucket URL; raises as `from_swc` and the storage errors."""
    folder, name = _parted(url)
    return from_swc(folder.read(name).decode(errors="replace"), unit=unit)


def _tree_order(skeleton: Skeleton) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Vertices in breadth-first order from the first vertex of each part, and each vertex's parent (-1 for a root)."""
    n = len(skeleton.vertices)
    _, roots = np.unique(skeleton.components, return_index=True)
    if len(skeleton.edges) != n - len(roots):
        raise InvalidInput(
            f"SWC: expected a forest, {n - len(roots)} edges for {n} vertices in {len(roots)} parts, "
            f"got {len(skeleton.edges)} edges: it has a cycle"
        )
    # One search for all parts, from an extra vertex n that is joined to every root.
    rows = np.concatenate([skeleton.edges[:, 0].astype(np.int64), np.full(len(roots), n)])
    columns = np.concatenate([skeleton.edges[:, 1].astype(np.int64), roots])
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(n + 1, n + 1)).tocsr()
    order, parents = breadth_first_order(graph, n, directed=False)
    parents = np.where(parents == n, -1, parents)
    return order[1:].astype(np.int64), parents[:n].astype(np.int64)


def _unit_nm(unit: str) -> float:
    if unit not in _UNITS_NM:
        raise InvalidInput(f"SWC unit: expected {' or '.join(_UNITS_NM)}, got {unit!r}")
    return _UNITS_NM[unit]


# --- Neuroglancer precomputed ---


def encode_precomputed(skeleton: Skeleton) -> bytes:
    """One skeleton as a precomputed object: counts, vertices as x, y, z in nm, edges, radii; little-endian."""
    counts = np.array([len(skeleton.vertices), len(skeleton.edges)], dtype="<u4")
    parts = (
        counts,
        skeleton.vertices[:, ::-1].astype("<f4"),
        skeleton.edges.astype("<u4"),
        skeleton.radii.astype("<f4"),
    )
    return b"".join(part.tobytes() for part in parts)


def decode_precomputed(data: bytes, where: str = "skeleton") -> Skeleton:
    """Read what `encode_precomputed` writes; raises `InvalidVolume` for damaged bytes, naming `where`."""
    if len(data) < 8:
        raise InvalidVolume(f"{where}: expected at least 8 bytes, got {len(data)}")
    n, m = (int(count) for count in np.frombuffer(data, "<u4", 2))
    if len(data) != 8 + 16 * n + 8 * m:
        raise InvalidVolume(
            f"{where}: expected {8 + 16 * n + 8 * m} bytes for {n} vertices with radius and {m} edges, got {len(data)}"
        )
    vertices = np.frombuffer(data, "<f4", 3 * n, 8).reshape(n, 3)
    edges = np.frombuffer(data, "<u4", 2 * m, 8 + 12 * n).reshape(m, 2)
    try:
        return Skeleton(vertices[:, ::-1], edges, np.frombuffer(data, "<f4", n, 8 + 12 * n + 8 * m))
    except InvalidInput as error:
        raise InvalidVolume(f"{where}: {error}") from error


class PrecomputedSkeletons:
    """A folder of precomputed skeletons, sharded by segment id, on a local path or bucket URL.

    Neuroglancer opens it as `precomputed://URL`. Several processes may write different shards. Every method raises the
    storage errors of `models.errors`.
    """

    def __init__(self, url: str) -> None:
        self._folder = Folder(url)
        self.url = self._folder.url

    def create(self, shard_bits: int = 0) -> PrecomputedSkeletons:
        """Write the `info` object for 2^`shard_bits` shards and return this store."""
        self._folder.write_json("info", {**_INFO, "sharding": Sharding(shard_bits).description()})
        return self

    @property
    def sharding(self) -> Sharding:
        """How ids are spread over files; raises `InvalidVolume` where `info` is of another kind."""
        return self._shards.sharding

    def write(self, shard: int, skeletons: Iterable[tuple[int, Skeleton]]) -> list[Written]:
        """Write all skeletons of one shard, by segment id (1 to 2^64 - 1), replacing what is there."""
        entries = [Entry(_checked_id(segment), encode_precomputed(skeleton)) for segment, skeleton in skeletons]
        return self._shards.write(shard, entries)

    def read(self, segment: int) -> Skeleton:
        """The skeleton of one segment; raises `NotFound` without one, `InvalidVolume` for damaged bytes."""
        return decode_precomputed(self._shards.read(_checked_id(segment)), f"{self.url}/{segment}")

    def has(self, segment: int) -> bool:
        """Whether there is a skeleton of this segment."""
        try:
            return bool(self._shards.read(_checked_id(segment)))
        except NotFound:
            return False

    def ids(self) -> Iterator[int]:
        """The segment ids that have a skeleton, ascending within each shard."""
        return self._shards.ids()

    @cached_property
    def _shards(self) -> ShardedObjects:
        info = self._folder.read_json("info")
        sharding = info.pop("sharding", None)
        if info != _INFO or sharding is None:
            raise InvalidVolume(f"{self.url}/info: expected sharded skeletons in nm with a radius, got {info}")
        return ShardedObjects(self._folder, Sharding.of(sharding, f"{self.url}/info"))


def _checked_id(segment: int) -> int:
    if not 0 < int(segment) < 1 << 64:
        raise InvalidInput(f"skeleton: expected a segment id from 1 to 2^64 - 1, got {segment!r}")
    return int(segment)


def _parted(url: str) -> tuple[Folder, str]:
    parent, _, name = str(Location.parse(url)).rpartition("/")
    return Folder(parent or "/"), name
