"""Voxels per second of the network that ships, against torch fp32 eager with the same patches, in one run.

`pytest -m slow -s tests/benchmarks/test_inference_speed.py` prints the table.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.runtimes.session import Session
from models.catalog import Architecture, Model, ModelCard, ModelFile, Normalisation, Output, Training, sha256_of
from models.geometry import NEAREST
from services.predict import Predictor

SHAPE = (128, 128, 256)
"""Two patches of 152 voxels per axis, margin 12."""

REPEATS = 3
TARGET = 3.0
EAGER = "torch eager fp32"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class EagerSession:
    """The network as it is trained: torch, fp32, nothing folded."""

    device, precision, engine = "CPU", "fp32", "torch eager"

    def __init__(self, network: object) -> None:
        self._network = network

    def run(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            return self._network(torch.from_numpy(patches)).numpy()  # type: ignore[operator, no-any-return]


def _best(contenders: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Best time of each in seconds; they take turns, so other load on the machine meets all of them alike."""
    times: dict[str, float] = {}
    for turn in range(REPEATS + 1):
        for name, work in contenders.items():
            begin = time.perf_counter()
            work()
            if turn:
                times[name] = min(times.get(name, np.inf), time.perf_counter() - begin)
    return times


def test_openvino_is_three_times_as_fast_as_torch_eager(tmp_path: Path) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from infra.runtimes.openvino_session import OpenVinoSession
    from models.errors import RuntimeUnavailable
    from models.networks.inference import Probabilities, fold_batch_norm
    from models.networks.rsunet import RSUNet, RSUNetConfig
    from models.training.export import default_patch, export_onnx

    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = RSUNet(RSUNetConfig.isotropic(len(NEAREST), (16, 32, 64, 96))).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 1, 64, 64, 64))
    flop_per_voxel = counter.get_total_flops() / 64**3

    path = tmp_path / "model.onnx"
    export_onnx(fold_batch_norm(network), path)
    card = ModelCard(
        name="benchmark",
        version="1",
        architecture=Architecture("rsunet", asdict(network.config)),
        normalisation=Normalisation("uint8", 127.5, 4 / 255),
        voxel_size_nm=(10, 10, 10),
        axes="zyx",
        output=Output("affinity", NEAREST),
        patch=default_patch((10, 10, 10), network.config.divisor),
        training=Training("random weights", "none"),
        file=ModelFile(path.name, sha256_of(path), path.stat().st_size),
    )
    image = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    predictor = Predictor(Model(card, tmp_path), runtime="openvino", precision="fp32")
    plan = predictor.plan(SHAPE)
    computed, useful = np.prod(SHAPE) * plan.waste, np.prod(SHAPE)

    sessions: dict[str, Session] = {EAGER: EagerSession(Probabilities(network).eval())}
    for precision in ("fp32", "bf16"):
        try:
            sessions[f"OpenVINO {precision}"] = OpenVinoSession(path, precision=precision, threads=threads)
        except RuntimeUnavailable as error:
            print(error)

    def predict(session: Session) -> None:
        predictor.session = session
        predictor.predict(image)

    side, products = 2048, 10
    a, b = (torch.randn(side, side, dtype=torch.bfloat16) for _ in range(2))
    contenders: dict[str, Callable[[], object]] = {name: partial(predict, one) for name, one in sessions.items()}
    times = _best({**contenders, "product": lambda: [a @ b for _ in range(products)]})
    peak = products * 2 * side**3 / times.pop("product")
    rates = {name: useful / seconds for name, seconds in times.items()}

    print(f"\n{threads} threads, patches {plan.patch_shape}, stride {plan.stride}, waste {plan.waste:.2f}")
    print(f"{flop_per_voxel / 1e3:.0f} kFLOP per computed voxel; bf16 matrix product {peak / 1e9:.0f} GFLOP/s")
    for name, rate in rates.items():
        used = rate * computed / useful * flop_per_voxel
        print(
            f"{name:18s} {rate / 1e6:6.3f} Mvoxel/s of volume, {rate / rates[EAGER]:5.2f}x, "
            f"{used / peak:6.1%} of the bf16 matrix-product rate"
        )
    if "OpenVINO bf16" not in rates:
        pytest.skip("this processor has no native bf16")
    assert rates["OpenVINO bf16"] >= TARGET * rates[EAGER]
