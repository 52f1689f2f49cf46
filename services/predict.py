"""The one way from an image to affinities: pipelines and endpoints both go through `Predictor`.

The patch grid is anchored to the volume (see `infra.planner`) and patches are blended in one global order, so a voxel's
value is bitwise the same in whatever box it is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.planner import PatchPlan, plan_patches, reflect
from infra.registry import fetch
from infra.runtimes.session import Session, open_session
from models.catalog import Model, ModelCard
from models.errors import InvalidInput, InvalidModel, InvalidVolume
from models.geometry import Box, Triple, triple
from models.tta import Symmetry, apply_to_image, mean_affinities, symmetries

Reader = Callable[[Box], NDArray[Any]]
"""Returns the image (z, y, x) of a box that lies within the volume."""


def patch_plan(card: ModelCard, volume_shape: Triple) -> PatchPlan:
    """The patch grid of a volume (z, y, x) for a network; it needs no engine."""
    rules = card.patch
    return plan_patches(
        volume_shape, divisor=rules.divisor, max_patch=rules.shape, margin=rules.margin, overlap=rules.overlap
    )


class Predictor:
    """A network, ready to predict affinities of images of any size.

    Parameters
    ----------
    model
        A `Model`, or what `infra.registry.fetch` finds: a name, folder or URL.
    runtime, precision, threads
        See `infra.runtimes.session.open_session`.
    tta
        Test-time augmentation: the number of symmetries to average (1, 8, 16 or 48), or True for as many flips and
        transposes within the section as the voxel size allows.
    batch_size
        Patches per run of the network; 1 is fastest on CPUs.

    Raises `NotFound`, `InvalidModel`, `InvalidInput` or `RuntimeUnavailable`.
    """

    def __init__(
        self,
        model: str | Path | Model,
        *,
        runtime: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        tta: bool | int = False,
        batch_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise InvalidInput(f"batch size: expected at least 1, got {batch_size}")
        self.model = model if isinstance(model, Model) else fetch(str(model))
        self.batch_size = batch_size
        self._symmetries = symmetries(tta, self.card.voxel_size_nm, self.card.patch.divisor)
        self.session: Session = open_session(
            self.model, runtime=runtime, precision=precision, threads=threads, batch_size=batch_size
        )

    @property
    def card(self) -> ModelCard:
        """What the network expects and returns."""
        return self.model.card

    @property
    def symmetries(self) -> tuple[Symmetry, ...]:
        """The symmetries that are averaged; the identity alone without test-time augmentation."""
        return self._symmetries

    def augmented(self) -> Predictor:
        """The same network with test-time augmentation (`tta=True`); both share the session."""
        other = copy.copy(self)
        other._symmetries = symmetries(True, self.card.voxel_size_nm, self.card.patch.divisor)
        return other

    def plan(self, volume_shape: Triple) -> PatchPlan:
        """The patch grid of a volume (z, y, x); chunks that are multiples of its `stride` waste least."""
        return patch_plan(self.card, volume_shape)

    def predict(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """Predict a whole image (z, y, x) in memory; returns and raises as `predict_box` does."""
        if image.ndim != 3:
            raise InvalidVolume(f"image: expected three axes z, y, x, got shape {image.shape}")
        shape = triple(image.shape, "image shape")
        return self.predict_box(lambda box: image[box.slices()], shape, Box.from_shape(shape))

    def predict_box(self, read: Reader, volume_shape: Triple, box: Box) -> NDArray[np.uint8]:
        """Predict the affinities of a box of a volume.

        Parameters
        ----------
        read
            Returns the image of a box within the volume, in the dtype that the card names. Called once, with `box` and
            the context around it; both are held in memory.
        volume_shape
            Extent of the whole volume (z, y, x); the patch grid follows from it.
        box
            A box within the volume.

        Returns
        -------
        uint8 (channels, z, y, x) of the box's shape, max(1, round(255 p)). Channel c tells whether voxel p and
        p + `card.output.offsets[c]` lie in one object; where that end lies outside the volume the value means nothing.

        Raises `InvalidInput` for a box outside the volume, `InvalidVolume` for images of another shape or dtype, or
        with values that are not finite.
        """
        shape = triple(volume_shape, "volume shape", minimum=1)
        if not Box.from_shape(shape).contains(box):
            raise InvalidInput(f"box: expected one within the volume of shape {shape}, got {box}")
        if box.size == 0:
            return np.zeros((len(self.card.output.offsets), *box.shape), np.uint8)
        plan = self.plan(shape)
        context = plan.context_box(box)
        image = self._checked(np.asarray(read(context)), context)
        blend = _Blend(plan, box, len(self.card.output.offsets))
        indices = plan.patches(box)
        while batch := list(islice(indices, self.batch_size)):
            patches = np.stack([_cut(image, context, plan.patch_box(index), shape) for index in batch])
            for index, affinities in zip(batch, self._run(self.card.normalisation.apply(patches)), strict=False):
                blend.add(index, affinities)
        return blend.result()

    def _checked(self, image: NDArray[Any], box: Box) -> NDArray[Any]:
        if image.shape != box.shape:
            raise InvalidVolume(f"image: expected shape {box.shape} for box {box}, got {image.shape}")
        self.card.normalisation.check_dtype(image.dtype)
        if image.dtype.kind == "f" and not (finite := np.isfinite(image)).all():
            bad = np.argwhere(~finite)
            position = tuple(int(a + b) for a, b in zip(box.start, bad[0], strict=True))
            raise InvalidVolume(
                f"image: expected finite values, got {image[tuple(bad[0])]} at z, y, x = {position}; "
                f"{len(bad)} such voxels in box {box}"
            )
        return image

    def _run(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Affinities (batch, channels, z, y, x) of normalised patches (batch, z, y, x)."""
        missing = self.batch_size - len(patches)
        if missing:  # one compiled shape, and one order of sums, for full and last batches
            patches = np.concatenate([patches, np.repeat(patches[:1], missing, axis=0)])
        patches = patches[:, None]
        if len(self._symmetries) == 1:
            return self.session.run(patches)
        seen = (self.session.run(apply_to_image(patches, symmetry)) for symmetry in self._symmetries)
        return mean_affinities(seen, self._symmetries, self.card.output.offsets)


class _Blend:
    """Collects patches into a box: rounds at once where patches partition the volume, else sums their ramps."""

    def __init__(self, plan: PatchPlan, box: Box, channels: int) -> None:
        self._plan, self._box = plan, box
        self._partition = plan.overlap == (0, 0, 0)
        self._sum = np.zeros((channels, *box.shape), np.uint8 if self._partition else np.float32)

    def add(self, index: Triple, affinities: NDArray[np.float32]) -> None:
        valid = self._plan.valid_box(index)
        part = valid.intersection(self._box)
        seen = affinities[:, *part.slices(self._plan.patch_box(index).start)]
        target = self._sum[:, *part.slices(self._box.start)]
        if self._partition:
            target[...] = _to_uint8(seen)
            return
        z, y, x = (
            axis.weights(i)[piece]
            for axis, i, piece in zip(self._plan.axes, index, part.slices(valid.start), strict=True)
        )
        target += seen * (z[:, None, None] * y[:, None] * x)

    def result(self) -> NDArray[np.uint8]:
        return self._sum if self._partition else _to_uint8(self._sum)


def _to_uint8(probabilities: NDArray[Any]) -> NDArray[np.uint8]:
    if not np.isfinite(probabilities.sum(dtype=np.float64)):
        raise InvalidModel("prediction: the network returned values that are not finite")
    # 0 is left for edges that do not exist, so that a watershed can tell them from improbable ones.
    rounded: NDArray[np.uint8] = np.clip(np.rint(probabilities * np.float32(255)), 1, 255).astype(np.uint8)
    return rounded


def _cut(image: NDArray[Any], context: Box, patch: Box, volume_shape: Triple) -> NDArray[Any]:
    """A patch of the image, mirrored at the volume's faces; `image` holds the box `context`."""
    if context.contains(patch):
        return image[patch.slices(context.start)]
    indices = [
        reflect(start, length, extent) - origin
        for start, length, extent, origin in zip(patch.start, patch.shape, volume_shape, context.start, strict=True)
    ]
    return image[np.ix_(*indices)]
