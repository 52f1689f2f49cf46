"""Training on real Ray workers: what two learn is what one learns, also after one of them died."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch

from infra.cluster import cluster
from models.errors import InvalidConfig, RunConflict, RuntimeUnavailable
from models.training.loop import read_checkpoint
from services.training import TrainConfig, train
from services.training_workers import Workers, train_on_workers

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

CONFIG: dict[str, Any] = {
    "name": "small",
    "voxel_size_nm": [10, 10, 10],
    "train": [{"image": "data.npz:raw", "labels": "data.npz:labels", "box": "0:24,0:30,0:30"}],
    "validation": [{"image": "data.npz:raw", "labels": "data.npz:labels", "box": "24:40,0:30,0:30"}],
    "network": {"family": "rsunet", "preset": "isotropic", "widths": [4, 6]},
    "patch": [16, 16, 16],
    "seed": 3,
    "augmentation": {"noise": 0.02},
}
LOOP = {"batch_size": 2, "warmup_steps": 2, "cooldown_fraction": 0.0, "validate_every": 2, "checkpoint_every": 2,
        "frozen_fraction": 0.0, "precision": "fp32", "device": "cpu"}  # fmt: skip


def config(**loop: Any) -> TrainConfig:
    return TrainConfig.model_validate({**CONFIG, "loop": {**LOOP, **loop}})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    labels = np.repeat(np.arange(1, 7, dtype=np.uint32), 5)[None, None, :].repeat(40, 0).repeat(30, 1)
    raw = np.where(np.arange(30) % 5 == 0, 50, 180).astype(np.uint8)
    np.savez_compressed(tmp_path / "data.npz", raw=np.broadcast_to(raw, labels.shape), labels=labels)
    return tmp_path


@pytest.fixture(scope="module")
def joined() -> Iterator[None]:
    with cluster(cpus=2):
        yield


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = read_checkpoint(folder / "last.pt")["resume"]["network"]
    return state


def check_same_bytes(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    for name, value in first.items():
        assert value.numpy().tobytes() == second[name].numpy().tobytes(), name


def kill_a_worker(folder: Path) -> list[int]:
    """Kill one worker as soon as the run in `folder` has a checkpoint."""
    give_up = time.monotonic() + 600
    while not (folder / "last.pt").exists() and time.monotonic() < give_up:
        time.sleep(0.02)
    found = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
    for process in found[:1]:
        process.send_signal(signal.SIGKILL)
    return [process.pid for process in found[:1]]


@pytest.mark.usefixtures("joined")
def test_two_workers_learn_what_one_does_resume_and_survive_a_death(data: Path) -> None:
    torch.set_num_threads(1)
    train(config(steps=4), data / "one", data)
    assert train_on_workers(config(steps=4), data / "two", data, Workers(2)) == data / "two" / "last.pt"
    one, two = weights(data / "one"), weights(data / "two")
    for name, value in two.items():
        torch.testing.assert_close(value, one[name], rtol=1e-5, atol=1e-6, msg=name)
    assert sorted(path.name for path in (data / "two").iterdir()) == ["best.pt", "config.yaml", "last.pt", "logs"]
    assert len(list((data / "two" / "logs").iterdir())) == 1, "one worker writes"
    long = config(steps=60, validate_every=30)
    train_on_workers(long, data / "two", data, Workers(2))  # goes on from step 4
    with ThreadPoolExecutor(1) as killer:
        killed = killer.submit(kill_a_worker, data / "killed")
        train_on_workers(long, data / "killed", data, Workers(2))
        assert killed.result()
    check_same_bytes(data / "two", data / "killed")
    train(config(steps=61, validate_every=30), data / "two", data)  # and one process goes on where two have been
    assert read_checkpoint(data / "two" / "last.pt")["step"] == 61


@pytest.mark.usefixtures("joined")
def test_mistakes_are_told_in_their_own_words(data: Path) -> None:
    with pytest.raises(InvalidConfig, match="2 workers share equally, got 3"):
        train_on_workers(config(steps=2, batch_size=3), data / "odd", data, Workers(2))
    with pytest.raises(RuntimeUnavailable, match="2 workers of 40 threads need 80"):
        train_on_workers(config(steps=2), data / "large", data, Workers(2, 40))
    (data / "other").mkdir()
    (data / "other" / "config.yaml").write_text("name: another\n")
    with pytest.raises(RunConflict, match="another configuration"):
        train_on_workers(config(steps=2), data / "other", data, Workers(2))
    assert ray.is_initialized()
