"""`petavoxel train`: one typed configuration from data to checkpoint.

The run folder holds `config.yaml` (what was asked), `last.pt` (resumed from when the command is given again), `best.pt`
(of the validation with the lowest VOI), and TensorBoard logs under `logs/`.
"""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from infra.volumes import open_volume
from models.catalog import sha256_of
from models.errors import InvalidConfig, InvalidVolume, NotFound, RunConflict
from models.geometry import NEAREST, Box, Triple, VoxelSize
from models.networks.rsunet import RSUNetConfig
from models.training.augmentation import AugmentationOptions
from models.training.loop import LoopOptions, Trainer
from models.training.preview import preview_rows, preview_sheet
from models.training.sampler import LabelledVolume, PatchSampler
from models.training.targets import long_range_offsets

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

    Labels 0 are unlabelled; so is all that a `mask` volume holds 0 for. No edge there counts.
    """

    model_config = _STRICT
    image: str
    labels: str
    mask: str | None = None
    box: str | None = None


class NetworkConfig(BaseModel):
    """A preset of the residual symmetric U-Net and its widths."""

    model_config = _STRICT
    preset: Literal["isotropic", "anisotropic"]
    widths: tuple[int, ...]


class TrainConfig(BaseModel):
    """Everything that decides a training run; see the recipes in `models/zoo` for examples.

    `initial_weights` is a checkpoint to begin with, relative to the data folder; its digest goes into the checkpoints.
    """

    model_config = _STRICT
    name: str
    voxel_size_nm: VoxelSize
    train: Annotated[tuple[VolumeConfig, ...], Field(min_length=1)]
    validation: tuple[VolumeConfig, ...] = ()
    network: NetworkConfig
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
        except yaml.YAMLError as error:
            raise InvalidConfig(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
            raise InvalidConfig(f"{path}: {wrong}") from error

    @property
    def offsets(self) -> tuple[Triple, ...]:
        """Affinity offsets per channel: the nearest neighbours, then the auxiliary ones."""
        return NEAREST + (long_range_offsets(self.voxel_size_nm) if self.auxiliary else ())

    def trainer(self, data: Path) -> Trainer:
        """The trainer at its first step, with the training volumes in memory."""
        preset = RSUNetConfig.isotropic if self.network.preset == "isotropic" else RSUNetConfig.anisotropic
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
        return Trainer(preset(len(self.offsets), self.network.widths), sampler, self.loop)

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
    checkpoint = folder / "last.pt"
    trainer, validation = config.trainer(data), config.validation_volumes(data)
    provenance: dict[str, Any] = {"config": config.model_dump(mode="json")}
    if config.initial_weights and not checkpoint.exists():
        weights = data / config.initial_weights
        trainer.initialise(weights)
        provenance["initial_weights_sha256"] = sha256_of(weights)
    _claim(config, folder)
    if checkpoint.exists():
        provenance = {**trainer.resume(checkpoint), **provenance}
        logger.info("going on from step %d of %d", trainer.step, config.loop.steps)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with SummaryWriter(str(folder / "logs")) as board, Progress(*columns) as bar:
        task = bar.add_task(config.name, total=config.loop.steps, completed=trainer.step)
        for progress in trainer.run(validation):
            bar.update(task, completed=progress.step, description=f"{config.name} loss {progress.loss:.3f}")
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


def _claim(config: TrainConfig, folder: Path) -> None:
    """Store the configuration, or check that the folder's is the same but for the loop."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    asked = config.model_dump(mode="json")
    if path.exists():
        held = yaml.safe_load(path.read_text())
        different = sorted(key for key in asked.keys() | held.keys() if asked.get(key) != held.get(key))
        if set(different) - {"loop"}:
            raise RunConflict(f"{folder}: holds a run with another configuration; different: {', '.join(different)}")
    path.write_text(yaml.safe_dump(asked, sort_keys=False))


def _load(config: VolumeConfig, data: Path, voxel_size_nm: VoxelSize) -> LabelledVolume:
    arrays = []
    for url in (config.image, config.labels, *([config.mask] if config.mask else [])):
        absolute = url if "://" in url or Path(url).is_absolute() else str(data / url)
        volume = open_volume(absolute)
        stored = volume.info.voxel_size_nm
        if stored is not None and any(abs(a - b) > 0.01 * b for a, b in zip(stored, voxel_size_nm, strict=True)):
            raise InvalidVolume(f"{absolute}: voxel size is {stored} nm, the configuration says {voxel_size_nm}")
        arrays.append(volume.read(Box.parse(config.box) if config.box else volume.box))
    image, labels = arrays[:2]
    if config.mask:
        if arrays[2].shape != labels.shape:
            raise InvalidVolume(f"{config.mask}: expected the labels' shape {labels.shape}, got {arrays[2].shape}")
        labels = np.where(arrays[2] != 0, labels, 0).astype(labels.dtype)
    return LabelledVolume(image, labels, voxel_size_nm)
