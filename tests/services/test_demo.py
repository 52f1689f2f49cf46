"""The demonstration as a newcomer runs it: the shipped network on the shipped crop, without torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_demo_segments_scores_and_draws_without_torch(tmp_path: Path) -> None:
    forbidden = tmp_path / "forbidden" / "torch"
    forbidden.mkdir(parents=True)
    (forbidden / "__init__.py").write_text("raise ImportError('the demonstration must not load torch')\n")
    environment = {**os.environ, "PYTHONPATH": str(forbidden.parent), "COLUMNS": "120"}
    out = tmp_path / "out"
    command = [sys.executable, "-m", "services.cli", "demo", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(out / "overlay.png") as picture:
        assert picture.width >= 1000
    voi = re.search(r"VOI\D+([0-9.]+) bits", done.stdout)
    rand = re.search(r"adapted Rand error\D+([0-9.]+) ", done.stdout)
    assert voi is not None, done.stdout
    assert rand is not None, done.stdout
    # tests/benchmarks/RESULTS.md has 0.980 and 0.134; machines without bf16 differ slightly.
    assert float(voi.group(1)) < 1.05
    assert float(rand.group(1)) < 0.16
    assert list((out / "skeletons" / "swc").glob("*.swc"))
