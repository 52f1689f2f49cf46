"""What is counted beside Serve's own metrics (requests, latencies, queues); Prometheus names begin with `ray_`."""

from __future__ import annotations

from functools import cache

from ray.util.metrics import Counter, Histogram

BATCHES = [1.5, 2.5, 4.5, 8.5, 16.5, 32.5, 64.5, 128.5, 256.5]


@cache
def voxels() -> Counter:
    """Voxels predicted or segmented."""
    return Counter("petavoxel_voxels_total", "Voxels answered for", ("model", "endpoint"))


@cache
def batch_size() -> Histogram:
    """Patches that the engine ran together."""
    return Histogram("petavoxel_batch_size", "Patches per run of the engine", BATCHES, ("model",))


@cache
def model_loads() -> Counter:
    """Models loaded, and failures to load one."""
    return Counter("petavoxel_model_loads_total", "Models loaded by replicas", ("model", "outcome"))
