"""`petavoxel train`: one typed configuration from data to checkpoint.

The run folder holds `config.yaml` (what was asked), `last.pt` (resumed from when the command is given again), `best.pt`
(of the validation with the lowest VOI), and TensorBoard logs under `logs/`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch.utils.tensorboard import SummaryWriter

from infra.volumes import open_volume
from infra.volumes.stores import write_whole
from models.catalog import sha256_of
from models.errors import InvalidConfig, InvalidVolume, NotFound, RunConflict
from models.geometry import NEAREST, Box, Triple, VoxelSize
from models.networks.family import NetworkConfig as Architecture
from models.networks.registry import preset, read_config
from models.networks.vd2d import VD2DConfig
from models.networks.vd2d3d import VD2D3DConfig
from models.training.augmentation import AugmentationOptions
from models.training.loop import LoopOptions, Progress, Trainer, read_checkpoint
from models.training.preview import preview_rows, preview_sheet
from models.training.sampler import LabelledVolume, PatchSampler
from models.training.share import Share
from models.training.targets import BACKGROUND, INSIDE, SOME_OBJECT, long_range_offsets

logger = logging.getLogger(__name__)

_STRICT = ConfigDict(frozen=True, extra="forbid")


def _checked(kind: type[Any]) -> BeforeValidator:
    """Refuse keys that the dataclass `kind` does not have; pydantic would drop them."""

    def check(given: object) -> object:
        unknown = sorted(set(given) - {field.name for field in fields(kind)}) if isinstance(given, dict) else []
        if unknown:
            raise ValueError(f"unknown keys {', '.join(unknown)}")
        return given

    return BeforeValidator(check)


class VolumeConfig(BaseModel):
    """An image and its labels (volume URLs, relative ones below the data folder), and which box of them is used.

    Labels 0 are unlabelled; so is all that a `mask` volume holds 0 for. No edge there counts. Labels 0 where a
    `background` volume is not 0 are known to be no object, such as membranes: edges there count, as cut. Sections that
    were annotated for their membranes alone have a `background` and no labels: all else is inside of some object.
    `weight` says how often patches are drawn from it, beside other volumes of its size.
    """

    model_config = _STRICT
    image: str
    labels: str | None = None
    mask: str | None = None
    background: str | None = None
    box: str | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    @model_validator(mode="after")
    def _annotated(self) -> Self:
        if self.labels is None and self.background is None:
            raise ValueError("expected labels, or the background of an image without them")
        return self


class NetworkConfig(BaseModel):
    """A preset of a network family (`models.networks.registry`) and its widths.

    `recursion`: a checkpoint of a VD2D, relative to the data folder, whose map is a second input (family vd2d3d).
    """

    model_config = _STRICT
    family: str
    preset: str
    widths: tuple[int, ...]
    recursion: str | None = None

    def architecture(self, out_channels: int, data: Path) -> Architecture:
        """The network's configuration; raises `InvalidConfig`, or `InvalidModel` for an unfit first network."""
        config = preset(self.family, self.preset, out_channels, self.widths)
        if self.recursion is None:
            return config
        held = read_checkpoint(data / self.recursion)["network"]
        first = read_config(held["family"], held["config"])
        if not isinstance(config, VD2D3DConfig) or not isinstance(first, VD2DConfig):
            raise InvalidConfig(f"network: recursion is of a vd2d3d on a vd2d, got {self.family} on {held['family']}")
        return replace(config, recursion=first)


class TrainConfig(BaseModel):
    """Everything that decides a training run; see the recipes in `models/zoo` for examples.

    `target` is "affinities", or "inside": one channel that says how likely a voxel lies inside of an object.
    `initial_weights` is a checkpoint to begin with, relative to the data folder; its digest goes into the checkpoints.
    """

    model_config = _STRICT
    name: str
    voxel_size_nm: VoxelSize
    train: Annotated[tuple[VolumeConfig, ...], Field(min_length=1)]
    validation: tuple[VolumeConfig, ...] = ()
    network: NetworkConfig
    target: Literal["affinities", "inside"] = "affinities"
    auxiliary: bool = True
    boundary_voxels: Annotated[int, Field(ge=0)] = 1
    boundary_target: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    patch: Triple = (64, 64, 64)
    seed: int = 0
    initial_weights: str | None = None
    augmentation: Annotated[AugmentationOptions, _checked(AugmentationOptions)] = AugmentationOptions()
    loop: Annotated[LoopOptions, _checked(LoopOptions)]

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """Read YAML; raises `NotFound` or `InvalidConfig` with one line per wrong key."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text()))
        except OSError as error:
            raise NotFound(f"{path}: cannot read the configuration ({error.strerror})") from error
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidConfig(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
            raise InvalidConfig(f"{path}: {wrong}") from error

    @model_validator(mode="after")
    def _one_channel(self) -> Self:
        if self.target == "inside" and self.auxiliary:
            raise ValueError("the target 'inside' has no auxiliary affinities; say auxiliary: false")
        return self

    @model_validator(mode="after")
    def _sections(self) -> Self:
        if any(volume.labels is None for volume in self.train):
            if self.augmentation.isotropic:
                raise ValueError("a volume without labels is of sections; say augmentation: {isotropic: false}")
            if self.loop.maximin_weight:
                raise ValueError("a volume without labels has no maximin edges; say maximin_weight: 0")
        if any(volume.labels is None for volume in self.validation):
            raise ValueError("validation needs labels, it scores the segmentation")
        return self

    @property
    def offsets(self) -> tuple[Triple, ...]:
        """Affinity offsets per channel: the nearest neighbours, then the auxiliary ones; or that of `INSIDE`."""
        if self.target == "inside":
            return INSIDE
        return NEAREST + (long_range_offsets(self.voxel_size_nm) if self.auxiliary else ())

    def trainer(self, data: Path, share: Share | None = None) -> Trainer:
        """The trainer at its first step, with the training volumes in memory."""
        sampler = PatchSampler(
            self._volumes(self.train, data),
            self.offsets,
            self.patch,
            self.augmentation,
            self.boundary_voxels,
            self.boundary_target,
            self.balance,
            self.seed,
        )
        return Trainer(self.network.architecture(len(self.offsets), data), sampler, self.loop, share)

    def preview(self, data: Path) -> NDArray[np.uint8]:
        """A picture of every augmentation on the first training volume, uint8 (height, width, 3)."""
        volume = self._volumes(self.train[:1], data)[0]
        return preview_sheet(preview_rows(volume, self.patch, self.augmentation, seed=self.seed))

    def validation_volumes(self, data: Path) -> tuple[LabelledVolume, ...]:
        """The validation volumes, in memory."""
        return self._volumes(self.validation, data)

    def _volumes(self, configs: tuple[VolumeConfig, ...], data: Path) -> tuple[LabelledVolume, ...]:
        return tuple(_load(config, data, self.voxel_size_nm) for config in configs)


def train(config: TrainConfig, folder: Path, data: Path) -> Path:
    """Train, or go on training, in `folder`; returns the checkpoint's path.

    Raises `RunConflict` where the folder holds a run with another configuration; a changed number of steps or other
    loop option is allowed, and takes effect from the step reached.
    """
    with progress_bar(config) as show:
        return learn(config, folder, data, show)


@contextmanager
def progress_bar(config: TrainConfig) -> Iterator[Callable[[Progress], None]]:
    """A bar on the terminal; yields what moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns) as bar:
        task = bar.add_task(config.name, total=config.loop.steps)
        yield lambda progress: bar.update(
            task, completed=progress.step, description=f"{config.name} loss {progress.loss:.3f}"
        )


def learn(
    config: TrainConfig, folder: Path, data: Path, show: Callable[[Progress], object], share: Share | None = None
) -> Path:
    """What `train` does, in one process of those that share the work; the first of them writes and shows."""
    checkpoint = folder / "last.pt"
    trainer, validation = config.trainer(data, share), config.validation_volumes(data)
    provenance: dict[str, Any] = {"config": config.model_dump(mode="json")}
    if config.initial_weights and not checkpoint.exists():
        weights = data / config.initial_weights
        trainer.initialise(weights)
        provenance["initial_weights_sha256"] = sha256_of(weights)
    if config.network.recursion and not checkpoint.exists():
        first = data / config.network.recursion
        trainer.recur(first)
        provenance["recursion_sha256"] = sha256_of(first)
    if trainer.share.rank == 0:
        _claim(config, folder)
    if checkpoint.exists():
        provenance = {**trainer.resume(checkpoint), **provenance}
        logger.info("going on from step %d of %d", trainer.step, config.loop.steps)
    _check_agreement(trainer, folder)
    if trainer.share.rank:
        for _ in trainer.run(validation):
            pass
        return checkpoint
    with SummaryWriter(str(folder / "logs")) as board:
        for progress in trainer.run(validation):
            show(progress)
            board.add_scalar("loss/all", progress.loss, progress.step)
            board.add_scalar("loss/nearest", progress.primary_loss, progress.step)
            board.add_scalar("learning_rate", progress.learning_rate, progress.step)
            for name, value in (progress.validation or {}).items():
                board.add_scalar(f"validation/{name}", value, progress.step)
            if progress.improved:
                scores = {**provenance, "validation": progress.validation}
                trainer.save(folder / "best.pt", config.voxel_size_nm, scores)
            last = progress.step == config.loop.steps or trainer.stopped_early
            if progress.step % config.loop.checkpoint_every == 0 or last:
                trainer.save(checkpoint, config.voxel_size_nm, provenance)
    return checkpoint


def _check_agreement(trainer: Trainer, folder: Path) -> None:
    """Raise `InvalidConfig` where the processes did not find the same checkpoint."""
    steps = trainer.share.total(torch.tensor([float(trainer.step)], dtype=torch.float64, device=trainer.device))
    if float(steps) != trainer.step * trainer.share.world:
        raise InvalidConfig(
            f"{folder}: expected a folder that all workers share, they found checkpoints of different steps in it"
        )


def check_claim(config: TrainConfig, folder: Path) -> None:
    """Raise `RunConflict` where the folder holds a run whose configuration differs in more than the loop.

    What its file does not say has its default, so that a run may go on after a key was added.
    """
    path = folder / "config.yaml"
    if path.exists():
        asked, held = (each.model_dump(mode="json") for each in (config, TrainConfig.read(path)))
        different = sorted(key for key in asked if asked[key] != held[key])
        if set(different) - {"loop"}:
            raise RunConflict(f"{folder}: holds a run with another configuration; different: {', '.join(different)}")


def _claim(config: TrainConfig, folder: Path) -> None:
    """Store the configuration, or check that the folder's is the same but for the loop."""
    check_claim(config, folder)
    described = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_whole(folder / "config.yaml", described.encode())


def _load(config: VolumeConfig, data: Path, voxel_size_nm: VoxelSize) -> LabelledVolume:
    urls = {"image": config.image, "labels": config.labels, "mask": config.mask, "background": config.background}
    arrays: dict[str, NDArray[Any]] = {}
    for role, url in urls.items():
        if url is None:
            continue
        absolute = url if "://" in url or Path(url).is_absolute() else str(data / url)
        volume = open_volume(absolute)
        stored = volume.info.voxel_size_nm
        if stored is not None and any(abs(a - b) > 0.01 * b for a, b in zip(stored, voxel_size_nm, strict=True)):
            raise InvalidVolume(f"{absolute}: voxel size is {stored} nm, the configuration says {voxel_size_nm}")
        arrays[role] = volume.read(Box.parse(config.box) if config.box else volume.box)
        if arrays[role].shape != arrays["image"].shape:
            raise InvalidVolume(f"{url}: expected the image's shape {arrays['image'].shape}, got {arrays[role].shape}")
    return LabelledVolume(arrays["image"], _truth(arrays), voxel_size_nm, config.weight)


def _truth(arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Labels with background as such and what the mask excludes as unlabelled."""
    if "labels" not in arrays:
        labels = np.where(arrays["background"] != 0, BACKGROUND, SOME_OBJECT).astype(np.int8)
    else:
        labels = _labels(arrays)
    if "mask" in arrays:
        labels = np.where(arrays["mask"] != 0, labels, 0).astype(labels.dtype)
    return labels


def _labels(arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
    labels = arrays["labels"]
    if "background" in arrays:
        if labels.size and int(labels.max()) > np.iinfo(np.int64).max:
            raise InvalidVolume(f"labels: expected ids below 2^63 beside a background, got {labels.max()}")
        labels = np.where((arrays["background"] != 0) & (labels == 0), BACKGROUND, labels.astype(np.int64))
    return labels
