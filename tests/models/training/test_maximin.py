"""Shares of voxel pairs per edge against a slow definition: the weakest edge of the best path, pair by pair."""

import numpy as np
import pytest

from models.errors import InvalidInput
from models.training.maximin import maximin_weights

Edge = tuple[int, int, int, int]


def edges_of(shape: tuple[int, ...]) -> list[tuple[Edge, int, int]]:
    nodes = np.arange(np.prod(shape)).reshape(shape)
    found = []
    for axis in range(3):
        for p in np.ndindex(*shape):
            if p[axis]:
                q = tuple(a - (i == axis) for i, a in enumerate(p))
                found.append(((axis, *p), int(nodes[p]), int(nodes[q])))
    return found


def slow_weights(affinities: np.ndarray, targets: np.ndarray, mask: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Add edges one by one, strongest first; an edge decides the pairs that it connects."""
    names = objects.ravel()
    shares = np.zeros(affinities.shape)
    edges = [e for e in edges_of(objects.shape) if mask[e[0]]]
    edges.sort(key=lambda e: -affinities[e[0]])
    groups = {node: {node} for node in range(names.size)}

    def connect(a: int, b: int) -> tuple[set[int], set[int]] | None:
        first, second = groups[a], groups[b]
        if first is second:
            return None
        joined = first | second
        groups.update(dict.fromkeys(joined, joined))
        return first, second

    for edge, a, b in edges:
        if targets[edge] == 1 and (sides := connect(a, b)):
            shares[edge] = sum(names[p] != 0 and names[q] != 0 for p in sides[0] for q in sides[1])
    for edge, a, b in edges:
        if targets[edge] < 1 and (sides := connect(a, b)):
            shares[edge] = sum(
                names[p] != 0 and names[q] != 0 and names[p] != names[q] for p in sides[0] for q in sides[1]
            )
    for one in (True, False):
        chosen = (targets == 1) == one
        total = shares[chosen].sum()
        shares[chosen] /= total or 1
    return shares


@pytest.mark.parametrize("seed", range(12))
def test_shares_are_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (3, 4, 5)
    objects = rng.integers(0, 4, shape).astype(np.uint64) * np.uint64(1 << 41)
    affinities = rng.permutation(3 * 60).reshape(3, *shape).astype(np.float32) / 180
    mask = (rng.random((3, *shape)) < 0.9).astype(np.float32)
    targets = np.zeros((3, *shape), np.float32)
    nodes = objects.ravel()
    for edge, a, b in edges_of(shape):
        targets[edge] = nodes[a] == nodes[b] != 0
    targets[targets == 0] = 0.3 * (seed % 2)  # edges within a membrane may keep a little
    got = maximin_weights(affinities, targets, mask, objects)
    np.testing.assert_allclose(got, slow_weights(affinities, targets, mask, objects), atol=1e-6)


def test_the_weakest_edge_of_a_neck_carries_the_pairs_on_either_side() -> None:
    objects = np.ones((1, 1, 10), np.int64)
    affinities = np.full((3, 1, 1, 10), 0.9, np.float32)
    affinities[2, 0, 0, 4] = 0.2
    targets = np.ones_like(affinities)
    shares = maximin_weights(affinities, targets, np.ones_like(affinities), objects)
    assert shares[2, 0, 0, 4] == pytest.approx(4 * 6 / 45)
    assert shares.sum() == pytest.approx(1)
    assert shares.max() == shares[2, 0, 0, 4]


def test_no_pairs_give_no_shares() -> None:
    shape = (3, 2, 3, 4)
    ones = np.ones(shape, np.float32)
    assert not maximin_weights(ones, 0 * ones, ones, np.zeros(shape[1:], np.int64)).any()
    assert not maximin_weights(ones, 0 * ones, 0 * ones, np.arange(24).reshape(shape[1:])).any()


def test_other_shapes_are_refused() -> None:
    ones = np.ones((3, 2, 3, 4), np.float32)
    with pytest.raises(InvalidInput, match=r"\(3, 2, 3, 5\)"):
        maximin_weights(ones, ones, ones, np.ones((2, 3, 5), np.int64))
