"""Pyramid levels against a slow count, whole and in any boxes, with extents that the factor does not divide."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidInput, InvalidVolume
from models.geometry import Box, ChunkGrid
from models.segmentation.coarsening import means, most_frequent

shapes = st.tuples(*[st.integers(1, 13)] * 3)
factors = st.tuples(*[st.integers(1, 3)] * 3)


def blocks(values: np.ndarray, factor: tuple[int, int, int]) -> dict[tuple[int, ...], np.ndarray]:
    coarse = [range(-(-n // f)) for n, f in zip(values.shape, factor, strict=True)]
    return {
        at: values[tuple(slice(i * f, (i + 1) * f) for i, f in zip(at, factor, strict=True))].ravel()
        for at in product(*coarse)
    }


@given(shapes, factors, st.integers(0, 2**32), st.sampled_from([0, 2**53, 2**64 - 9]))
def test_every_block_has_its_most_frequent_label(shape, factor, seed, high) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint64) + np.uint64(high)
    result = most_frequent(labels, factor)
    for at, block in blocks(labels, factor).items():
        assert int(result[at]) == Counter(block.tolist()).most_common(1)[0][0]  # the first among equals, as ours


@given(shapes, factors, st.integers(0, 2**32))
def test_means_are_rounded(shape, factor, seed) -> None:
    image = np.random.default_rng(seed).integers(-(2**31), 2**31, shape)
    for dtype in ("uint8", "int16", "int32"):
        given_image = image.astype(dtype)
        result = means(given_image, factor)
        assert result.dtype == dtype
        for at, block in blocks(given_image, factor).items():
            assert int(result[at]) == int(np.floor(block.astype(np.float64).mean() + 0.5))
    floats = image.astype(np.float32)
    for at, block in blocks(floats, factor).items():
        assert means(floats, factor)[at] == pytest.approx(block.astype(np.float64).mean(), rel=1e-6, abs=1)


@given(shapes, factors, st.tuples(*[st.integers(1, 5)] * 3), st.integers(0, 2**32))
def test_levels_do_not_depend_on_the_boxes(shape, factor, chunk, seed) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint8)
    volume = Box.from_shape(shape)
    for coarsen in (most_frequent, means):
        whole = coarsen(labels, factor)
        for piece in ChunkGrid(Box.from_shape(whole.shape), chunk):
            a, b = piece.box.start, piece.box.stop
            source = Box(*(tuple(i * f for i, f in zip(c, factor, strict=True)) for c in (a, b))).intersection(volume)
            np.testing.assert_array_equal(coarsen(labels[source.slices()], factor), whole[piece.box.slices()])


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidVolume, match="got int32"):
        most_frequent(np.zeros((3, 4, 5), np.int32), (2, 2, 2))
    with pytest.raises(InvalidInput, match="factor"):
        most_frequent(np.zeros((3, 4, 5), np.uint8), (2, 0, 2))
    with pytest.raises(InvalidVolume, match="got uint64"):
        means(np.zeros((3, 4, 5), np.uint64), (2, 2, 2))
