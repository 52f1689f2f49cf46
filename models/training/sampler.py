"""Random patches of labelled volumes, reproducible from (seed, step) alone so that a resumed run sees the same ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidConfig, InvalidVolume
from models.geometry import Triple, VoxelSize
from models.training.augmentation import AugmentationOptions, augment
from models.training.targets import affinity_targets, balance_weights


@dataclass(frozen=True)
class LabelledVolume:
    """An image with its truth, both (z, y, x): image uint8, labels integers with 0 = unlabelled; voxel size in nm."""

    image: NDArray[np.uint8]
    labels: NDArray[np.integer]
    voxel_size_nm: VoxelSize

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3:
            raise InvalidVolume(f"image: expected uint8 (z, y, x), got {self.image.dtype} {self.image.shape}")
        if self.labels.shape != self.image.shape or not np.issubdtype(self.labels.dtype, np.integer):
            raise InvalidVolume(
                f"labels: expected integers of the image's shape {self.image.shape}, "
                f"got {self.labels.dtype} {self.labels.shape}"
            )


@dataclass(frozen=True)
class Batch:
    """Images (b, z, y, x) float32 in [0, 1]; targets and weights (b, c, z, y, x) float32."""

    image: NDArray[np.float32]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class PatchSampler:
    """Draws augmented patches; volumes are chosen in proportion to the number of places a patch fits into.

    Raises `InvalidVolume` where a volume is smaller than a patch with its augmentation rim, `InvalidConfig` where a
    patch cannot be transposed.
    """

    volumes: tuple[LabelledVolume, ...]
    offsets: tuple[Triple, ...]
    patch: Triple
    augmentation: AugmentationOptions
    boundary_voxels: int
    balance: float
    seed: int

    def __post_init__(self) -> None:
        exchanged = self.patch if self.augmentation.isotropic else self.patch[1:]
        if len(set(exchanged)) > 1:
            raise InvalidConfig(f"patch: axes that augmentation exchanges must have equal extents, got {self.patch}")
        for volume in self.volumes:
            if min(self._places(volume)) < 1:
                raise InvalidVolume(f"training volume: expected at least {self._cut()}, got {volume.image.shape}")

    def batch(self, step: int, size: int) -> Batch:
        """Return the `size` patches of training step `step`."""
        rng = np.random.default_rng([self.seed, step])
        places = np.array([np.prod(self._places(volume)) for volume in self.volumes], np.float64)
        patches = [
            self._patch(self.volumes[rng.choice(len(places), p=places / places.sum())], rng) for _ in range(size)
        ]
        return Batch(*(np.stack(parts) for parts in zip(*patches, strict=True)))

    def _patch(
        self, volume: LabelledVolume, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        start = [int(rng.integers(places)) for places in self._places(volume)]
        cut = tuple(slice(a, a + extent) for a, extent in zip(start, self._cut(), strict=True))
        image = volume.image[cut].astype(np.float32) / np.float32(255)
        image, labels = augment(image, volume.labels[cut], self.augmentation, rng)
        targets, mask = affinity_targets(labels, self.offsets, boundary_voxels=self.boundary_voxels)
        return image, targets, balance_weights(targets, mask, exponent=self.balance)

    def _cut(self) -> Triple:
        rim = 2 * self.augmentation.rim
        return self.patch[0], self.patch[1] + rim, self.patch[2] + rim

    def _places(self, volume: LabelledVolume) -> Triple:
        z, y, x = (n - c + 1 for n, c in zip(volume.image.shape, self._cut(), strict=True))
        return z, y, x
