"""Reads meshes with cloud-volume in a process of its own: it warns about its own dependencies while it is imported."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

_READ = """
import sys, numpy as np
from cloudvolume import CloudVolume
mesh = CloudVolume(sys.argv[1], progress=False).mesh
found = mesh.get(int(sys.argv[2]), lod=int(sys.argv[3]))
found = found[int(sys.argv[2])] if isinstance(found, dict) else found
np.savez(sys.argv[4], vertices=found.vertices, faces=found.faces.reshape(-1, 3))
"""


def read_mesh(layer: str, segment: int, lod: int, work: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (x, y, z in nm) and faces of one level of detail of a segmentation layer's mesh."""
    path = work / f"{segment}-{lod}.npz"
    command = [sys.executable, "-W", "ignore", "-c", _READ, layer, str(segment), str(lod), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(path) as stored:
        return stored["vertices"].astype(np.float64), stored["faces"].astype(np.int64)


def layer_of(folder: Path, **layers: str) -> str:
    """A precomputed segmentation of no interest that names meshes or skeletons beside it."""
    scale = {"key": "0", "size": [8, 8, 8], "resolution": [10, 10, 10], "voxel_offset": [0, 0, 0]}
    scales = [{**scale, "chunk_sizes": [[8, 8, 8]], "encoding": "raw"}]
    info = {"type": "segmentation", "data_type": "uint64", "num_channels": 1, "scales": scales, **layers}
    (folder / "info").write_text(json.dumps(info))
    return f"precomputed://file://{folder}"


def welded(vertices: np.ndarray, faces: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """One vertex where several lie at the same place."""
    keys = np.rint(vertices / tolerance).astype(np.int64)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return vertices[first], inverse.reshape(-1)[faces]


def open_edges(faces: np.ndarray) -> int:
    """Number of directed edges without their opposite: 0 for a closed, oriented surface."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = edges[edges[:, 0] != edges[:, 1]]
    there, count = np.unique(edges, axis=0, return_counts=True)
    balance: dict[tuple[int, int], int] = {}
    for (a, b), n in zip(there.tolist(), count.tolist(), strict=True):
        balance[min(a, b), max(a, b)] = balance.get((min(a, b), max(a, b)), 0) + (n if a < b else -n)
    return sum(abs(value) for value in balance.values())


def volume_and_area(vertices: np.ndarray, faces: np.ndarray) -> tuple[float, float]:
    """Signed volume (above 0 where faces look outwards) and area of a surface."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    volume = float(
        np.einsum("ij,ij->i", a - vertices.mean(0), np.cross(b - vertices.mean(0), c - vertices.mean(0))).sum() / 6
    )
    return volume, float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)
