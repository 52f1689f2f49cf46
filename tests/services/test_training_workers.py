"""Training on real Ray workers: what two learn is what one learns, also after one of them died."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
import yaml
from sheets import write_sheets

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
    write_sheets(tmp_path / "data.npz")
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


def kill(folder: Path, name: str) -> list[int]:
    """Kill one process of that name as soon as the run in `folder` has a checkpoint."""
    give_up = time.monotonic() + 600
    while not (folder / "last.pt").exists() and time.monotonic() < give_up:
        time.sleep(0.02)
    found = [p for p in psutil.Process().children(recursive=True) if name in " ".join(p.cmdline())]
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
        killed = killer.submit(kill, data / "killed", "RayTrainWorker")
        train_on_workers(long, data / "killed", data, Workers(2))
        assert killed.result()
    check_same_bytes(data / "two", data / "killed")
    with ThreadPoolExecutor(1) as killer:  # and to the end where what the workers tell is lost
        killed = killer.submit(kill, data / "silent", "ray::_Board")
        train_on_workers(long, data / "silent", data, Workers(2))
        assert killed.result()
    check_same_bytes(data / "two", data / "silent")
    train(config(steps=61, validate_every=30), data / "two", data)  # and one process goes on where two have been
    assert read_checkpoint(data / "two" / "last.pt")["step"] == 61


@pytest.mark.usefixtures("joined")
def test_mistakes_are_told_in_their_own_words(data: Path) -> None:
    with pytest.raises(InvalidConfig, match="2 workers share equally, got 3"):
        train_on_workers(config(steps=2, batch_size=3), data / "odd", data, Workers(2))
    with pytest.raises(RuntimeUnavailable, match="2 workers of 40 threads need 80"):
        train_on_workers(config(steps=2), data / "large", data, Workers(2, 40))
    (data / "other").mkdir()
    another = config(steps=2).model_copy(update={"name": "another"})
    (data / "other" / "config.yaml").write_text(yaml.safe_dump(another.model_dump(mode="json")))
    with pytest.raises(RunConflict, match="another configuration; different: name"):
        train_on_workers(config(steps=2), data / "other", data, Workers(2))
    for damaged in ("name: [", "\xff", "", "name: another"):
        (data / "other" / "config.yaml").write_text(damaged, encoding="latin-1")
        with pytest.raises(InvalidConfig, match=r"config\.yaml: (not YAML|.*Field required|file: .*dictionary)"):
            train_on_workers(config(steps=2), data / "other", data, Workers(2))
    assert ray.is_initialized()
