from models.geometry import Triple
from services.stages.pyramid import level_of_voxels, pyramid_factors, total_factors


def levels(shape: Triple, size: tuple[float, float, float]) -> list[Triple]:
    return total_factors(pyramid_factors(shape, size))


def test_thick_axes_wait_for_thin_ones() -> None:
    assert levels((256, 600, 600), (40, 16, 16)) == [(1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8)]
    assert levels((100, 128, 90), (10, 10, 10)) == [(1, 1, 1)]


def test_level_of_voxels_is_the_coarsest_whose_coarsened_axes_are_fine_enough() -> None:
    isotropic = levels((1000, 1000, 1000), (10, 10, 10))
    found = [level_of_voxels((10, 10, 10), isotropic, most) for most in (0, 10, 19.9, 20, 32, 40, 1e9)]
    assert found == [0, 0, 0, 1, 1, 2, 3]
    thick = levels((256, 4096, 4096), (40, 4, 4))
    assert thick[:5] == [(1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8), (2, 16, 16)]
    # A section of 40 nm is no reason to trace pixels of 4 nm.
    assert [level_of_voxels((40, 4, 4), thick, most) for most in (3, 15, 16, 32, 64, 80)] == [0, 1, 2, 3, 3, 4]
