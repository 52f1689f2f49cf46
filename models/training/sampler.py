"""Random patches of labelled volumes, reproducible from (seed, step) alone so that a resumed run sees the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidConfig, InvalidVolume
from models.geometry import Triple, VoxelSize, triple
from models.training.augmentation import AugmentationOptions, flip_and_transpose, random_deformation
from models.training.defects import damage
from models.training.targets import affinity_targets, balance_weights, widen_boundaries
from models.training.warp import read_patch


@dataclass(frozen=True)
class LabelledVolume:
    """An image with its truth, both (z, y, x); voxel size in nm.

    Image uint8; labels integers, 0 = unlabelled, negative ones as in `models.training.targets`. `weight`: how often
    patches are drawn from it, beside other volumes of its size.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.integer]
    voxel_size_nm: VoxelSize
    weight: float = 1.0

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
    """Images (b, z, y, x) float32 in [0, 1]; targets and weights (b, c, z, y, x) float32; objects (b, z, y, x).

    Objects are the positive labels, widened boundaries 0: what the nearest-neighbour targets were made of.
    """

    image: NDArray[np.float32]
    targets: NDArray[np.float32]
    weights: NDArray[np.float32]
    objects: NDArray[np.integer[Any]]


@dataclass(frozen=True)
class PatchSampler:
    """Draws augmented patches; volumes are chosen in proportion to the number of places a patch fits into,
    times their weights.

    Raises `InvalidVolume` where a volume is smaller than a patch, `InvalidConfig` where a
    patch cannot be transposed.
    """

    volumes: tuple[LabelledVolume, ...]
    offsets: tuple[Triple, ...]
    patch: Triple
    augmentation: AugmentationOptions
    boundary_voxels: int
    boundary_target: float
    balance: float
    seed: int

    def __post_init__(self) -> None:
        exchanged = self.patch if self.augmentation.isotropic else self.patch[1:]
        if len(set(exchanged)) > 1:
            raise InvalidConfig(f"patch: axes that augmentation exchanges must have equal extents, got {self.patch}")
        for volume in self.volumes:
            if min(self._places(volume)) < 1:
                raise InvalidVolume(f"training volume: expected at least {self.patch}, got {volume.image.shape}")

    def batch(self, step: int, size: int, *, first: int = 0) -> Batch:
        """Return patches `first` to `first + size` of training step `step`; each is the same in whatever batch."""
        patches = [self._patch(np.random.default_rng([self.seed, step, first + i])) for i in range(size)]
        return Batch(*(np.stack(parts) for parts in zip(*patches, strict=True)))

    def _patch(self, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
        places = np.array([volume.weight * np.prod(self._places(volume)) for volume in self.volumes], np.float64)
        volume = self.volumes[rng.choice(len(places), p=places / places.sum())]
        start = triple([rng.integers(places) for places in self._places(volume)], "patch start")
        deformation = random_deformation(self.patch, self.augmentation, rng)
        image, labels = read_patch(volume.image, volume.labels, start, self.patch, deformation)
        image = damage(image, self.augmentation, rng)
        image, labels = flip_and_transpose(image, labels, rng, isotropic=self.augmentation.isotropic)
        targets, mask = affinity_targets(
            labels, self.offsets, boundary_voxels=self.boundary_voxels, boundary_target=self.boundary_target
        )
        weights = balance_weights(targets, mask, exponent=self.balance)
        return image, targets, weights, np.maximum(widen_boundaries(labels, self.boundary_voxels), 0)

    def _places(self, volume: LabelledVolume) -> Triple:
        z, y, x = (n - extent + 1 for n, extent in zip(volume.image.shape, self.patch, strict=True))
        return z, y, x
