"""Packed sets of chunk names behave as sets of strings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.chunk_names import ChunkNames
from models.errors import InvalidInput
from models.geometry import Box, ChunkGrid

names = st.one_of(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)).map(lambda index: "_".join(map(str, index))),
    st.sampled_from(["1_2_65536", "4294967296_0_0", "2147483647_65535_65535", "01_2_3", "1_2", "all", "-1_0_0", ""]),
)
sets = st.sets(names)


@given(sets, sets)
def test_they_are_sets(a: set[str], b: set[str]) -> None:
    packed, other = ChunkNames(a), ChunkNames(b)
    assert packed == a
    assert set(packed) == a
    assert len(packed) == len(a)
    assert packed & other == a & b
    assert packed - other == a - b
    assert packed - b == a - b
    assert all((name in packed) == (name in a) for name in a | b)


def test_they_come_in_the_order_of_indices() -> None:
    held = ChunkNames(["10_0_0", "9_10_0", "9_0_0", "9_9_0", "9_9_0"])
    assert list(held) == ["9_0_0", "9_9_0", "9_10_0", "10_0_0"]


@given(st.tuples(*[st.integers(1, 5)] * 3), sets)
def test_places_in_a_grid(shape: tuple[int, int, int], held: set[str]) -> None:
    grid = ChunkGrid(Box.from_shape(shape), (1, 1, 1))
    ranks = ChunkNames(held).ranks(grid)
    assert [grid[int(rank)].name for rank in ranks] == [chunk.name for chunk in grid if chunk.name in held]
    assert ChunkNames.at(grid, ranks) == held & {chunk.name for chunk in grid}
    assert np.array_equal(ChunkNames.at(grid, ranks).ranks(grid), ranks)


@pytest.mark.parametrize("shape", [(1, 1, 65537), (1, 65537, 1), (2**31 + 1, 1, 1)])
def test_a_grid_whose_indices_do_not_fit_is_refused(shape: tuple[int, int, int]) -> None:
    grid = ChunkGrid(Box.from_shape(shape), (1, 1, 1))
    with pytest.raises(InvalidInput, match=f"at most .* along z, y, x, got \\({shape[0]}, {shape[1]}, {shape[2]}"):
        ChunkNames.at(grid, np.array([len(grid) - 1]))
    with pytest.raises(InvalidInput, match="at most"):
        ChunkNames([grid[len(grid) - 1].name]).ranks(grid)


@pytest.mark.parametrize("shape", [(3, 1, 65536), (3, 65536, 1), (2**31, 1, 1)])
def test_the_largest_indices_fit(shape: tuple[int, int, int]) -> None:
    grid = ChunkGrid(Box.from_shape(shape), (1, 1, 1))
    last = np.array([len(grid) - 1])
    assert list(ChunkNames.at(grid, last)) == [grid[len(grid) - 1].name]
    assert np.array_equal(ChunkNames.at(grid, last).ranks(grid), last)
