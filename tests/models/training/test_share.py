"""Two processes with half a batch each learn what one learns with all of it; threads stand in for the processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.errors import InvalidConfig
from models.geometry import NEAREST
from models.networks.rsunet import RSUNetConfig
from models.training.augmentation import AugmentationOptions
from models.training.loop import LoopOptions, Trainer
from models.training.sampler import LabelledVolume, PatchSampler
from models.training.share import Share, share_normalisation

OFFSETS = (*NEAREST, (0, 0, -3))
NM = (10.0, 10.0, 10.0)
SEEDED = threading.Lock()


class Meeting:
    """Sums tensors of threads that call it together, forwards and backwards."""

    def __init__(self, world: int) -> None:
        self._barrier = threading.Barrier(world, timeout=60)
        self._held: list[torch.Tensor] = []
        self._lock = threading.Lock()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        with self._lock:
            self._held.append(values)
        self._barrier.wait()
        total = torch.stack(self._held).double().sum(0).to(values.dtype)
        if self._barrier.wait() == 0:
            self._held.clear()
        self._barrier.wait()
        return total

    def total(self) -> Callable[[torch.Tensor], torch.Tensor]:
        meeting = self

        class Total(torch.autograd.Function):
            @staticmethod
            def forward(_context: Any, values: torch.Tensor) -> torch.Tensor:
                return meeting.sum(values)

            @staticmethod
            def backward(_context: Any, gradient: torch.Tensor) -> torch.Tensor:
                return meeting.sum(gradient)

        return Total.apply


def together(world: int, work: Callable[[Share], Any]) -> list[Any]:
    total = Meeting(world).total()
    with ThreadPoolExecutor(world) as pool:
        made = [pool.submit(work, Share(rank, world, total)) for rank in range(world)]
        return [each.result() for each in made]


@pytest.fixture(scope="module")
def volumes() -> tuple[LabelledVolume, ...]:
    """Two volumes of slabs; in the second most is unlabelled, so patches have unlike weights."""
    labels = np.repeat(np.arange(1, 9), 6)[None, None, :].repeat(30, 0).repeat(36, 1)
    image = np.broadcast_to(np.where(np.arange(48) % 6 == 0, 40, 180).astype(np.uint8), labels.shape).copy()
    sparse = labels.copy()
    sparse[:, 6:] = 0
    return LabelledVolume(image, labels, NM), LabelledVolume(255 - image, sparse, NM)


def trainer(volumes: tuple[LabelledVolume, ...], share: Share | None = None, **given: Any) -> Trainer:
    torch.set_num_threads(1)
    sampler = PatchSampler(volumes, OFFSETS, (16, 16, 16), AugmentationOptions(), 1, 0.2, 1.0, seed=11)
    options = {"steps": 4, "batch_size": 4, "warmup_steps": 4, "validate_every": 2, "precision": "fp32", **given}
    with SEEDED:  # the threads have one random state in common, processes have not
        return Trainer(RSUNetConfig.isotropic(4, (4, 6)), sampler, LoopOptions(**options), share)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("frozen", [0.0, 1.0])
def test_gradients_are_those_of_the_whole_batch(volumes: tuple[LabelledVolume, ...], world: int, frozen: float) -> None:
    options = {"frozen_fraction": frozen, "maximin_weight": 0.3, "clip_norm": 1e9}

    def step(share: Share | None) -> tuple[float, list[torch.Tensor], list[torch.Tensor]]:
        made = trainer(volumes, share, **options)
        progress = next(made.run())
        gradients = [p.grad.clone() for p in made.network.parameters() if p.grad is not None]
        return progress.loss, gradients, [b.clone() for b in made.network.buffers()]

    loss, gradients, buffers = step(None)
    scale = max(float(gradient.abs().max()) for gradient in gradients)
    for other_loss, other_gradients, other_buffers in together(world, step):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        for a, b in zip(gradients, other_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * scale)
        for a, b in zip(buffers, other_buffers, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_runs_agree_and_every_process_holds_the_same_weights(volumes: tuple[LabelledVolume, ...]) -> None:
    def run(share: Share | None) -> tuple[list[Any], list[bytes]]:
        made = trainer(volumes, share)
        seen = list(made.run(volumes[:1]))
        return seen, [value.numpy().tobytes() for value in made.network.state_dict().values()]

    alone, _ = run(None)
    runs = together(2, run)
    assert runs[0] == runs[1]
    for one, two in zip(alone, runs[0][0], strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-3)
        assert (two.validation is None) == (one.validation is None)
        assert two.improved == one.improved
    assert runs[0][0][-1].validation["loss"] == pytest.approx(alone[-1].validation["loss"], rel=1e-2)


def test_validation_is_shared_and_its_scores_are_the_same(volumes: tuple[LabelledVolume, ...]) -> None:
    three = (*volumes, volumes[0])
    for given in (three, three[:1]):
        alone = trainer(volumes).validate(given)
        for scores in together(2, lambda share, given=given: trainer(volumes, share).validate(given)):
            assert scores == pytest.approx(alone, rel=1e-6)


def test_patches_do_not_depend_on_who_makes_them(volumes: tuple[LabelledVolume, ...]) -> None:
    sampler = trainer(volumes).sampler
    whole = sampler.batch(3, 4)
    for first in (0, 2):
        part = sampler.batch(3, 2, first=first)
        np.testing.assert_array_equal(part.image, whole.image[first : first + 2])
        np.testing.assert_array_equal(part.weights, whole.weights[first : first + 2])
    assert not np.array_equal(whole.image[0], whole.image[1])


def test_batches_that_cannot_be_shared_are_refused(volumes: tuple[LabelledVolume, ...]) -> None:
    with pytest.raises(InvalidConfig, match="3 workers share equally, got 4"):
        trainer(volumes, Share(0, 3))
    with pytest.raises(InvalidConfig, match="BatchNorm2d"):
        share_normalisation(nn.Sequential(nn.BatchNorm2d(3)), Share(0, 2))
