import numpy as np

from models.training.augmentation import AugmentationOptions
from models.training.preview import EFFECTS, preview_rows, preview_sheet
from models.training.sampler import LabelledVolume

NM = (10.0, 10.0, 10.0)


def cells() -> LabelledVolume:
    labels = np.random.default_rng(0).integers(1, 9, (4, 5, 6)).repeat(8, 0).repeat(8, 1).repeat(8, 2)
    return LabelledVolume((labels * 25).astype(np.uint8), labels.astype(np.uint64), NM)


def test_every_augmentation_of_the_recipe_has_a_row_that_shows_it() -> None:
    options = AugmentationOptions(cutout_voxels=12)
    rows = preview_rows(cells(), (24, 24, 24), options, samples=2, seed=1)
    titles = [row.title for row in rows]
    assert titles[0] == "unchanged"
    assert {*EFFECTS, "step (labels move)", "slip (labels stay)", "all, sample 1", "all, sample 2"} <= {*titles}
    for row in rows[1:]:
        assert not np.array_equal(row.image, rows[0].image), row.title
    again = preview_rows(cells(), (24, 24, 24), options, samples=2, seed=1)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(rows, again, strict=True))
    sheet = preview_sheet(rows, zoom=1)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (len(rows) * (16 + 24 + 4), 4 * (24 + 4), 3)


def test_what_the_recipe_leaves_out_has_no_row() -> None:
    rows = preview_rows(cells(), (16, 16, 16), AugmentationOptions.none(), samples=1)
    assert [row.title for row in rows] == ["unchanged", "all, sample 1"]


def test_the_sheet_shows_the_changed_section() -> None:
    options = AugmentationOptions(missing_sections=1)
    rows = {row.title: row for row in preview_rows(cells(), (24, 24, 24), options, seed=2)}
    changed = rows["missing sections"]
    plain = rows["unchanged"].image
    assert not np.array_equal(changed.image[changed.section], plain[changed.section])
