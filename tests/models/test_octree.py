"""What the root of an octree has between its children."""

import pytest

from models.geometry import Box, ChunkGrid, Triple
from models.octree import Octree


@pytest.mark.parametrize(
    ("extents", "chunk", "faces"),
    [
        ((8, 8, 8), (4, 4, 4), 6 * 8 * 8),
        ((9, 7, 5), (4, 4, 4), 2 * 7 * 5),  # 3, 2 and 2 chunks: the root divides z alone
        ((4, 4, 4), (4, 4, 4), 0),
        ((4, 4, 40), (4, 4, 4), 2 * 4 * 4),
    ],
)
def test_faces_between_the_children_of_the_root(extents: Triple, chunk: Triple, faces: int) -> None:
    tree = Octree(ChunkGrid(Box((2, 3, 4), tuple(a + n for a, n in zip((2, 3, 4), extents, strict=True))), chunk))
    root = tree.node(tree.depth, (0, 0, 0))
    children = [child.box for child in tree.children(tree.depth, root)] if tree.depth else []
    steps = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (0, -1, 0), (0, 0, -1)]
    touching = [a.intersection(b.shifted(s)).size for a in children for b in children if a != b for s in steps]
    assert tree.root_faces == sum(touching) == faces
