"""ONNX to engine with the real TensorRT-RTX, which builds for a GPU that is not here."""

from pathlib import Path

import numpy as np
import pytest

from infra.runtimes import tensorrt_modules
from infra.runtimes.tensorrt_engine import Profile, build_engine, cached_engine, engine_folder
from infra.runtimes.typed_onnx import typed_onnx
from models.catalog import Model
from models.errors import InvalidModel, RuntimeUnavailable

PROFILE = Profile((4, 4, 4), (24, 32, 40), 2)


@pytest.fixture(scope="module")
def rtx() -> object:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_builds_for_another_gpu_with_dynamic_shapes(rtx: object, model: Model, precision: str) -> None:
    engine = build_engine(rtx, model.onnx_path, precision=precision, profile=PROFILE, compute_capability="SM120")
    assert len(engine) > 10_000


def test_network_is_typed_as_asked(rtx, model: Model) -> None:  # type: ignore[no-untyped-def]
    for precision, expected in (("bf16", rtx.DataType.BF16), ("fp16", rtx.DataType.HALF), ("fp32", rtx.DataType.FLOAT)):
        builder = rtx.Builder(rtx.Logger(rtx.Logger.ERROR))
        network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = rtx.OnnxParser(network, builder.logger)
        assert parser.parse(typed_onnx(model.onnx_path, precision))
        convolutions = [
            layer.get_output(0).dtype
            for layer in (network.get_layer(i) for i in range(network.num_layers))
            if layer.type == rtx.LayerType.CONVOLUTION
        ]
        assert set(convolutions) == {expected}
        assert network.get_input(0).dtype == network.get_output(0).dtype == rtx.DataType.FLOAT
        assert tuple(network.get_input(0).shape) == (-1, 1, -1, -1, -1)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_typed_network_predicts_nearly_the_same(model: Model, tmp_path: Path, precision: str, tolerance: float) -> None:
    from infra.runtimes.openvino_session import run_onnx

    typed = tmp_path / "typed.onnx"
    typed.write_bytes(typed_onnx(model.onnx_path, precision))
    patches = np.random.default_rng(2).standard_normal((1, 1, 16, 20, 24)).astype(np.float32)
    difference = np.abs(run_onnx(typed, patches) - run_onnx(model.onnx_path, patches)).max()
    assert 0 < difference < tolerance


def test_unknown_targets_are_refused(rtx: object, model: Model) -> None:
    with pytest.raises(RuntimeUnavailable, match="SM1"):
        build_engine(rtx, model.onnx_path, precision="fp32", profile=PROFILE, compute_capability="SM1")


def test_broken_network_is_refused(rtx: object, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(InvalidModel, match=r"model\.onnx"):
        build_engine(rtx, path, precision="fp32", profile=PROFILE, compute_capability="SM120")


def test_module_is_found() -> None:
    try:
        module = tensorrt_modules.load()
    except RuntimeUnavailable as error:
        assert "tensorrt_rtx" in str(error)  # noqa: PT017 - either outcome names the module
    else:
        assert module.__name__ in tensorrt_modules.NAMES


def test_engines_are_kept_and_damage_is_repaired(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    built: list[bytes] = []

    def build() -> bytes:
        built.append(b"engine %d" % len(built))
        return built[-1]

    key = {"gpu": "GB", "profile": PROFILE}
    folder = tmp_path / "engines"
    assert cached_engine(folder, key, build) == cached_engine(folder, key, build) == b"engine 0"
    assert cached_engine(folder, {**key, "gpu": "H"}, build) == b"engine 1"
    assert cached_engine(folder, {**key, "profile": Profile((4, 4, 4), (8, 8, 8), 1)}, build) == b"engine 2"
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert cached_engine(folder, key, build) == b"engine 3"
    assert "damaged" in caplog.text
    assert not list(folder.glob("*.partial"))


def test_an_engine_that_cannot_be_kept_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    assert cached_engine(tmp_path / "file" / "engines", {"gpu": "GB"}, lambda: b"engine") == b"engine"
    assert "cannot be kept" in caplog.text


def test_folder_follows_the_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engine_folder() == tmp_path / "petavoxel" / "engines"
