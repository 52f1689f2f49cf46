"""The generic import roots are this checkout's, and parts can be imported without what they must not need."""

import subprocess
import sys
from pathlib import Path

import pytest

import infra
import models
import services

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("module", [infra, models, services])
def test_roots_lie_in_this_checkout(module: object) -> None:
    assert Path(str(module.__file__)).resolve() == ROOT / module.__name__ / "__init__.py"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("importing", "absent"),
    [
        ("models.segmentation.agglomeration, models.metrics.voi, models.catalog", ["torch", "ray", "zarr", "fsspec"]),
        ("models.training.loop, models.networks.rsunet", ["ray", "zarr", "fsspec", "pydantic"]),
        ("services.pipelines.segment, services.endpoints.app, services.predict, services.demo", ["torch"]),
        ("services.cli.main", ["torch", "ray", "openvino", "kimimaro", "neuroglancer", "numba"]),
    ],
)
def test_imports_stay_light(importing: str, absent: list[str]) -> None:
    code = f"import sys, {importing}\nprint([name for name in {absent} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
