"""The training loop: optimiser, learning-rate schedule, averaged weights, validation, checkpoints that resume exactly.

Patches follow from (seed, step), and a checkpoint holds every state the next step needs, so a run that was stopped
and resumed ends with the same bytes on the CPU.

The learning rate warms up, stays, and cools down linearly over the last part of the run. During the cool-down the
normalisation layers use their running statistics, as inference does. What is kept as the result are exponentially
averaged weights.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models.errors import InvalidConfig, InvalidModel
from models.geometry import NEAREST, VoxelSize
from models.networks.rsunet import RSUNet, RSUNetConfig
from models.training.sampler import Batch, LabelledVolume, PatchSampler
from models.training.targets import affinity_targets, balance_weights

logger = logging.getLogger(__name__)

SHIFT, SCALE = 0.5, 4.0
"""A network sees (value - SHIFT) * SCALE of an image in [0, 1]."""


VALIDATION_TILE = 128
"""Validation volumes are cut into tiles of at most this extent per axis."""


@dataclass(frozen=True)
class LoopOptions:
    """How long and how fast to train.

    Parameters
    ----------
    steps, batch_size
        Optimiser steps, and patches per step.
    learning_rate, weight_decay, warmup_steps, cooldown_fraction, clip_norm
        AdamW; linear warm-up; linear cool-down over the last fraction of the steps; gradient norm limit.
    auxiliary_weight
        Weight of the mean long-range loss beside the mean nearest-neighbour loss.
    average_decay
        Decay of the exponential average of weights per step.
    precision
        "bf16", "fp32", or "auto": bf16 where the device computes in it natively.
    device
        "auto" (CUDA where present), "cpu" or "cuda".
    validate_every, checkpoint_every
        In steps.
    """

    steps: int
    batch_size: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    cooldown_fraction: float = 0.3
    clip_norm: float = 1.0
    auxiliary_weight: float = 0.5
    average_decay: float = 0.995
    precision: str = "auto"
    device: str = "auto"
    validate_every: int = 200
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.validate_every, self.checkpoint_every) < 1:
            raise InvalidConfig("training: steps, batch_size, validate_every and checkpoint_every must be positive")
        if self.precision not in ("auto", "bf16", "fp32") or self.device not in ("auto", "cpu", "cuda"):
            raise InvalidConfig(f"training: unknown precision {self.precision!r} or device {self.device!r}")
        if not 0 <= self.cooldown_fraction <= 1 or not 0 <= self.average_decay < 1:
            raise InvalidConfig("training: cooldown_fraction and average_decay must lie between 0 and 1")

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step `step` (from 0)."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        cool = min(1.0, (self.steps - step) / max(1.0, self.cooldown_fraction * self.steps))
        return self.learning_rate * min(warm, cool)

    def cooling(self, step: int) -> bool:
        """Whether step `step` belongs to the cool-down."""
        return step >= self.steps * (1 - self.cooldown_fraction)


@dataclass(frozen=True)
class Progress:
    """What the loop reports after each step: losses are means over edges; validation where it was due."""

    step: int
    loss: float
    primary_loss: float
    learning_rate: float
    validation: dict[str, float] | None


class Trainer:
    """Trains one affinity network; `run` yields `Progress`, `save` writes what `resume` and the export read."""

    def __init__(self, network: RSUNetConfig, sampler: PatchSampler, options: LoopOptions) -> None:
        if network.out_channels != len(sampler.offsets) or sampler.offsets[:3] != NEAREST:
            raise InvalidConfig(
                f"network: expected one channel per offset, the nearest neighbours first; "
                f"got {network.out_channels} channels for {sampler.offsets}"
            )
        if any(extent % factor for extent, factor in zip(sampler.patch, network.divisor, strict=True)):
            raise InvalidConfig(f"patch: expected multiples of {network.divisor}, got {sampler.patch}")
        self.options, self.sampler, self.step = options, sampler, 0
        self.device = _device(options.device)
        self.bf16 = _use_bf16(options.precision, self.device)
        torch.manual_seed(sampler.seed)
        self.network = RSUNet(network).to(self.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.averaged = deepcopy(self.network).eval()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )

    def run(self, validation: tuple[LabelledVolume, ...] = ()) -> Iterator[Progress]:
        """Train from the current step to the last; the next batch is made while the current one is learnt."""
        with ThreadPoolExecutor(1) as maker:
            upcoming = maker.submit(self.sampler.batch, self.step, self.options.batch_size)
            while self.step < self.options.steps:
                batch = upcoming.result()
                if self.step + 1 < self.options.steps:
                    upcoming = maker.submit(self.sampler.batch, self.step + 1, self.options.batch_size)
                loss, primary = self._learn(batch)
                self.step += 1
                due = self.step % self.options.validate_every == 0 or self.step == self.options.steps
                scores = self.validate(validation) if validation and due else None
                yield Progress(self.step, loss, primary, self.options.learning_rate_at(self.step - 1), scores)

    def validate(self, volumes: tuple[LabelledVolume, ...]) -> dict[str, float]:
        """Score the averaged weights on unaugmented patches that tile the volumes.

        Returns the mean balanced loss of the nearest-neighbour edges, and their balanced error (mean over both
        classes of the fraction on the wrong side of 0.5).
        """
        losses, wrong = [], np.zeros(2)
        for volume in volumes:
            for batch, mask in self._tiles(volume):
                with torch.no_grad(), self._autocast():
                    logits = self.averaged(self._input(batch.image)).float().cpu()
                weights, targets = torch.from_numpy(batch.weights), torch.from_numpy(batch.targets)
                losses.append(float(_mean_loss(logits[:, :3], targets[:, :3], weights[:, :3])))
                miss = ((logits[:, :3] > 0) != (targets[:, :3] > 0.5)).numpy()
                known, truth = mask[:, :3] > 0, batch.targets[:, :3] > 0.5
                wrong += [miss[known & truth].mean(), miss[known & ~truth].mean()]
        count = len(losses)
        return {"loss": float(np.mean(losses)), "balanced_error": float(wrong.mean() / count)}

    def save(self, path: Path, voxel_size_nm: VoxelSize, provenance: dict[str, Any]) -> None:
        """Write a checkpoint in one move: a reader sees the old file or the new one, never half of either."""
        content = {
            "network": {"family": "rsunet", "config": asdict(self.network.config)},
            "state": self.averaged.state_dict(),
            "offsets": [list(offset) for offset in self.sampler.offsets],
            "normalisation": {"shift": 255 * SHIFT, "scale": SCALE / 255},
            "voxel_size_nm": list(voxel_size_nm),
            "step": self.step,
            "provenance": provenance,
            "resume": {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()},
        }
        partial = path.with_name(path.name + ".partial")
        torch.save(content, partial)
        os.replace(partial, path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint; raises `InvalidModel` where it is damaged or belongs to another network."""
        content = read_checkpoint(path)
        if content["network"]["config"] != asdict(self.network.config):
            raise InvalidModel(
                f"{path}: the checkpoint's network {content['network']['config']} is not the configured one"
            )
        self.network.load_state_dict(content["resume"]["network"])
        self.averaged.load_state_dict(content["state"])
        self.optimizer.load_state_dict(content["resume"]["optimizer"])
        self.step = int(content["step"])

    def _learn(self, batch: Batch) -> tuple[float, float]:
        self.network.train()
        if self.options.cooling(self.step):
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.eval()
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate_at(self.step)
        with self._autocast():
            logits = self.network(self._input(batch.image))
        targets, weights = (torch.from_numpy(part).to(self.device) for part in (batch.targets, batch.weights))
        primary = _mean_loss(logits[:, :3].float(), targets[:, :3], weights[:, :3])
        loss = primary
        if logits.shape[1] > 3:
            auxiliary = _mean_loss(logits[:, 3:].float(), targets[:, 3:], weights[:, 3:])
            loss = primary + self.options.auxiliary_weight * auxiliary
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm)
        self.optimizer.step()
        self._average()
        return float(loss.detach()), float(primary.detach())

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.options.average_decay, (1 + self.step) / (10 + self.step))
        for kept, new in zip(self.averaged.state_dict().values(), self.network.state_dict().values(), strict=True):
            if kept.dtype.is_floating_point:
                kept.lerp_(new, 1 - keep)
            else:
                kept.copy_(new)

    def _tiles(self, volume: LabelledVolume) -> Iterator[tuple[Batch, np.ndarray[Any, Any]]]:
        divisor = self.network.config.divisor
        counts = [-(-n // VALIDATION_TILE) for n in volume.image.shape]
        patch = [n // k - (n // k) % d for n, k, d in zip(volume.image.shape, counts, divisor, strict=True)]
        starts = [range(0, n - p + 1, p) for p, n in zip(patch, volume.image.shape, strict=True)]
        for z in starts[0]:
            for y in starts[1]:
                for x in starts[2]:
                    cut = (slice(z, z + patch[0]), slice(y, y + patch[1]), slice(x, x + patch[2]))
                    image = volume.image[cut].astype(np.float32) / np.float32(255)
                    targets, mask = affinity_targets(
                        volume.labels[cut], self.sampler.offsets, boundary_voxels=self.sampler.boundary_voxels
                    )
                    weights = balance_weights(targets, mask, exponent=self.sampler.balance)
                    yield Batch(image[None], targets[None], weights[None]), mask[None]

    def _input(self, image: np.ndarray[Any, Any]) -> torch.Tensor:
        normalised = (torch.from_numpy(image)[:, None] - SHIFT) * SCALE
        return normalised.to(self.device, memory_format=torch.channels_last_3d)

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            yield


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing anything in it; raises `InvalidModel` where it is missing or damaged."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        content["network"]["config"] = {key: _frozen(value) for key, value in content["network"]["config"].items()}
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, UnpicklingError) as error:
        raise InvalidModel(f"{path}: not a readable petavoxel checkpoint ({error})") from error
    return content


def _frozen(value: object) -> object:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _mean_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses * weights).sum() / weights.sum().clamp(min=1.0)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("training: device 'cuda' was asked for, and there is none")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _use_bf16(precision: str, device: torch.device) -> bool:
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    supported: Callable[[], bool] = torch.ops.mkldnn._is_mkldnn_bf16_supported
    return bool(supported())
