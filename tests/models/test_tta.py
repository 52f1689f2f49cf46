"""Affinities of a toy network that treats all symmetries alike: the augmented mean must be its own prediction."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.errors import InvalidInput, InvalidModel
from models.tta import Symmetry, apply_to_image, mean_affinities, symmetries

NEAREST = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


def toy(image: NDArray[np.float32], offsets: tuple[tuple[int, int, int], ...] = NEAREST) -> NDArray[np.float32]:
    """Affinity 1 - |a - b| of both ends of an edge; -7 where an end lies outside."""
    result = np.full((len(image), len(offsets), *image.shape[2:]), -7, np.float32)
    for position in np.ndindex(image.shape[2:]):
        for channel, offset in enumerate(offsets):
            other = tuple(p + o for p, o in zip(position, offset, strict=True))
            if all(0 <= q < n for q, n in zip(other, image.shape[2:], strict=True)):
                difference = np.abs(image[:, 0, *position] - image[:, 0, *other])
                result[:, channel, *position] = 1 - difference
    return result


@pytest.fixture
def image() -> NDArray[np.float32]:
    return np.random.default_rng(3).random((2, 1, 4, 6, 5), dtype=np.float32)


@pytest.mark.parametrize("number", [1, 8, 16, 48, True])
def test_is_the_identity_for_an_equivariant_network(image: NDArray[np.float32], number: int) -> None:
    applied = symmetries(number, (10, 10, 10))
    mean = mean_affinities((toy(apply_to_image(image, s)) for s in applied), applied, NEAREST)
    np.testing.assert_array_equal(mean, toy(image))


def test_is_the_identity_for_long_range_edges(image: NDArray[np.float32]) -> None:
    offsets = ((-2, 0, 0), (0, 2, 0), (0, 0, -2), (-1, 0, 0), (0, -1, 0), (0, 0, 1))
    applied = symmetries(48, (10, 10, 10))
    mean = mean_affinities((toy(apply_to_image(image, s), offsets) for s in applied), applied, offsets)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2), slice(2, -2))
    np.testing.assert_array_equal(mean[inner], toy(image, offsets)[inner])


@pytest.mark.parametrize("symmetry", symmetries(48, (1, 1, 1))[1:])
def test_every_single_symmetry_is_carried_back(image: NDArray[np.float32], symmetry: Symmetry) -> None:
    applied = (Symmetry(), symmetry)
    mean = mean_affinities((toy(apply_to_image(image, s)) for s in applied), applied, NEAREST)
    np.testing.assert_array_equal(mean, toy(image))


def test_asymmetric_networks_are_really_averaged(image: NDArray[np.float32]) -> None:
    def skewed(patch: NDArray[np.float32]) -> NDArray[np.float32]:
        return toy(patch) + np.linspace(0, 1, patch.shape[-1], dtype=np.float32)

    applied = symmetries(8, (10, 10, 10))
    mean = mean_affinities((skewed(apply_to_image(image, s)) for s in applied), applied, NEAREST)
    np.testing.assert_allclose(mean[:, :2, 1:, 1:], toy(image)[:, :2, 1:, 1:] + 0.5, rtol=1e-6)


def test_symmetries_form_the_group_and_begin_with_the_identity() -> None:
    for number in (1, 8, 16, 48):
        found = symmetries(number, (10, 10, 10))
        assert len(set(found)) == number
        assert found[0] == Symmetry()
    assert len(symmetries(True, (30, 4, 4))) == 16
    assert len(symmetries(True, (30, 4, 5))) == 8
    assert len(symmetries(False, (30, 4, 5))) == 1


def test_symmetries_that_mix_voxel_sizes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="ask for 16"):
        symmetries(48, (30, 4, 4))
    with pytest.raises(InvalidInput, match="divisor"):
        symmetries(48, (10, 10, 10), (1, 8, 8))
    with pytest.raises(InvalidInput, match="ask for 8"):
        symmetries(16, (30, 4, 5))
    with pytest.raises(InvalidInput, match="1, 8, 16 or 48"):
        symmetries(5, (10, 10, 10))


def test_offsets_must_be_closed_under_the_symmetries(image: NDArray[np.float32]) -> None:
    applied = symmetries(16, (10, 10, 10))
    with pytest.raises(InvalidModel, match="no channel"):
        mean_affinities((toy(apply_to_image(image, s), NEAREST[:2]) for s in applied), applied, NEAREST[:2])
