"""An octree of chunks: in which order what the chunks know is brought together.

Level 0 are the chunks of a grid; a node of level k is made of up to eight neighbours of level k - 1, until one node,
the root, is left. A face between two chunks is inner to exactly one node, the smallest that holds both::

    level 0   | 0 | 1 | 2 | 3 | 4 |      face 1|2 is inner to the root,
    level 1   |   0   |   1   | 2 |      face 2|3 to node 1 of level 1
    level 2   |       0       | 1 |

So each face is looked at once on the way up, and a node's open faces are what may still change its segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from models.geometry import Chunk, ChunkGrid, Triple


@dataclass(frozen=True)
class Octree:
    """The nodes above the chunks of `grid`. A node is a `Chunk` of its level: index and box."""

    grid: ChunkGrid

    @property
    def depth(self) -> int:
        """The root's level; 0 where the grid has one chunk."""
        return max(n - 1 for n in self.grid.shape).bit_length()

    @property
    def root_faces(self) -> int:
        """Voxels of the faces between the root's children, on both sides: what reaches the root lies along them."""
        box = self.grid.box
        halves = self.shape(self.depth - 1) if self.depth else (1, 1, 1)
        return sum(2 * box.size // extent for extent, number in zip(box.shape, halves, strict=True) if number > 1)

    def shape(self, level: int) -> Triple:
        """Number of nodes of a level along z, y, x."""
        return self.nodes(level).shape

    def node(self, level: int, index: Triple) -> Chunk:
        """The node of `level` at `index`, its box cut off at the grid's."""
        return self.nodes(level).chunk(index)

    def nodes(self, level: int) -> ChunkGrid:
        """All nodes of a level, in C order."""
        z, y, x = (n << level for n in self.grid.chunk_shape)
        return ChunkGrid(self.grid.box, (z, y, x))

    def children(self, level: int, node: Chunk) -> list[Chunk]:
        """The nodes of `level` - 1 that a node of `level` is made of, one to eight."""
        last = self.shape(level - 1)
        indices = product(*(range(2 * i, min(2 * i + 2, n)) for i, n in zip(node.index, last, strict=True)))
        return [self.node(level - 1, (z, y, x)) for z, y, x in indices]

    def parent(self, level: int, node: Chunk) -> Chunk:
        """The node of `level` + 1 that a node of `level` is part of."""
        z, y, x = node.index
        return self.node(level + 1, (z // 2, y // 2, x // 2))

    def beyond(self, level: int, node: Chunk, axis: int, step: int) -> Chunk | None:
        """The node across the face on `axis`: step -1 before, +1 after; None at the grid's edge."""
        index = list(node.index)
        index[axis] += step
        if not 0 <= index[axis] < self.shape(level)[axis]:
            return None
        return self.node(level, (index[0], index[1], index[2]))

    def children_beyond(self, level: int, node: Chunk, axis: int) -> list[Chunk]:
        """The nodes of `level` - 1 that touch a node of `level` from after its upper face on `axis`."""
        other = self.beyond(level, node, axis, 1)
        if other is None:
            return []
        return [child for child in self.children(level, other) if child.index[axis] == 2 * other.index[axis]]
