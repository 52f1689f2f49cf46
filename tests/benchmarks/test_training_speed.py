"""Steps per second of the training loop beside the same in fp32 with torch's default memory layout, and on 2 threads.

`pytest -m slow -s tests/benchmarks/test_training_speed.py` prints the table. Contenders take turns, so that other load
on the machine meets all of them alike; processor time is what other load changes least.
"""

import os
import time
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.geometry import NEAREST
from models.networks.rsunet import RSUNetConfig
from models.training.augmentation import AugmentationOptions
from models.training.loop import LoopOptions, Trainer
from models.training.sampler import Batch, LabelledVolume, PatchSampler
from models.training.targets import long_range_offsets

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

TURNS = int(os.environ.get("PETAVOXEL_TURNS", "7"))
EAGER_TARGET, THREADS_TARGET = 1.7, 1.8
WIDTHS = (16, 32, 64, 96)
BATCH = 2
"""Patches per step, as in the recipes of affinity networks."""
NM = (10.0, 10.0, 10.0)


class Plain(Trainer):
    """The loop with torch's default memory layout."""

    def __init__(self, network: RSUNetConfig, sampler: PatchSampler, options: LoopOptions) -> None:
        super().__init__(network, sampler, options)
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def _input(self, image: NDArray[np.float32]) -> torch.Tensor:
        return super()._input(image).contiguous(memory_format=torch.contiguous_format)


@dataclass
class Contender:
    """A trainer that learns one given batch again and again, and the seconds of each step: wall clock, processor."""

    trainer: Trainer
    threads: int = 1
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def learn(self, batch: Batch) -> None:
        torch.set_num_threads(self.threads)
        wall, processor = time.perf_counter(), time.process_time()
        self.trainer._learn(batch, 1e-3)
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)


@pytest.fixture
def sampler() -> PatchSampler:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(1, 9), 10)[None, None, :].repeat(80, 0).repeat(80, 1)
    volume = LabelledVolume(rng.integers(0, 256, labels.shape, np.uint8), labels, NM)
    offsets = NEAREST + long_range_offsets(NM)
    return PatchSampler((volume,), offsets, (64, 64, 64), AugmentationOptions(), 1, 0.0, 0.5, seed=0)


def in_turns(contenders: dict[str, Contender], batch: Batch) -> None:
    """Everyone learns the batch once per turn; the first turn, which compiles, does not count. Prints the medians."""
    threads = torch.get_num_threads()
    try:
        for turn in range(TURNS + 1):
            for one in contenders.values():
                one.learn(batch)
                if not turn:
                    one.wall.clear(), one.processor.clear()
    finally:
        torch.set_num_threads(threads)
    voxels = batch.image.size / 1e6
    print(f"\nload {os.getloadavg()[0]:.0f}, {len(os.sched_getaffinity(0))} cores, {TURNS} turns")
    for name, one in contenders.items():
        wall, processor = median(one.wall), median(one.processor)
        print(
            f"{name:24s} {voxels / wall:.3f} Mvoxel/s (best {voxels / min(one.wall):.3f}), "
            f"{voxels / processor:.3f} per processor second"
        )


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over turns of the one's time in units of the other's."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def test_bf16_channels_last_beside_eager_fp32(sampler: PatchSampler) -> None:
    network = RSUNetConfig.isotropic(len(sampler.offsets), WIDTHS)
    contenders = {
        "fp32, default layout": Contender(Plain(network, sampler, LoopOptions(1000, precision="fp32", device="cpu"))),
        "fp32, channels last": Contender(Trainer(network, sampler, LoopOptions(1000, precision="fp32", device="cpu"))),
        "bf16, channels last": Contender(Trainer(network, sampler, LoopOptions(1000, device="cpu"))),
    }
    if not contenders["bf16, channels last"].trainer.bf16:
        pytest.skip("this processor has no native bf16")
    in_turns(contenders, sampler.batch(0, BATCH))
    first, *_, last = contenders.values()
    reached = ratio(first.processor, last.processor)
    print(f"processor time: {reached:.2f} x (target {EAGER_TARGET}); wall clock: {ratio(first.wall, last.wall):.2f} x")
    assert reached >= EAGER_TARGET


def test_two_threads_beside_one(sampler: PatchSampler) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    network = RSUNetConfig.isotropic(len(sampler.offsets), WIDTHS)
    contenders = {
        f"{threads} threads": Contender(Trainer(network, sampler, LoopOptions(1000, device="cpu")), threads)
        for threads in (1, 2)
    }
    in_turns(contenders, sampler.batch(0, BATCH))
    one, two = contenders.values()
    best = min(one.wall) / min(two.wall)
    print(f"wall clock: median {ratio(one.wall, two.wall):.2f} x, best of each {best:.2f} x (target {THREADS_TARGET})")
    if os.getloadavg()[0] < len(os.sched_getaffinity(0)):  # otherwise other processes have the second core
        assert best >= THREADS_TARGET
