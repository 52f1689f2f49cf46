"""Which volume a patch comes from."""

import numpy as np

from models.geometry import NEAREST
from models.training.augmentation import AugmentationOptions
from models.training.sampler import LabelledVolume, PatchSampler


def test_size_and_weight_decide_how_often_a_volume_is_drawn() -> None:
    def volume(value: int, depth: int, weight: float) -> LabelledVolume:
        image = np.full((depth, 6, 6), value, np.uint8)
        return LabelledVolume(image, np.ones(image.shape, np.int64), (10, 10, 10), weight)

    volumes = (volume(0, 7, 1.0), volume(255, 5, 6.0))  # 4 and 2 places along z: shares of 1/4 and 3/4
    sampler = PatchSampler(volumes, NEAREST, (4, 4, 4), AugmentationOptions.none(isotropic=True), 0, 0.0, 0.0, seed=0)
    drawn = [float(sampler.batch(step, 1).image.mean()) for step in range(300)]
    assert set(drawn) == {0.0, 1.0}
    assert 0.68 < np.mean(drawn) < 0.82
