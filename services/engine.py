"""Decides what computes a run's predictions where its workers are, and holds every worker to it.

A driver often sits on a node without a GPU, so it cannot know what "auto" means. Where the cluster has GPUs, or is said
to get some, a task on one of them looks what is there; else one on processors does. Engines differ in the last bits,
so the answer is part of the predictions' key, an interrupted run goes on with what it was begun with or is refused,
and a worker that has something else refuses its chunks.
"""

from __future__ import annotations

import importlib.util
import logging
import socket
from dataclasses import dataclass, replace

import ray

from infra.cluster import alone, cluster_resources
from infra.registry import fetch
from infra.runtimes import cuda_driver, tensorrt_modules
from infra.runtimes.session import Session, chosen_runtime, open_session
from infra.settings import current_settings
from models.errors import PetavoxelError, RuntimeUnavailable
from services.run import Engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """What is asked for: a model (see `infra.registry.locate`), runtime and precision, each perhaps "auto", and
    threads of a worker on processors."""

    model: str
    runtime: str
    precision: str
    threads: int


def find_engine(wanted: Wanted) -> Engine:
    """The engine that this cluster's workers have; this machine's where the process belongs to no cluster.

    Raises `RuntimeUnavailable` where they have none such, or no worker comes within `PETAVOXEL_STALL_S`.
    """
    if not ray.is_initialized():
        return look(replace(wanted, runtime=chosen_runtime(wanted.runtime)))
    gpus = cluster_resources()["GPU"]
    if wanted.runtime == "tensorrt" and not gpus:
        raise RuntimeUnavailable(
            "tensorrt: the cluster has no GPU; PETAVOXEL_CLUSTER_GPUS says how many one gets that grows"
        )
    gpu = gpus > 0 and wanted.runtime != "openvino"
    if wanted.runtime == "auto" and not gpu:
        wanted = replace(wanted, runtime="openvino")
    if not gpu and alone():
        return look(wanted)
    return _asked(wanted, gpu)


def look(wanted: Wanted) -> Engine:
    """Open the network here, on a GPU where the runtime is "auto", and say what runs it."""
    runtime = _gpu_runtime() if wanted.runtime == "auto" else wanted.runtime
    session = open_session(fetch(wanted.model), runtime=runtime, precision=wanted.precision, threads=wanted.threads)
    return engine_of(runtime, session)


def engine_of(runtime: str, session: Session) -> Engine:
    """The engine behind a session."""
    gpu = runtime == "tensorrt" or (runtime == "torch" and not session.device.startswith("CPU"))
    name = f"{session.engine} on {session.device}" if gpu else session.engine
    return Engine(runtime, session.precision, name, gpu, session.device)  # type: ignore[arg-type]


def check_engine(expected: Engine, session: Session) -> None:
    """Raise `RuntimeUnavailable` where a session is not what the run's predictions are made with."""
    found = engine_of(expected.runtime, session)
    if not expected.same(found):
        raise RuntimeUnavailable(
            f"{socket.gethostname()}: the run's predictions come from {expected}, this worker has {found}; "
            "their roundings differ, so one run needs workers of one kind"
        )


def _gpu_runtime() -> str:
    if tensorrt_modules.usable():
        return "tensorrt"
    if importlib.util.find_spec("torch") and cuda_driver.device_count():
        return "torch"
    raise RuntimeUnavailable(
        f"{socket.gethostname()}: the cluster gave this worker a GPU, but no runtime finds one (TensorRT, torch); "
        "--runtime openvino predicts on processors"
    )


def _asked(wanted: Wanted, gpu: bool) -> Engine:
    """Ask a task that is placed as the workers will be."""
    limit = current_settings().stall_s
    task = ray.remote(_look_there).options(
        num_cpus=1 if gpu else wanted.threads, num_gpus=1 if gpu else 0, max_retries=3, name="find_engine"
    )
    logger.info("asking a worker on %s which runtime it has", "a GPU" if gpu else "processors")
    answer = task.remote(wanted.model, wanted.runtime, wanted.precision, wanted.threads)
    try:
        found: Engine | str = ray.get(answer, timeout=limit)
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(answer, force=True)
        place = "1 GPU" if gpu else f"{wanted.threads} CPU"
        raise RuntimeUnavailable(f"no worker with {place} within {limit:.0f} s to say which runtime it has") from error
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:300]
        raise RuntimeUnavailable(f"the worker died that was asked for its runtime: {reason}") from error
    if isinstance(found, str):
        raise RuntimeUnavailable(found)
    return found


def _look_there(model: str, runtime: str, precision: str, threads: int) -> Engine | str:
    try:
        return look(Wanted(model, runtime, precision, threads))
    except PetavoxelError as error:  # as text: Ray would send its traceback along
        return str(error)
