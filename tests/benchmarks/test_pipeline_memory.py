"""Peak memory and throughput of `petavoxel segment` as the volume grows, and how much of the machine Ray leaves unused.

`PETAVOXEL_DATA=FOLDER pytest -m slow -s tests/benchmarks/test_pipeline_memory.py` prints the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from infra.volumes import VolumeInfo, create_volume

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]
EXTENTS = [int(n) for n in os.environ.get("PETAVOXEL_BENCH_EXTENTS", "125,250,500").split(",")]


def mirrored(image: np.ndarray, extent: int) -> np.ndarray:
    """A cube of `extent` voxels: cropped, or tiled by reflection so that no seam is an edge."""
    pad = [(0, max(0, extent - n)) for n in image.shape]
    return np.pad(image, pad, mode="symmetric")[:extent, :extent, :extent]


def peak_memory(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Largest memory of one process, and of all together, in MB: resident, without what is shared; sampled."""
    root, largest, together = psutil.Process(process.pid), 0.0, 0.0
    while process.poll() is None:
        sizes = []
        for member in [root, *root.children(recursive=True)]:
            try:
                info = member.memory_info()
            except psutil.Error:
                continue
            sizes.append((info.rss - info.shared) / 1e6)
        largest, together = max(largest, *sizes, 0.0), max(together, sum(sizes))
        time.sleep(0.5)
    return largest, together


def test_memory_grows_far_slower_than_the_volume(tmp_path: Path) -> None:
    data = os.environ.get("PETAVOXEL_DATA")
    if not data:
        pytest.skip("needs PETAVOXEL_DATA, the folder with fib25/fib25_raw.npz")
    image = np.load(Path(data) / "fib25" / "fib25_raw.npz")["raw"]
    rows = []
    for extent in EXTENTS:
        url, out = str(tmp_path / f"{extent}.zarr"), tmp_path / f"out{extent}"
        info = VolumeInfo(
            shape=(extent,) * 3, dtype=np.dtype("uint8"), voxel_size_nm=(10, 10, 10), chunk_shape=(64, 64, 64)
        )
        with create_volume(url, info) as volume:
            volume.write(volume.box, mirrored(image, extent))
        command = [sys.executable, "-m", "services.cli", "segment", url, str(out), "--chunk", "128,128,128"]
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        largest, together = peak_memory(process)
        assert process.returncode == 0
        stages = json.loads((out / "progress" / "summary.json").read_text())["stages"]
        rows.append((extent, largest, together, time.monotonic() - began, stages))
        print(f"\n{extent}^3: largest process {largest:.0f} MB, all {together:.0f} MB, {rows[-1][3]:.0f} s in all")
        cores = psutil.cpu_count()
        held = sum(stage["totals"]["seconds"] * (cores if stage["stage"] == "predict" else 1) for stage in stages)
        wall = sum(stage["seconds"] for stage in stages)
        outside = [1 - held / (seconds * cores) for seconds in (wall, rows[-1][3])]
        print(f"  outside of chunk functions (predict holds all {cores} processors), of wall time × processors:")
        print(f"  {outside[0]:.1%} of the stages, {outside[1]:.1%} of the command")
        for stage in stages:
            rate = stage["voxels_per_s"] / 1e6
            print(
                f"  {stage['stage']:<12} {stage['chunks']:>4} chunks {stage['seconds']:>7.1f} s {rate:>8.2f} Mvoxel/s"
            )
            print(f"    {stage['totals']}")
    assert rows[-1][1] < 1.5 * rows[len(rows) // 2][1], "the largest process grew with the volume"
