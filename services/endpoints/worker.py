"""What a replica does, without Serve: holds networks, turns images or volume references into affinities and labels."""

from __future__ import annotations

import copy
import logging
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.registry import fetch
from infra.volumes import Volume, VolumeInfo, create_volume, delete_volume, open_volume
from models.catalog import ModelCard, Segmentation
from models.errors import AccessDenied, InvalidInput, InvalidModel, InvalidVolume, NotFound, PetavoxelError, RunConflict
from models.geometry import Box, Triple, VoxelSize, triple
from services.endpoints import metrics, tracing
from services.endpoints.batching import BatchedSession
from services.endpoints.catalog import Entry
from services.endpoints.config import ServeConfig
from services.endpoints.interruption import InterruptibleSession
from services.endpoints.problems import PayloadTooLarge
from services.endpoints.references import Prefixes
from services.endpoints.schemas import Reference
from services.endpoints.segmentation import compile_kernels, segment_box
from services.predict import Predictor

logger = logging.getLogger(__name__)

WORK_PER_VOXEL = 16
"""Voxels that the network may compute per voxel of the largest image. A cube needs 2 to 8, a long thin box hundreds."""


@dataclass(frozen=True)
class Place:
    """Where the voxels of an answer lie: a box of a volume."""

    box: Box
    volume_shape: Triple
    voxel_size_nm: VoxelSize | None = None
    offset_voxels: Triple = (0, 0, 0)


@dataclass(frozen=True)
class Seen:
    """What is needed to predict a box of a volume: the image of `context`, and the resolved URL to write to."""

    image: NDArray[Any]
    place: Place
    reference: Reference
    output: str | None
    seconds: float


@dataclass(frozen=True)
class Answer:
    """Affinities uint8 (c, z, y, x) or labels uint64 (z, y, x); `voxels` None where they were written to `output`.

    `seconds`: what reading, computing and writing took in replicas, without queues and the way there and back.
    """

    voxels: NDArray[Any] | None
    shape: tuple[int, ...]
    dtype: str
    precision: str
    place: Place | None = None
    output: str | None = None
    seconds: float = 0.0


class Loaded:
    """A network that has run once; `full` runs batches of one image, `single` patches that may share a batch."""

    def __init__(self, entry: Entry, config: ServeConfig) -> None:
        found = fetch(entry.path)
        expected, got = entry.card.file.sha256, found.card.file.sha256
        if expected != got:
            raise InvalidModel(f"model {entry.path}: expected SHA-256 {expected}, this machine's copy has {got}")
        self.key = entry.key
        self.full = Predictor(
            found,
            runtime=config.runtime,
            precision=config.precision,
            threads=config.threads,
            batch_size=config.max_batch,
        )
        session = BatchedSession(self.full.session, config.max_batch, self._observe)
        self.full.session = InterruptibleSession(session)
        self.single = copy.copy(self.full)
        self.single.batch_size = 1
        self.single.predict(np.zeros(found.card.patch.shape, found.card.normalisation.dtype))

    @property
    def card(self) -> ModelCard:
        """What the network expects and returns."""
        return self.full.card

    @property
    def precision(self) -> str:
        """The precision that convolutions are computed in."""
        return self.full.session.precision

    def patches(self, volume_shape: Triple, box: Box) -> int:
        """Number of patches that a box needs."""
        plan = self.full.plan(volume_shape)
        axes = zip(plan.axes, box.start, box.stop, strict=True)
        return math.prod(len(axis.touching(begin, end)) for axis, begin, end in axes)

    def predictor(self, patches: int) -> Predictor:
        """The one that wastes least for so many patches; both give the same values."""
        return self.full if patches >= self.full.batch_size else self.single

    def _observe(self, patches: int) -> None:
        metrics.batch_size().observe(patches, {"model": self.key})


class Worker:
    """Answers requests under the limits and prefixes of a configuration; methods raise errors of our tree."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._volumes = Prefixes(config.volumes, "--volumes")
        self._outputs = Prefixes(config.outputs, "--outputs")

    def warm_up(self) -> None:
        """Compile the kernels that `segment` needs."""
        compile_kernels()

    def load(self, entry: Entry) -> Loaded:
        """Open a model and run it once; raises `NotFound`, `InvalidModel` or `RuntimeUnavailable`."""
        return Loaded(entry, self._config)

    def predict(self, model: Loaded, image: NDArray[Any]) -> Answer:
        """Affinities of a whole image (z, y, x), as `Predictor.predict` gives them."""
        began = time.perf_counter()
        shape = triple(image.shape, "image shape", minimum=1)
        box = Box.from_shape(shape)
        affinities = self._predictor(model, shape, box).predict(image)
        metrics.voxels().inc(box.size, {"model": model.key, "endpoint": "predict"})
        return Answer(affinities, affinities.shape, "uint8", model.precision, seconds=time.perf_counter() - began)

    def read(self, model: Loaded, reference: Reference) -> Seen:
        """Read a box of a volume with the context that the model needs; refuse what cannot be written, before that."""
        began = time.perf_counter()
        box = Box.parse(reference.box)
        output = None if reference.output is None else self._free_output(reference.output)
        url = self._volumes.resolve(reference.volume)
        with tracing.span("open volume"):
            opened = open_volume(url, level=reference.level, voxel_size_nm=reference.voxel_size_nm)
        with opened as volume:
            self._check_volume(volume, model.card, reference, box)
            info = volume.info
            context = self._predictor(model, info.shape, box).plan(info.shape).context_box(box)
            with tracing.span("read volume", box=str(context)):
                image = volume.read(context)
        place = Place(box, info.shape, info.voxel_size_nm, info.offset_voxels)
        return Seen(image, place, reference, output, time.perf_counter() - began)

    def predict_seen(self, model: Loaded, seen: Seen) -> Answer:
        """Affinities of a box of a volume, as `Predictor.predict_box` gives them."""
        began, place = time.perf_counter(), seen.place
        predictor = self._predictor(model, place.volume_shape, place.box)
        affinities = predictor.predict_box(lambda _: seen.image, place.volume_shape, place.box)
        metrics.voxels().inc(place.box.size, {"model": model.key, "endpoint": "predict"})
        seconds = seen.seconds + time.perf_counter() - began
        return Answer(affinities, affinities.shape, "uint8", model.precision, place, seconds=seconds)

    def write(self, model: Loaded, seen: Seen, found: Answer) -> Answer:
        """Write affinities to where the reference says; what it answers has none, if they were written."""
        if seen.output is None or found.voxels is None:
            return found
        began, offsets = time.perf_counter(), model.card.output.offsets
        _write(seen.output, found.voxels, seen.place, model.card, channels=len(offsets), affinity_offsets=offsets)
        seconds = found.seconds + time.perf_counter() - began
        return replace(found, voxels=None, output=seen.reference.output, seconds=seconds)

    def check_output(self, url: str | None) -> None:
        """Refuse an output, before any work, that may not be written or is there already."""
        if url is not None:
            self._free_output(url)

    def segment(self, card: ModelCard, found: Answer, settings: Segmentation) -> Answer:
        """Labels uint64 (z, y, x) of predicted affinities."""
        began = time.perf_counter()
        if found.voxels is None:
            raise InvalidInput("segment: expected affinities, they were written elsewhere")
        z, y, x = found.shape[1:]
        place = found.place or Place(Box.from_shape((z, y, x)), (z, y, x))
        with tracing.span("segment"):
            labels = segment_box(found.voxels, card.output.offsets, place.box, place.volume_shape, settings)
        metrics.voxels().inc(place.box.size, {"model": f"{card.name}:{card.version}", "endpoint": "segment"})
        seconds = found.seconds + time.perf_counter() - began
        return Answer(labels, labels.shape, "uint64", found.precision, found.place, seconds=seconds)

    def write_labels(self, card: ModelCard, found: Answer, output: str) -> Answer:
        """Write labels of a box where no volume is yet; what it answers has none any more."""
        began = time.perf_counter()
        if found.voxels is None or found.place is None:
            raise InvalidInput("output: expected labels of a box of a volume")
        _write(self._free_output(output), found.voxels, found.place, card)
        seconds = found.seconds + time.perf_counter() - began
        return replace(found, voxels=None, output=output, seconds=seconds)

    def _predictor(self, model: Loaded, volume_shape: Triple, box: Box) -> Predictor:
        patches, extent = model.patches(volume_shape, box), model.full.plan(volume_shape).patch_shape
        work = patches * math.prod(extent)
        limit = max(WORK_PER_VOXEL * self._config.max_bytes, 8 * math.prod(model.card.patch.shape))
        if work > limit:
            raise PayloadTooLarge(
                f"box {box}: needs {patches} patches of {extent}, {work} voxels in all, this server computes "
                f"at most {limit} for one request; ask for smaller or more compact boxes"
            )
        return model.predictor(patches)

    def _check_volume(self, volume: Volume, card: ModelCard, reference: Reference, box: Box) -> None:
        info = volume.info
        if volume.reaches_out:
            raise AccessDenied(
                f"{volume.url}: some of its voxels lie in other files, which its metadata name; this server opens only "
                "volumes that lie at their URL as a whole"
            )
        if info.channels is not None:
            raise InvalidVolume(f"{volume.url}: expected an image (z, y, x), got {info.channels} channels")
        card.normalisation.check_dtype(info.dtype)
        if not reference.any_voxel_size:
            if info.voxel_size_nm is None:
                raise InvalidVolume(
                    f"{volume.url}: its voxel size is not known; say it as voxel_size_nm, or set any_voxel_size; "
                    f"the model {card.name} was trained for {card.voxel_size_nm} nm"
                )
            card.check_voxel_size(info.voxel_size_nm)
        if box.size == 0 or not volume.box.contains(box):
            raise InvalidInput(f"box: expected a box with voxels, within {volume.box}, got {box}")
        nbytes = box.size * info.dtype.itemsize
        if nbytes > self._config.max_bytes:
            raise PayloadTooLarge(f"box {box}: expected at most {self._config.max_bytes} bytes, it has {nbytes}")

    def _free_output(self, url: str) -> str:
        """The resolved URL of an output, where no volume is yet."""
        resolved = self._outputs.resolve(url)
        try:
            with tracing.span("check output"):
                open_volume(resolved).close()
        except NotFound:
            return resolved
        raise RunConflict(f"output {url}: a volume is already there; it is never overwritten")


def _write(url: str, voxels: NDArray[Any], place: Place, card: ModelCard, **more: Any) -> None:
    z, y, x = (a + b for a, b in zip(place.offset_voxels, place.box.start, strict=True))
    described = VolumeInfo(
        shape=place.box.shape,
        dtype=voxels.dtype,
        voxel_size_nm=place.voxel_size_nm,
        offset_voxels=(z, y, x),
        attributes={"model": {"name": card.name, "version": card.version, "sha256": card.file.sha256}},
        **more,
    )
    with tracing.span("write volume", bytes=voxels.nbytes):
        created = create_volume(url, described)
        try:
            with created as target:
                target.write(target.box, voxels)
        except Exception:  # raised again; zeros that stay would pass for a result
            _discard(url)
            raise


def _discard(url: str) -> None:
    """Delete a volume that could not be filled: zeros would pass for a result, and be in the way of another attempt."""
    try:
        delete_volume(url)
    except PetavoxelError as error:
        logger.error("output %s: what could not be written stays there: %s", url, error)
