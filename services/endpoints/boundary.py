"""The replica behind `POST /v1/boundary`: one model in memory, from images or volume references to affinities."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from infra.runtimes.session import Session
from infra.volumes import Volume, VolumeInfo, create_volume, open_volume
from models.catalog import find_model
from models.errors import InvalidInput, InvalidModel, InvalidVolume, NotFound, PetavoxelError, RunConflict
from models.geometry import Box, VoxelSize, triple
from services.endpoints.config import ServeConfig
from services.endpoints.problems import DeadlineExceeded, InternalError, PayloadTooLarge, Problem
from services.endpoints.references import Prefixes
from services.endpoints.schemas import Reference
from services.predict import Predictor

logger = logging.getLogger(__name__)

WORK_PER_VOXEL = 16
"""Voxels that the network may compute per voxel of the largest image. A cube needs 2 to 8, a long thin box hundreds."""

Result = TypeVar("Result")

_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


@dataclass(frozen=True)
class Prediction:
    """Affinities uint8 (c, z, y, x); None where they were written to `output`."""

    affinities: NDArray[np.uint8] | None
    shape: tuple[int, ...]
    precision: str
    box: str | None = None
    voxel_size_nm: VoxelSize | None = None
    output: str | None = None


class Boundary:
    """A Ray Serve deployment that holds one `Predictor`; it has run once when its constructor returns.

    `model` is a name, folder or card on the replica's machine, and must have the digest `sha256`.
    """

    def __init__(self, model: str, sha256: str, config: ServeConfig) -> None:
        found = find_model(model)
        if found.card.file.sha256 != sha256:
            raise InvalidModel(
                f"model {model}: expected SHA-256 {sha256}, this machine's copy has {found.card.file.sha256}"
            )
        self._config = config
        self._predictor = Predictor(found, runtime=config.runtime, precision=config.precision, threads=config.threads)
        self._predictor.session = _Interruptible(self._predictor.session)
        self._volumes = Prefixes(config.volumes, "--volumes")
        self._outputs = Prefixes(config.outputs, "--outputs")
        self._limit = max(WORK_PER_VOXEL * config.max_bytes, 8 * math.prod(found.card.patch.shape))
        self._predictor.predict(np.zeros(found.card.patch.shape, found.card.normalisation.dtype))

    async def predict(self, image: NDArray[Any]) -> Prediction | Problem:
        """Affinities of a whole image (z, y, x), as `Predictor.predict` gives them."""
        return await _interruptible(lambda: self._predict(image))

    async def predict_reference(self, reference: Reference) -> Prediction | Problem:
        """Affinities of a box of a volume, as `Predictor.predict_box` gives them, written if the reference says so."""
        return await _interruptible(lambda: self._predict_reference(reference))

    def _predict(self, image: NDArray[Any]) -> Prediction:
        shape = triple(image.shape, "image shape", minimum=1)
        self._check_work(shape, Box.from_shape(shape))
        affinities = self._predictor.predict(image)
        return Prediction(affinities, affinities.shape, self._predictor.session.precision)

    def _predict_reference(self, reference: Reference) -> Prediction:
        box = Box.parse(reference.box)
        output = None if reference.output is None else self._free_output(reference.output)
        url = self._volumes.resolve(reference.volume)
        with open_volume(url, level=reference.level, voxel_size_nm=reference.voxel_size_nm) as volume:
            self._check_volume(volume, reference, box)
            affinities = self._predictor.predict_box(volume.read, volume.info.shape, box)
            voxel_size = volume.info.voxel_size_nm
            if output is not None:
                self._write(output, affinities, volume, box)
        return Prediction(
            affinities if output is None else None,
            affinities.shape,
            self._predictor.session.precision,
            str(box),
            voxel_size,
            output and reference.output,
        )

    def _check_volume(self, volume: Volume, reference: Reference, box: Box) -> None:
        info, card = volume.info, self._predictor.card
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
        self._check_work(info.shape, box)

    def _check_work(self, volume_shape: tuple[int, int, int], box: Box) -> None:
        plan = self._predictor.plan(volume_shape)
        patches = math.prod(
            len(axis.touching(begin, end)) for axis, begin, end in zip(plan.axes, box.start, box.stop, strict=True)
        )
        work = patches * math.prod(plan.patch_shape)
        if work > self._limit:
            raise PayloadTooLarge(
                f"box {box}: needs {patches} patches of {plan.patch_shape}, {work} voxels in all, this server computes "
                f"at most {self._limit} for one request; ask for smaller or more compact boxes"
            )

    def _free_output(self, url: str) -> str:
        """The resolved URL of an output, where no volume is yet."""
        resolved = self._outputs.resolve(url)
        try:
            open_volume(resolved).close()
        except NotFound:
            return resolved
        raise RunConflict(f"output {url}: a volume is already there; it is never overwritten")

    def _write(self, url: str, affinities: NDArray[np.uint8], volume: Volume, box: Box) -> None:
        card, info = self._predictor.card, volume.info
        z, y, x = (a + b for a, b in zip(info.offset_voxels, box.start, strict=True))
        described = VolumeInfo(
            shape=box.shape,
            dtype=affinities.dtype,
            channels=len(affinities),
            voxel_size_nm=info.voxel_size_nm,
            offset_voxels=(z, y, x),
            affinity_offsets=card.output.offsets,
            attributes={"model": {"name": card.name, "version": card.version, "sha256": card.file.sha256}},
        )
        with create_volume(url, described) as target:
            target.write(target.box, affinities)


class _Interruptible:
    """A session that stops between patches once the request that it works for has been given up."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def device(self) -> str:
        return self._session.device

    @property
    def precision(self) -> str:
        return self._session.precision

    @property
    def engine(self) -> str:
        return self._session.engine

    def run(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        stop = _stop.get()
        if stop is not None and stop.is_set():
            raise DeadlineExceeded("the request was given up")
        return self._session.run(patches)


async def _interruptible(work: Callable[[], Result]) -> Result | Problem:
    """Run `work` in a thread; an error becomes a `Problem`, and cancellation stops the work at its next patch."""
    stop = threading.Event()
    _stop.set(stop)
    try:
        return await asyncio.to_thread(work)
    except PetavoxelError as error:
        return Problem.of(error)
    except asyncio.CancelledError:
        stop.set()
        raise
    except Exception:
        problem = Problem.of(InternalError("the model or the store failed unexpectedly; see the server's log"))
        logger.exception("request failed: %s", problem.instance)
        return problem
