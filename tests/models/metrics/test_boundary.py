import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.segmentation import find_boundaries

from models.errors import InvalidInput, InvalidVolume
from models.geometry import Box, ChunkGrid
from models.metrics.boundary import BoundaryCounts, boundary_counts, boundary_halo, label_boundaries

SIZE = (40.0, 10.0, 10.0)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_boundaries_are_those_of_scikit_image(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, (3, 5, 6))
    np.testing.assert_array_equal(label_boundaries(labels), find_boundaries(labels, connectivity=1, mode="thick"))


def test_a_shifted_boundary_counts_within_the_tolerance() -> None:
    truth, pred = np.ones((2, 3, 20), int), np.ones((2, 3, 20), int)
    truth[:, :, 10:] = 2  # boundary voxels at 9 and 10
    pred[:, :, 12:] = 5  # at 11 and 12
    exact = boundary_counts(pred, truth, voxel_size_nm=SIZE, tolerance_nm=0)
    assert (exact.pred, exact.truth, exact.pred_matched, exact.f_score) == (12, 12, 0, 0)
    near = boundary_counts(pred, truth, voxel_size_nm=SIZE, tolerance_nm=10)
    assert (near.precision, near.recall, near.f_score) == (0.5, 0.5, 0.5)
    assert boundary_counts(pred, truth, voxel_size_nm=SIZE, tolerance_nm=20).f_score == 1


def test_one_section_away_is_forty_nanometres() -> None:
    truth, pred = np.ones((9, 4, 4), int), np.ones((9, 4, 4), int)
    truth[4:], pred[5:] = 2, 2
    assert boundary_counts(pred, truth, voxel_size_nm=SIZE, tolerance_nm=39).f_score == 0.5
    assert boundary_counts(pred, truth, voxel_size_nm=SIZE, tolerance_nm=40).f_score == 1


def test_nothing_predicted_and_nothing_there() -> None:
    flat, cut = np.ones((3, 4, 5), int), np.ones((3, 4, 5), int)
    cut[:, 2:] = 2
    found = boundary_counts(flat, cut, voxel_size_nm=SIZE, tolerance_nm=30)
    assert (found.precision, found.recall, found.f_score) == (1, 0, 0)
    assert boundary_counts(flat, flat, voxel_size_nm=SIZE, tolerance_nm=30).f_score == 1


@given(
    seed=st.integers(0, 2**32 - 1),
    chunk=st.tuples(*[st.integers(2, 7)] * 3),
    tolerance=st.sampled_from([0, 10, 25.0, 41]),
)
@settings(max_examples=40)
def test_counts_of_chunks_with_halo_add_up(seed: int, chunk, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    pred, truth = (np.kron(rng.integers(0, 4, (2, 3, 3)), np.ones((3, 4, 4), int)) for _ in range(2))
    whole = Box.from_shape(truth.shape)
    total = BoundaryCounts()
    for part in ChunkGrid(whole, chunk):
        box = part.box.grown(boundary_halo(tolerance, SIZE)).intersection(whole)
        total += boundary_counts(
            pred[box.slices()],
            truth[box.slices()],
            voxel_size_nm=SIZE,
            tolerance_nm=tolerance,
            counted=part.box.slices(box.start),
        )
    assert total == boundary_counts(pred, truth, voxel_size_nm=SIZE, tolerance_nm=tolerance)


def test_a_halo_reaches_as_far_as_the_tolerance_does() -> None:
    size, tolerance = 3.6, 18.0  # five voxels, but 18 // 3.6 == 4
    rng = np.random.default_rng(0)
    whole = Box((0, 0, 0), (1, 1, 40))
    for _ in range(60):
        pred, truth = (rng.integers(1, 9, 20).repeat(rng.integers(1, 9, 20))[:40][None, None] for _ in range(2))
        pred, truth = (np.resize(labels, (1, 1, 40)) for labels in (pred, truth))
        options = {"voxel_size_nm": (40.0, 40.0, size), "tolerance_nm": tolerance}
        total = BoundaryCounts()
        for part in ChunkGrid(whole, (1, 1, 5)):
            box = part.box.grown(boundary_halo(tolerance, (40.0, 40.0, size))).intersection(whole)
            inside = [labels[box.slices()] for labels in (pred, truth)]
            total += boundary_counts(*inside, counted=part.box.slices(box.start), **options)
        assert total == boundary_counts(pred, truth, **options)


def test_bad_input_is_refused() -> None:
    labels = np.ones((2, 3, 4), int)
    with pytest.raises(InvalidVolume, match="one shape"):
        boundary_counts(labels, labels[:1], voxel_size_nm=SIZE, tolerance_nm=1)
    with pytest.raises(InvalidInput, match="tolerance"):
        boundary_counts(labels, labels, voxel_size_nm=SIZE, tolerance_nm=float("nan"))
