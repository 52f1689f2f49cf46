"""Real servers: `petavoxel serve` in a process of its own, spoken to over HTTP."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from served import Server, running

from infra.volumes import VolumeInfo, create_volume
from models.catalog import CARD_NAME, Model, find_model
from services.predict import Predictor

SHAPE = (50, 61, 33)
MAX_BYTES = 4_000_000
MAX_SEGMENT_VOXELS = 1_000_000


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which the server may read."""
    return tmp_path_factory.mktemp("volumes")


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which the server may write."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="session")
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.fixture(scope="session")
def volume_url(volumes: Path, image: NDArray[np.uint8]) -> str:
    """A stored image with 10 nm voxels, like the model's, at an offset."""
    url = str(volumes / "image.zarr")
    info = VolumeInfo(shape=SHAPE, dtype=image.dtype, voxel_size_nm=(10, 10, 10), offset_voxels=(5, 6, 7))
    with create_volume(url, info) as volume:
        volume.write(volume.box, image)
    return url


@pytest.fixture(scope="session")
def float_model(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The small model under another name, for float images."""
    folder = tmp_path_factory.mktemp("models") / "small-float"
    folder.mkdir()
    (folder / model.card.file.name).write_bytes(model.onnx_path.read_bytes())
    normalisation = replace(model.card.normalisation, dtype="float32")
    (folder / CARD_NAME).write_text(replace(model.card, name="small-float", normalisation=normalisation).to_json())
    return find_model(folder)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the server finds new models; empty at its start."""
    return tmp_path_factory.mktemp("model_folder")


@pytest.fixture(scope="session")
def metrics_port() -> int:
    """Where the server's Ray exports its metrics."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def server(  # noqa: PLR0917
    model: Model,
    float_model: Model,
    volumes: Path,
    outputs: Path,
    model_folder: Path,
    metrics_port: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """A server with two models, a folder for more, and generous limits; it keeps two models loaded at a time."""
    options = ["--model", str(model.folder), "--model", str(float_model.folder), "--max-bytes", str(MAX_BYTES)]
    options += ["--model-folder", str(model_folder), "--rescan-s", "0.2", "--models-per-replica", "2"]
    options += ["--max-segment-voxels", str(MAX_SEGMENT_VOXELS)]
    options += ["--metrics-port", str(metrics_port), "--log-format", "json"]
    options += ["--volumes", str(volumes), "--outputs", str(outputs)]
    with running(tmp_path_factory.mktemp("server"), *options) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def put_model(model: Model) -> Callable[..., None]:
    """`put_model(folder, name, version, content)` makes a model out of the small one; `content` replaces its file."""

    def put(folder: Path, name: str, version: str, content: bytes | None = None) -> None:
        content = model.onnx_path.read_bytes() if content is None else content
        file = replace(model.card.file, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        making = folder.parent / f"making-{name}-{version}"
        making.mkdir()
        (making / file.name).write_bytes(content)
        (making / CARD_NAME).write_text(replace(model.card, name=name, version=version, file=file).to_json())
        making.rename(folder / f"{name}-{version}")

    return put


@pytest.fixture(scope="session")
def predictor(model: Model) -> Predictor:
    return Predictor(model)


@pytest.fixture(scope="session")
def start_server() -> Callable[..., AbstractContextManager[Server]]:
    """`start_server(folder, *options)` is a context manager that runs a server of a test's own."""
    return running
