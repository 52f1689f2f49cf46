"""Counts what a pipeline has done, for Prometheus: Ray's agent on the driver's node exports it, with `ray_` in front.

The driver counts, from what workers report: a chunk counts once, however often it was tried. Levels of an octree or
pyramid count as one stage, so that the number of series does not grow with the volume. A number is added in some
microseconds, whether or not there is an agent that would fetch it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter

from infra.volumes.metering import KEYS


def stage_family(stage: str) -> str:
    """The name of a stage without the direction and number of its level: agglomerate_up_3 → agglomerate."""
    return re.sub(r"(_(up|down))?_\d+$", "", stage)


class StageCounters:
    """Counters of one stage; make them after Ray has been joined, they belong to that connection.

    petavoxel_chunks_total{stage}             chunks computed
    petavoxel_chunk_voxels_total{stage}       their voxels
    petavoxel_chunks_failed_total{stage}      chunks given up
    petavoxel_bucket_requests_total{kind}     requests of computed chunks to stores, retries included
    petavoxel_bucket_bytes_total{direction}   bytes that these moved, in or out
    """

    def __init__(self, stage: str) -> None:
        self._stage = {"stage": stage_family(stage)}
        self._chunks = Counter("petavoxel_chunks_total", "Chunks computed", ("stage",))
        self._voxels = Counter("petavoxel_chunk_voxels_total", "Voxels of computed chunks", ("stage",))
        self._failed = Counter("petavoxel_chunks_failed_total", "Chunks given up", ("stage",))
        self._requests = Counter("petavoxel_bucket_requests_total", "Requests to stores", ("kind",))
        self._bytes = Counter("petavoxel_bucket_bytes_total", "Bytes moved to and from stores", ("direction",))

    def done(self, voxels: int, report: Mapping[str, Any]) -> None:
        """Count a computed chunk and the requests in its worker's report, `io_get` to `io_bytes_out`."""
        self._chunks.inc(1, self._stage)
        if voxels:
            self._voxels.inc(voxels, self._stage)
        for key in KEYS:
            if not (amount := report.get(f"io_{key}", 0)):
                continue
            if key.startswith("bytes_"):
                self._bytes.inc(amount, {"direction": key.removeprefix("bytes_")})
            else:
                self._requests.inc(amount, {"kind": key})

    def failed(self) -> None:
        """Count a chunk that was given up."""
        self._failed.inc(1, self._stage)
