"""What many tests share, made once per session: buckets (real emulator processes on free ports) and a small model."""

from __future__ import annotations

import importlib.metadata
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
from bucket_servers import GoogleServer, free_port, google_environment
from hypothesis import settings

from models.catalog import Model, PatchRules, Training

settings.register_profile("petavoxel", deadline=None)
settings.load_profile("petavoxel")

# A shell that runs the tests in the background ignores interrupts, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

BUCKET = "petavoxel-test"


@contextmanager
def process(command: list[str], ready: str) -> Iterator[None]:
    """Run a server until the block ends; `ready` is a URL that answers once it is up."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(ready, timeout=5):
                    break
            except urllib.error.HTTPError as answer:
                answer.close()
                break
            except OSError:
                if time.monotonic() > give_up or server.poll() is not None:
                    raise
                time.sleep(0.05)
        yield
    finally:
        server.terminate()
        server.wait(timeout=10)


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[str]:
    """URL of a Google Cloud Storage emulator that has the bucket `petavoxel-test`; the environment points to it."""
    with GoogleServer() as server, pytest.MonkeyPatch.context() as environment:
        server.make_bucket(BUCKET)
        for name, value in google_environment(server.url).items():
            environment.setenv(name, value)
        yield server.url


@pytest.fixture
def gcs_bucket(gcs_server: str) -> str:
    """A `gs://bucket/unique` prefix that is empty."""
    return f"gs://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3 emulator that has the bucket `petavoxel-test`; the environment points to it."""
    version = importlib.metadata.version("s3fs")
    if int(version.split(".")[0]) < 2024:
        pytest.skip(f"s3fs {version} is too old for asynchronous stores; s3fs>=2024 is needed")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with process(command, f"{url}/moto-api/"), pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", url)
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            yield url


@pytest.fixture
def s3_bucket(s3_server: str) -> str:
    """An `s3://bucket/unique` prefix that is empty."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network's checkpoint as training writes it: three primary and three auxiliary channels."""
    import torch

    from models.networks.rsunet import RSUNet, RSUNetConfig

    generator = torch.Generator().manual_seed(7)
    network = RSUNet(RSUNetConfig.isotropic(6, (4, 6, 8)))
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.dtype.is_floating_point:
                noise = torch.randn(value.shape, generator=generator)
                if value.ndim > 1:
                    value.copy_(noise * ((0.2 if name == "head.weight" else 2) / value[0].numel()) ** 0.5)
                else:
                    centre = 1 if name.endswith(("var", "norm.weight", ".1.weight")) else 0
                    value.copy_(centre + 0.1 * noise)
    axes = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
    path = tmp_path_factory.mktemp("checkpoint") / "last.pt"
    content = {
        "network": {"family": "rsunet", "config": asdict(network.config)},
        "state": network.state_dict(),
        "offsets": axes + [[3 * step for step in axis] for axis in axes],
        "normalisation": {"shift": 127.5, "scale": 4 / 255},
        "voxel_size_nm": [10, 10, 10],
        "step": 3,
    }
    torch.save(content, path)
    return path


@pytest.fixture(scope="session")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The checkpoint's network, exported with its card; patches of at most 24 voxels, margin 2, divisor 4."""
    from infra.runtimes.openvino_session import run_onnx
    from models.training.export import export_checkpoint

    return export_checkpoint(
        checkpoint,
        tmp_path_factory.mktemp("models") / "small",
        run=run_onnx,
        training=Training("random weights", "none"),
        patch=PatchRules((4, 4, 4), (24, 24, 24), (2, 2, 2)),
    )
