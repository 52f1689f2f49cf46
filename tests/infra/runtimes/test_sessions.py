"""One contract for every engine that this machine has."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.runtimes import tensorrt_modules
from infra.runtimes.session import Session, open_session
from models.catalog import Architecture, Model, ModelFile, sha256_of
from models.errors import InvalidModel, InvalidVolume, RuntimeUnavailable

LARGEST = {"fp32": 1e-5, "bf16": 0.15}
MEAN = {"fp32": 1e-6, "bf16": 0.01}


@pytest.fixture(scope="module")
def patches() -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal((2, 1, 16, 20, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(checkpoint: Path, patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of the checkpoint's own network, before any folding or export."""
    import torch

    from models.networks.rsunet import RSUNet, RSUNetConfig
    from models.training.loop import read_checkpoint

    content = read_checkpoint(checkpoint)
    network = RSUNet(RSUNetConfig(**content["network"]["config"])).eval()
    network.load_state_dict(content["state"])
    with torch.inference_mode():
        return torch.sigmoid(network(torch.from_numpy(patches)))[:, :3].numpy()


def _open(model: Model, runtime: str, precision: str) -> Session:
    try:
        return open_session(model, runtime=runtime, precision=precision, threads=1, batch_size=2)
    except RuntimeUnavailable as error:
        if precision == "fp32" and runtime != "tensorrt":
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("runtime", ["openvino", "torch", pytest.param("tensorrt", marks=pytest.mark.gpu)])
class TestContract:
    def test_agrees_with_the_trained_network(
        self, model: Model, patches: NDArray[np.float32], expected: NDArray[np.float32], runtime: str, precision: str
    ) -> None:
        session = _open(model, runtime, precision)
        result = session.run(patches)
        assert result.dtype == np.float32
        assert result.shape == (2, 3, 16, 20, 24)
        assert expected.std() > 0.05
        assert np.abs(result - expected).max() < LARGEST[precision]
        assert np.abs(result - expected).mean() < MEAN[precision]
        assert session.precision == precision
        assert session.engine.split()[1][0].isdigit()
        assert session.device

    def test_takes_any_shape_and_keeps_results_apart(
        self, model: Model, patches: NDArray[np.float32], runtime: str, precision: str
    ) -> None:
        session = _open(model, runtime, precision)
        first = session.run(patches)
        kept = first.copy()
        for z, y, x in ((4, 4, 4), (24, 16, 20), (8, 24, 12)):
            assert session.run(np.ones((1, 1, z, y, x), np.float32)).shape == (1, 3, z, y, x)
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(session.run(patches), kept)

    def test_refuses_patches_it_cannot_take(self, model: Model, runtime: str, precision: str) -> None:
        session = _open(model, runtime, precision)
        for bad in (
            np.zeros((1, 1, 16, 18, 16), np.float32),
            np.zeros((1, 2, 16, 16, 16), np.float32),
            np.zeros((16, 16, 16), np.float32),
            np.zeros((1, 1, 16, 16, 16)),
            np.zeros((0, 1, 16, 16, 16), np.float32),
        ):
            with pytest.raises(InvalidVolume, match="multiples of"):
                session.run(bad)

    def test_serves_several_threads(
        self, model: Model, patches: NDArray[np.float32], runtime: str, precision: str
    ) -> None:
        session = _open(model, runtime, precision)
        inputs = [patches[:, :, : 4 * (1 + i % 4)] * (i + 1) for i in range(8)]
        alone = [session.run(one) for one in inputs]
        together: list[NDArray[np.float32] | None] = [None] * len(inputs)

        def work(i: int) -> None:
            together[i] = session.run(inputs[i])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, other)


def test_auto_takes_openvino_without_a_gpu_and_says_so(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    if tensorrt_modules.usable():
        pytest.skip("a GPU is here")
    with caplog.at_level(logging.INFO):
        session = open_session(model, patch_shape=(8, 8, 8))
    assert session.engine.startswith("OpenVINO")
    assert "OpenVINO" in caplog.text
    assert "chosen automatically" in caplog.text
    assert session.precision in caplog.text


def test_precision_of_the_processor_is_reported(model: Model) -> None:
    import openvino

    native = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert open_session(model, runtime="openvino").precision == ("bf16" if "BF16" in native else "fp32")
    if "FP16" not in native:
        with pytest.raises(RuntimeUnavailable, match="fp16"):
            open_session(model, runtime="openvino", precision="fp16")


def test_tensorrt_without_a_gpu_is_refused(model: Model) -> None:
    from infra.runtimes import cuda_driver

    if cuda_driver.device_count():
        pytest.skip("a GPU is here")
    with pytest.raises(RuntimeUnavailable, match="no NVIDIA GPU"):
        open_session(model, runtime="tensorrt")


@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_garbage_with_a_fitting_digest_is_refused(model: Model, tmp_path: Path, runtime: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.onnx_path.read_bytes()[:3000])
    card = replace(model.card, file=ModelFile(path.name, sha256_of(path), 3000))
    with pytest.raises(InvalidModel, match=r"model\.onnx"):
        open_session(Model(card, tmp_path), runtime=runtime)


def test_torch_refuses_a_card_of_another_network(model: Model) -> None:
    for family, config in (
        ("other", {}),
        ("rsunet", {"wings": 2}),
        ("rsunet", {"out_channels": 3, "widths": [4, 6, 9]}),
    ):
        card = replace(model.card, architecture=Architecture(family, {**config}))
        with pytest.raises(InvalidModel, match="network"):
            open_session(Model(card, model.folder), runtime="torch")


def test_openvino_does_not_load_torch(model: Model, tmp_path: Path) -> None:
    folder = shutil.copytree(model.folder, tmp_path / "small")
    code = (
        "import sys, numpy as np\n"
        "from services.predict import Predictor\n"
        f"Predictor({str(folder)!r}, threads=1).predict(np.zeros((9, 9, 9), np.uint8))\n"
        "print([m for m in ('torch', 'onnx', 'tensorrt', 'tensorrt_rtx', 'ray') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
