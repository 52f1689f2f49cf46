"""Real servers: `petavoxel serve` in a process of its own, spoken to over HTTP."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from infra.volumes import VolumeInfo, create_volume
from models.catalog import CARD_NAME, Model, find_model
from services.predict import Predictor

SHAPE = (50, 61, 33)
MAX_BYTES = 4_000_000


@dataclass(frozen=True)
class Server:
    """A running `petavoxel serve`."""

    url: str
    process: subprocess.Popen[str]
    log: Path


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Server]:
    """Start the command line on a free port, wait until it says that it is ready, stop it at the end."""
    log = folder / "log.txt"
    command = [sys.executable, "-c", "from services.cli import main; main()", "serve", "--port", "0", *options]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " at http://" in line, line + log.read_text()
        yield Server(line.partition(" at ")[2].partition(";")[0], process, log)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


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
def server(
    model: Model, float_model: Model, volumes: Path, outputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with two models and generous limits."""
    options = ["--model", str(model.folder), "--model", str(float_model.folder), "--max-bytes", str(MAX_BYTES)]
    options += ["--volumes", str(volumes), "--outputs", str(outputs)]
    with running(tmp_path_factory.mktemp("server"), *options) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def predictor(model: Model) -> Predictor:
    return Predictor(model)


@pytest.fixture(scope="session")
def start_server() -> Callable[..., AbstractContextManager[Server]]:
    """`start_server(folder, *options)` is a context manager that runs a server of a test's own."""
    return running
