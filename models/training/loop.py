"""The training loop: optimiser, learning-rate schedule, averaged weights, validation, checkpoints that resume exactly.

Patches follow from (seed, step), and a checkpoint holds every state the next step needs, so a run that was stopped
and resumed ends with the same bytes on the CPU.

The learning rate warms up and then follows its schedule. In the last part of the run the normalisation layers use
their running statistics, as inference does. What is kept as the result are exponentially
averaged weights.

References: I. Loshchilov, F. Hutter, arXiv:1608.03983 (cosine schedule), arXiv:1711.05101 (AdamW); for the loss of
maximin edges see `models.training.maximin`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models.errors import InvalidConfig, InvalidModel
from models.geometry import NEAREST, VoxelSize
from models.networks.convolution_choice import Measurements, choose_convolutions
from models.networks.family import Network, NetworkConfig
from models.networks.registry import build, described, frozen, read_config
from models.training.device import chosen_device, computes_in_bf16
from models.training.fit import check_fit
from models.training.maximin import maximin_weights
from models.training.sampler import Batch, LabelledVolume, PatchSampler
from models.training.share import Share, share_normalisation
from models.training.targets import INSIDE
from models.training.validation import edge_scores, inner, predict, section_scores, segmentation_scores

logger = logging.getLogger(__name__)

SHIFT, SCALE = 0.5, 4.0
"""A network sees (value - SHIFT) * SCALE of an image in [0, 1]."""

Schedule = Literal["cooldown", "cosine", "plateau"]


@dataclass(frozen=True)
class LoopOptions:
    """How long and how fast to train.

    Parameters
    ----------
    steps, batch_size
        Optimiser steps, and patches per step.
    learning_rate, weight_decay, warmup_steps, clip_norm
        AdamW; linear warm-up; gradient norm limit.
    schedule, cooldown_fraction
        "cooldown": constant, then linear to 0 over the last fraction of the steps. "cosine": half a cosine wave over
        all steps. "plateau": constant, times `plateau_factor` after every `plateau_patience` validations in a row
        without a lower VOI; needs validation volumes.
    plateau_patience, plateau_factor
        For the schedule "plateau".
    frozen_fraction
        The last fraction of the steps in which normalisation layers use their running statistics, as inference does.
    auxiliary_weight, maximin_weight
        Weights of the mean long-range loss and of the loss of maximin edges beside the mean nearest-neighbour loss.
    average_decay
        Decay of the exponential average of weights per step.
    precision
        "bf16", "fp32", or "auto": bf16 where the device computes in it natively.
    convolutions
        "direct", or "fastest": those that a Fourier transform does faster are found by measuring each layer as a run
        begins or goes on. The choice follows the clock, so runs are then equal to rounding, not to the bit.
    device
        "auto" (CUDA where present), "cpu" or "cuda".
    validate_every, checkpoint_every
        In steps.
    patience
        Stop after so many validations in a row without a lower VOI; 0: never.
    """

    steps: int
    batch_size: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    schedule: Schedule = "cooldown"
    plateau_patience: int = 2
    plateau_factor: float = 0.5
    cooldown_fraction: float = 0.3
    frozen_fraction: float = 0.3
    clip_norm: float = 1.0
    auxiliary_weight: float = 0.5
    maximin_weight: float = 0.0
    average_decay: float = 0.995
    precision: str = "auto"
    convolutions: Literal["direct", "fastest"] = "direct"
    device: str = "auto"
    validate_every: int = 200
    checkpoint_every: int = 100
    patience: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.validate_every, self.checkpoint_every) < 1:
            raise InvalidConfig("training: steps, batch_size, validate_every and checkpoint_every must be positive")
        if self.precision not in ("auto", "bf16", "fp32") or self.device not in ("auto", "cpu", "cuda"):
            raise InvalidConfig(f"training: unknown precision {self.precision!r} or device {self.device!r}")
        if self.convolutions not in ("direct", "fastest"):
            raise InvalidConfig(f"training: expected convolutions 'direct' or 'fastest', got {self.convolutions!r}")
        if self.schedule not in get_args(Schedule):
            raise InvalidConfig(f"training: expected schedule {', '.join(get_args(Schedule))}, got {self.schedule!r}")
        if self.plateau_patience < 1 or not 0 < self.plateau_factor < 1:
            raise InvalidConfig("training: expected plateau_patience of at least 1 and plateau_factor between 0 and 1")
        if min(self.auxiliary_weight, self.maximin_weight, self.patience) < 0:
            raise InvalidConfig("training: auxiliary_weight, maximin_weight and patience must be at least 0")
        if not 0 <= self.average_decay < 1 or not all(
            0 <= f <= 1 for f in (self.cooldown_fraction, self.frozen_fraction)
        ):
            raise InvalidConfig("training: cooldown_fraction, frozen_fraction and average_decay must be from 0 to 1")

    def learning_rate_at(self, step: int, reductions: int = 0) -> float:
        """Learning rate of step `step` (from 0), after so many reductions by the schedule "plateau"."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.schedule == "plateau":
            return self.learning_rate * warm * self.plateau_factor**reductions
        if self.schedule == "cosine":
            return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        cool = min(1.0, (self.steps - step) / max(1.0, self.cooldown_fraction * self.steps))
        return self.learning_rate * min(warm, cool)

    def frozen(self, step: int) -> bool:
        """Whether normalisation is frozen in step `step`."""
        return step >= self.steps * (1 - self.frozen_fraction)


@dataclass(frozen=True)
class Progress:
    """What the loop reports after each step: losses are means over edges; validation where it was due.

    `improved` says that the validation's VOI is the lowest so far.
    """

    step: int
    loss: float
    primary_loss: float
    learning_rate: float
    validation: dict[str, float] | None
    improved: bool = False


class Trainer:
    """Trains one affinity network; `run` yields `Progress`, `save` writes what `resume` and the export read.

    Processes with a `share` each learn their part of every batch; all hold the same weights after every step.
    """

    def __init__(
        self, network: NetworkConfig, sampler: PatchSampler, options: LoopOptions, share: Share | None = None
    ) -> None:
        check_fit(network, sampler)
        if options.maximin_weight and (sampler.offsets == INSIDE or any(network.margin)):
            raise InvalidConfig("training: maximin_weight is for affinities of networks without a margin")
        self.options, self.sampler, self.step = options, sampler, 0
        self.share = share or Share()
        self._patches = self.share.patches(options.batch_size)
        self.best_voi, self.without_gain, self.reductions = math.inf, 0, 0
        self.device = chosen_device(options.device)
        self.bf16 = computes_in_bf16(options.precision, self.device)
        torch.manual_seed(sampler.seed)
        self.network = build(network).to(self.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        share_normalisation(self.network, self.share)
        if options.convolutions == "fastest":
            with self._autocast():
                choose_convolutions(
                    self.network, self._input(np.zeros((1, *sampler.patch), np.float32)), Measurements()
                )
        self.averaged = deepcopy(self.network).eval()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )

    @property
    def stopped_early(self) -> bool:
        """Whether as many validations as `patience` allows have passed without a lower VOI."""
        return 0 < self.options.patience <= self.without_gain

    def run(self, validation: tuple[LabelledVolume, ...] = ()) -> Iterator[Progress]:
        """Train from the current step to the last; the next batch is made while the current one is learnt.

        Raises `InvalidConfig` where the schedule needs validation volumes and there are none.
        """
        if self.options.schedule == "plateau" and not validation:
            raise InvalidConfig(
                "training: the schedule 'plateau' follows the validation, and there are no volumes for it"
            )
        with ThreadPoolExecutor(1) as maker:
            upcoming = maker.submit(self._batch, self.step)
            while self.step < self.options.steps and not self.stopped_early:
                batch = upcoming.result()
                if self.step + 1 < self.options.steps:
                    upcoming = maker.submit(self._batch, self.step + 1)
                rate = self.options.learning_rate_at(self.step, self.reductions)
                loss, primary = self._learn(batch, rate)
                self.step += 1
                due = self.step % self.options.validate_every == 0 or self.step == self.options.steps
                scores = self.validate(validation) if validation and due else None
                improved = scores is not None and scores["voi"] < self.best_voi
                if scores is not None:
                    self.best_voi = min(self.best_voi, scores["voi"])
                    self.without_gain = 0 if improved else self.without_gain + 1
                    self.reductions += self.without_gain > 0 and self.without_gain % self.options.plateau_patience == 0
                yield Progress(self.step, loss, primary, rate, scores, improved)

    def validate(self, volumes: tuple[LabelledVolume, ...]) -> dict[str, float]:
        """Score the averaged weights on whole volumes; means over them of `edge_scores` and `segmentation_scores`."""
        own = volumes[self.share.rank :: self.share.world]
        scores = [self._score(volume) for volume in own or volumes[:1]]  # who has none still has to know the names
        sums = torch.tensor(
            [sum(score[name] for score in scores) * bool(own) for name in scores[0]], dtype=torch.float64
        )
        means = self.share.total(sums.to(self.device)) / len(volumes)
        return dict(zip(scores[0], means.tolist(), strict=True))

    def _score(self, volume: LabelledVolume) -> dict[str, float]:
        config, sampler = self.network.config, self.sampler
        probabilities = predict(self._probabilities, volume.image, config.divisor, config.margin)
        edges = edge_scores(
            probabilities,
            volume.labels,
            boundary_voxels=sampler.boundary_voxels,
            balance=sampler.balance,
            offsets=INSIDE if sampler.offsets == INSIDE else NEAREST,
        )
        of_segments = section_scores if sampler.offsets == INSIDE else segmentation_scores
        return {**edges, **of_segments(probabilities, volume.labels)}

    def initialise(self, path: Path) -> None:
        """Begin with a checkpoint's averaged weights; raises `InvalidModel` if damaged or of an unfit network."""
        trained = _trained(read_checkpoint(path), path)
        try:
            self.network.begin_with(trained)
        except InvalidModel as error:
            raise InvalidModel(f"{path}: {error}") from error
        self.averaged.load_state_dict(self.network.state_dict())

    def recur(self, path: Path) -> None:
        """Take a checkpoint's averaged weights for the first network of a recursion; raises as `initialise` does."""
        content = read_checkpoint(path)
        for network in (self.network, self.averaged):
            try:
                network.get_submodule("first").load_state_dict(content["state"])
            except (AttributeError, RuntimeError) as error:
                raise InvalidModel(f"{path}: not the first network of this recursion ({error})") from error

    def save(self, path: Path, voxel_size_nm: VoxelSize, provenance: dict[str, Any]) -> None:
        """Write a checkpoint in one move: a reader sees the old file or the new one, never half of either."""
        content = {
            "network": described(self.network.config),
            "state": self.averaged.state_dict(),
            "offsets": [list(offset) for offset in self.sampler.offsets],
            "normalisation": {"shift": 255 * SHIFT, "scale": SCALE / 255},
            "voxel_size_nm": list(voxel_size_nm),
            "step": self.step,
            "provenance": provenance,
            "resume": {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "best_voi": self.best_voi,
                "without_gain": self.without_gain,
                "reductions": self.reductions,
            },
        }
        partial = path.with_name(path.name + ".partial")
        torch.save(content, partial)
        os.replace(partial, path)

    def resume(self, path: Path) -> dict[str, Any]:
        """Go on from a checkpoint and return its provenance; raises `InvalidModel` as `initialise` does."""
        content = self._read(path)
        held = content["resume"]
        self.network.load_state_dict(held["network"])
        self.averaged.load_state_dict(content["state"])
        self.optimizer.load_state_dict(held["optimizer"])
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.options.weight_decay  # it may have been changed, as the rate may
        self.best_voi, self.without_gain = float(held["best_voi"]), int(held["without_gain"])
        self.reductions = int(held["reductions"])
        self.step = int(content["step"])
        return dict(content["provenance"])

    def _read(self, path: Path) -> dict[str, Any]:
        content = read_checkpoint(path)
        if content["network"] != described(self.network.config):
            raise InvalidModel(f"{path}: the checkpoint's network {content['network']} is not the configured one")
        return content

    def _batch(self, step: int) -> Batch:
        return self.sampler.batch(step, self._patches, first=self.share.rank * self._patches)

    def _learn(self, batch: Batch, rate: float) -> tuple[float, float]:
        self.network.train()
        if self.options.frozen(self.step):
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.eval()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self._autocast():
            logits = self.network(self._input(batch.image))
        targets, weights = (
            torch.from_numpy(inner(part, self.network.config.margin)).to(self.device)
            for part in (batch.targets, batch.weights)
        )
        primary = _mean_loss(logits[:, :3].float(), targets[:, :3], weights[:, :3], self.share)
        loss = primary
        if logits.shape[1] > 3:
            auxiliary = _mean_loss(logits[:, 3:].float(), targets[:, 3:], weights[:, 3:], self.share)
            loss = primary + self.options.auxiliary_weight * auxiliary
        if self.options.maximin_weight:
            loss = loss + self.options.maximin_weight * self._maximin_loss(logits[:, :3].float(), targets, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.share.sum_gradients(self.network.parameters())
        nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm)
        self.optimizer.step()
        self._average()
        whole, nearest = self.share.total(torch.stack([loss.detach(), primary.detach()])).tolist()
        return whole, nearest

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.options.average_decay, (1 + self.step) / (10 + self.step))
        for kept, new in zip(self.averaged.state_dict().values(), self.network.state_dict().values(), strict=True):
            if kept.dtype.is_floating_point:
                kept.lerp_(new, 1 - keep)
            else:
                kept.copy_(new)

    def _maximin_loss(self, logits: torch.Tensor, targets: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross entropy of the nearest-neighbour edges, weighted by the voxel pairs that hang on them."""
        affinities = torch.sigmoid(logits.detach()).cpu().numpy()
        shares = np.stack(
            [
                maximin_weights(predicted, truth[:3], (known[:3] > 0).astype(np.float32), objects)
                for predicted, truth, known, objects in zip(
                    affinities, batch.targets, batch.weights, batch.objects, strict=True
                )
            ]
        )
        losses = functional.binary_cross_entropy_with_logits(logits, targets[:, :3], reduction="none")
        return (losses * torch.from_numpy(shares).to(self.device)).sum() / (2 * self.options.batch_size)

    def _probabilities(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Primary probabilities (c, z, y, x) of the averaged weights for an image (z, y, x), less the margin."""
        with torch.no_grad(), self._autocast():
            logits: torch.Tensor = self.averaged(self._input(image[None]))
        probabilities: np.ndarray[Any, Any] = torch.sigmoid(logits[0, :3].float()).cpu().numpy()
        return probabilities

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
        content["network"]["config"] = frozen(content["network"]["config"])
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, EOFError, UnpicklingError) as error:
        raise InvalidModel(f"{path}: not a readable petavoxel checkpoint ({error})") from error
    return content


def _trained(content: dict[str, Any], path: Path) -> Network:
    network = build(read_config(**content["network"]))
    try:
        network.load_state_dict(content["state"])
    except (KeyError, RuntimeError) as error:
        raise InvalidModel(f"{path}: the checkpoint does not describe its network ({error})") from error
    return network


def _mean_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, share: Share) -> torch.Tensor:
    """This process's part of the weighted mean over the whole batch."""
    losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses * weights).sum() / share.total(weights.sum()).clamp(min=1.0)
