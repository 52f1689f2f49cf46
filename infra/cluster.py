"""Joins a Ray cluster, or starts one for this process alone."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import auto_init_hook
from ray._private.utils import get_num_cpus

from infra.settings import current_settings
from models.errors import RuntimeUnavailable

logger = logging.getLogger(__name__)


@contextmanager
def cluster(address: str | None = None, *, cpus: int | None = None, metrics_port: int | None = None) -> Iterator[None]:
    """Connect to the Ray at `address`, or run an embedded one until the block ends.

    The embedded Ray has a private temporary folder, so it neither finds nor disturbs another one on the host, and one
    logical CPU more than `cpus` (default: `own_processors`): Ray Data's own tasks need a place while actors hold the
    rest. Its workers have this process's own priority (`nice`), which Ray would lower.
    `metrics_port`: where the embedded Ray exports metrics for Prometheus; default a free one.

    Raises `RuntimeUnavailable` where no cluster answers.
    """
    if ray.is_initialized():  # the process belongs to a cluster already, e.g. as the driver of a submitted job
        yield
        return
    auto_init_hook.enable_auto_connect = False  # or a late call after the end would start another Ray
    folder = None if address else tempfile.mkdtemp(prefix="pvx-")
    try:
        _start(address, cpus, folder, metrics_port)
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def cluster_resources() -> dict[str, float]:
    """What the cluster has, or what the settings say that it may grow to; 0 of what nothing is known of."""
    held: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    settings = current_settings()
    promised = {"CPU": settings.cluster_cpus, "GPU": settings.cluster_gpus}
    return {name: held.get(name, 0.0) if grown is None else float(grown) for name, grown in promised.items()}


def node_processors() -> tuple[float, ...]:
    """Logical processors of each node that is up and has any."""
    return tuple(number for node in _nodes() if (number := node["Resources"].get("CPU", 0.0)))


def largest_memory() -> float:
    """Bytes that the node with the most memory gives to workers."""
    return max((node["Resources"].get("memory", 0.0) for node in _nodes()), default=0.0)


def own_processors() -> int:
    """Processors that this process may use: limits of its container and its affinity count."""
    return max(1, min(len(os.sched_getaffinity(0)), int(get_num_cpus(override_docker_cpu_warning=True))))


def alone() -> bool:
    """Whether this process runs on the cluster's only node."""
    return [node["NodeID"] for node in _nodes()] == [ray.get_runtime_context().get_node_id()]


def _nodes() -> list[dict[str, Any]]:
    """The nodes that are up, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # Ray gives it no types


def _start(address: str | None, cpus: int | None, folder: str | None, metrics_port: int | None) -> None:
    common: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": False}
    # Ray warns of every actor pool that it could not restart after the driver's death; it could not anyway.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        if address:
            _knock(address)
            ray.init(address=address, **common)
        else:
            os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves workers beside any other program
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=(cpus or own_processors()) + 1,
                _temp_dir=folder,
                _metrics_export_port=metrics_port,
                object_store_memory=256 * 2**20,
                **common,
            )
    except Exception as error:  # Ray raises a bare Exception where its processes are too slow to start
        raise RuntimeUnavailable(f"Ray {address or 'embedded'}: cannot start or connect ({error})") from error


def _knock(address: str) -> None:
    """Raise OSError where nothing listens at host:port; Ray itself would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host, int(port)), timeout=10):
            pass
