import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import InvalidInput, InvalidVolume
from models.geometry import NEAREST, Box, ChunkGrid
from models.metrics.affinities import EdgeHistogram, average_precision, edge_histogram

OFFSETS = (*NEAREST, (-3, 0, 0), (0, -2, -1))


def slow(affinities: np.ndarray, truth: np.ndarray) -> tuple[list[int], list[int]]:
    joined, cut = [], []
    for channel, offset in enumerate(OFFSETS):
        for p in np.ndindex(truth.shape):
            q = tuple(a + b for a, b in zip(p, offset, strict=True))
            if min(q) >= 0 and truth[p] and truth[q]:
                (joined if truth[p] == truth[q] else cut).append(int(affinities[(channel, *p)]))
    return joined, cut


@given(seed=st.integers(0, 2**32 - 1), chunk=st.tuples(*[st.integers(1, 6)] * 3))
@settings(max_examples=25)
def test_histograms_of_chunks_add_up_to_every_edge_once(seed: int, chunk) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, (5, 4, 6))
    affinities = rng.integers(0, 256, (5, *truth.shape), dtype=np.uint8)
    joined, cut = slow(affinities, truth)
    total = EdgeHistogram.empty()
    for part in ChunkGrid(Box.from_shape(truth.shape), chunk):
        box = part.box.grown((3, 2, 1), (0, 0, 0)).intersection(Box.from_shape(truth.shape))
        halo = tuple(a - b for a, b in zip(part.box.start, box.start, strict=True))
        total += edge_histogram(
            affinities[(slice(None), *box.slices())], truth[box.slices()], offsets=OFFSETS, halo=halo
        )
    np.testing.assert_array_equal(total.joined, np.bincount(joined, minlength=256))
    np.testing.assert_array_equal(total.cut, np.bincount(cut, minlength=256))


def test_average_precision_by_hand() -> None:
    histogram = EdgeHistogram.empty()
    histogram.joined[[250, 200, 10]] = [2, 1, 1]
    histogram.cut[[200, 5]] = [1, 1]
    found = average_precision(histogram)
    # joined, from 255 down: 2 of 2 at 250, then 3 of 4 at 200 (tied with a cut edge), 4 of 5 at 10
    assert found.joined == pytest.approx((2 * 1 + 1 * 3 / 4 + 1 * 4 / 5) / 4)
    # cut, from 0 up: 1 of 1 at 5, then (after the joined edge at 10) 2 of 4 at 200
    assert found.cut == pytest.approx((1 * 1 + 1 * 2 / 4) / 2)
    assert (found.joined_edges, found.cut_edges) == (4, 2)


def test_a_perfect_prediction_scores_one_and_a_constant_one_the_share() -> None:
    truth = np.repeat([1, 2], 8).reshape(1, 2, 8)
    perfect = np.zeros((3, 1, 2, 8), np.uint8)
    for channel, axis in enumerate(range(3)):
        perfect[channel] = np.where(truth == np.roll(truth, 1, axis), 255, 1)
    histogram = edge_histogram(perfect, truth)
    assert average_precision(histogram).cut == average_precision(histogram).joined == 1
    constant = average_precision(edge_histogram(np.full_like(perfect, 7), truth))
    assert constant.cut == pytest.approx(constant.cut_edges / (constant.cut_edges + constant.joined_edges))


def test_bad_input_is_refused() -> None:
    truth = np.ones((2, 3, 4), np.uint8)
    with pytest.raises(InvalidVolume, match=r"uint8 of shape \(3, 2, 3, 4\)"):
        edge_histogram(np.zeros((2, 2, 3, 4), np.uint8), truth)
    with pytest.raises(InvalidVolume, match="float32"):
        edge_histogram(np.zeros((3, 2, 3, 4), np.float32), truth)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="points back"):
        edge_histogram(np.zeros((1, 2, 3, 4), np.uint8), truth, offsets=((1, 0, 0),))
    with pytest.raises(InvalidInput, match="both kinds, got 46 joined and 0 cut"):
        average_precision(edge_histogram(np.zeros((3, 2, 3, 4), np.uint8), truth))


def test_an_array_smaller_than_the_offset_has_no_edges() -> None:
    found = edge_histogram(np.ones((1, 2, 3, 4), np.uint8), np.ones((2, 3, 4), int), offsets=((-3, 0, 0),))
    assert found.joined.sum() == found.cut.sum() == 0
