"""Training on several devices or machines: Ray Train starts the processes, and `services.training.learn` runs in each.

The process group (gloo on processors, NCCL on GPUs) is used for one thing, the sum that `models.training.share` needs;
what is learnt is therefore the same, to rounding, with any number of workers.
"""

from __future__ import annotations

import logging
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2.api.exceptions import TrainingFailedError

from infra.cluster import cluster_resources
from models.errors import InvalidConfig, PetavoxelError, RuntimeUnavailable
from models.training.loop import Progress
from models.training.share import Share
from services.training import TrainConfig, check_claim, learn, progress_bar

logger = logging.getLogger(__name__)

FAILURES = 3
"""Deaths of workers that one call survives; the same command goes on after more."""
LOOK_S = 0.5
"""How often the progress is asked for."""
BOARD_S = 60.0
"""How long the board may take to answer; its node may be lost, which ends neither the run nor its report."""


@dataclass(frozen=True)
class Workers:
    """How many processes learn together, each with so many threads of a processor, or a GPU where there are some."""

    count: int
    threads: int = 1


def train_on_workers(config: TrainConfig, folder: Path, data: Path, workers: Workers) -> Path:
    """Train as `services.training.train` does, in processes on the Ray that this process has joined.

    `folder` and `data` lie on a file system that all workers share. Returns the checkpoint's path; a worker that dies
    is started again with all others, and the run goes on from its last checkpoint.

    Raises `InvalidConfig` for a batch that the workers cannot share, `RuntimeUnavailable` where the cluster has no room
    for them or they die again and again, and what `services.training.train` raises.
    """
    Share(0, workers.count).patches(config.loop.batch_size)
    check_claim(config, folder)
    gpus = _gpus(config, workers)
    folder, state = folder.resolve(), folder.resolve() / "ray"
    board: Any = _Board.options(num_cpus=0).remote()  # type: ignore[attr-defined]
    given = {"config": config.model_dump(mode="json"), "folder": str(folder), "data": str(data.resolve())}
    trainer = TorchTrainer(
        _work,
        train_loop_config={**given, "threads": workers.threads, "board": board},
        scaling_config=ScalingConfig(
            num_workers=workers.count, use_gpu=gpus, resources_per_worker={"CPU": workers.threads, "GPU": int(gpus)}
        ),
        run_config=RunConfig(
            name="train", storage_path=str(state), failure_config=FailureConfig(max_failures=FAILURES)
        ),
    )
    failed: TrainingFailedError | None = None
    with progress_bar(config) as show, _shown(board, show):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Ray's of its own settings
                trainer.fit()
        except TrainingFailedError as error:
            failed = error
    mistake = _mistake(board)
    shutil.rmtree(state, ignore_errors=True)
    if mistake is not None:
        raise mistake
    if failed is not None:
        raise RuntimeUnavailable(
            f"{folder}: training failed {FAILURES + 1} times; the same command goes on: {_reason(failed)}"
        ) from failed
    return folder / "last.pt"


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes of the group; so are its gradients."""
    summed: torch.Tensor = _Total.apply(values)  # type: ignore[no-untyped-call]
    return summed


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, values: torch.Tensor) -> torch.Tensor:
        summed = values.detach().clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(_context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return total(gradient)


@ray.remote
class _Board:
    """What workers tell the process that waits for them: the progress, and a mistake that no new try would mend."""

    def __init__(self) -> None:
        self._latest: Progress | None = None
        self._mistake: PetavoxelError | None = None

    def show(self, progress: Progress) -> None:
        self._latest = progress

    def latest(self) -> Progress | None:
        return self._latest

    def tell(self, mistake: PetavoxelError) -> None:
        self._mistake = self._mistake or mistake

    def mistake(self) -> PetavoxelError | None:
        return self._mistake


def _work(given: dict[str, Any]) -> None:
    """What one worker does."""
    board, context = given["board"], get_context()
    if _mistake(board) is not None:
        return  # the group was started again; it would end the same way
    torch.set_num_threads(given["threads"])
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    share = Share(context.get_world_rank(), context.get_world_size(), total)
    try:
        config = TrainConfig.model_validate(given["config"])
        learn(config, Path(given["folder"]), Path(given["data"]), board.show.remote, share)
    except PetavoxelError as error:
        _asked(board.tell.remote(error))
        raise  # Ray ends the others, which wait for a sum, and starts all once more


def _mistake(board: Any) -> PetavoxelError | None:
    """The mistake that was told; None also where the board is lost: then Ray's own report has to do."""
    told: PetavoxelError | None = _asked(board.mistake.remote())
    return told


def _asked(answer: Any) -> Any:
    """What the board answers, None where it is lost."""
    try:
        return ray.get(answer, timeout=BOARD_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        logger.warning("the workers' reports are lost: %s", type(error).__name__)
        return None


def _gpus(config: TrainConfig, workers: Workers) -> bool:
    """Whether workers get a GPU each.

    Raises `InvalidConfig` where a GPU is asked for and there is none, `RuntimeUnavailable` where there is no room.
    """
    held = cluster_resources()
    gpus, cpus = int(held["GPU"]), int(held["CPU"])
    if config.loop.device == "cuda" and not gpus:
        raise InvalidConfig("training: device 'cuda' was asked for, and the cluster has none")
    wanted = gpus > 0 and config.loop.device != "cpu"
    if wanted and workers.count > gpus:
        raise RuntimeUnavailable(f"training: expected at most {gpus} workers, a GPU each, got {workers.count}")
    if workers.count * workers.threads > cpus:
        raise RuntimeUnavailable(
            f"training: expected at most {cpus} processors, {workers.count} workers of {workers.threads} threads need "
            f"{workers.count * workers.threads}"
        )
    return wanted


@contextmanager
def _shown(board: Any, show: Callable[[Progress], None]) -> Iterator[None]:
    """Show the workers' progress until the block ends."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_S):
            latest: Progress | None = _asked(board.latest.remote())
            if latest is not None:
                show(latest)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _reason(error: TrainingFailedError) -> str:
    text = str(error).strip().splitlines()
    return text[-1][:300] if text else type(error).__name__
