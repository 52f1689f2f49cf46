"""Volumes in buckets, over HTTP: read from and written to real emulators, below the allowed prefixes alone."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import httpx
import numpy as np
import pytest
from bucket_servers import google_environment
from faulty_bucket import Fault, FaultyBucket
from numpy.typing import NDArray

from infra.volumes import VolumeInfo, create_volume, open_volume
from models.catalog import Model
from models.errors import NotFound
from models.geometry import Box
from services.predict import Predictor

pytestmark = pytest.mark.cluster

BOX = Box((3, 4, 5), (21, 30, 32))
SCHEMES = ("gs", "s3")
Start = Callable[..., AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def proxy(gcs_server: str) -> Iterator[FaultyBucket]:
    """What the server takes for the Google emulator: it does as it is told, and fails where a test says so."""
    with FaultyBucket(gcs_server) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def at(
    proxy: FaultyBucket, s3_server: str, model: Model, start_server: Start, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """URL of a server that may read below `in` and write below `out` of one bucket of each emulator."""
    options = ["--model", str(model.folder), "--threads", "1"]
    for scheme in SCHEMES:
        options += ["--volumes", f"{scheme}://petavoxel-test/in", "--outputs", f"{scheme}://petavoxel-test/out"]
    patience = {"PETAVOXEL_STORAGE_TIMEOUT_S": "8", "PETAVOXEL_STORAGE_REQUEST_TIMEOUT_S": "3"}
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in (google_environment(proxy.url) | patience).items():
                environment.setenv(name, value)
            server = stack.enter_context(start_server(tmp_path_factory.mktemp("buckets"), *options))
        yield server.url


@pytest.fixture(scope="module", params=[f"{scheme}:{kind}" for scheme in SCHEMES for kind in ("zarr", "precomputed")])
def stored(request: pytest.FixtureRequest, at: str, image: NDArray[np.uint8]) -> tuple[str, str]:
    """A scheme, and the image as a volume in its bucket."""
    scheme, kind = request.param.split(":")
    url = (
        f"{scheme}://petavoxel-test/in/em.zarr" if kind == "zarr" else f"precomputed://{scheme}://petavoxel-test/in/em"
    )
    info = VolumeInfo(shape=image.shape, dtype=image.dtype, voxel_size_nm=(10, 10, 10), offset_voxels=(5, 6, 7))
    with create_volume(url, info) as volume:
        volume.write(volume.box, image)
    return scheme, url


def test_a_box_of_a_bucket_and_the_reply_in_it(
    stored: tuple[str, str], at: str, predictor: Predictor, image: NDArray[np.uint8]
) -> None:
    scheme, url = stored
    wanted = predictor.predict_box(lambda box: image[box.slices()], image.shape, BOX)
    body = {"volume": url, "box": str(BOX)}
    reply = httpx.post(f"{at}/v1/boundary", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    np.testing.assert_array_equal(np.load(io.BytesIO(reply.content), allow_pickle=False), wanted)
    labels = httpx.post(f"{at}/v1/segment", json=body, timeout=60)
    assert labels.status_code == 200, labels.text

    name = url.rpartition("/")[2]
    written = {route: f"{scheme}://petavoxel-test/out/{name}-{route}.zarr" for route in ("boundary", "segment")}
    for route, output in written.items():
        reply = httpx.post(f"{at}/v1/{route}", json=body | {"output": output}, timeout=60)
        assert reply.status_code == 201, reply.text
        assert reply.json()["output"] == output
        again = httpx.post(f"{at}/v1/{route}", json=body | {"output": output}, timeout=60)
        assert (again.status_code, again.json()["type"]) == (409, "/problems/run-conflict")
    with open_volume(written["boundary"]) as volume:
        np.testing.assert_array_equal(volume.read(volume.box), wanted)
        assert volume.info.offset_voxels == (8, 10, 12)
    with open_volume(written["segment"]) as volume:
        found = np.load(io.BytesIO(labels.content), allow_pickle=False)
        np.testing.assert_array_equal(volume.read(volume.box), found)
        assert found.max() > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nothing_outside_the_prefixes(scheme: str, at: str, image: NDArray[np.uint8]) -> None:
    url, secret = f"{scheme}://petavoxel-test/in/image.zarr", f"{scheme}://petavoxel-test/secret.zarr"
    for made in (url, secret):
        create_volume(made, VolumeInfo(shape=image.shape, dtype=image.dtype, voxel_size_nm=(10, 10, 10))).close()
    bucket = f"{scheme}://petavoxel-test"
    for volume in (
        secret,
        f"{bucket}/in/../secret.zarr",
        f"{bucket}/in/./../secret.zarr",
        f"{bucket}/inside/em.zarr",
        f"{bucket}/out/em.zarr",
        f"{scheme}://other/in/em.zarr",
        f"{scheme}://169.254.169.254/in/em.zarr",
    ):
        reply = httpx.post(f"{at}/v1/boundary", json={"volume": volume, "box": str(BOX)}, timeout=60)
        assert (reply.status_code, reply.json()["type"]) == (403, "/problems/access-denied"), volume
    for output in (f"{bucket}/in/made.zarr", f"{bucket}/outside/made.zarr", f"{bucket}/out/../in/made.zarr"):
        for route in ("boundary", "segment"):
            body = {"volume": url, "box": str(BOX), "output": output}
            reply = httpx.post(f"{at}/v1/{route}", json=body, timeout=60)
            assert (reply.status_code, reply.json()["type"]) == (403, "/problems/access-denied"), output
    allowed = httpx.post(f"{at}/v1/boundary", json={"volume": url, "box": str(BOX)}, timeout=60)
    assert allowed.status_code == 200, allowed.text
    for unmade in (f"{bucket}/in/made.zarr", f"{bucket}/outside/made.zarr"):
        with pytest.raises(NotFound):
            open_volume(unmade)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_not_in_the_bucket(scheme: str, at: str) -> None:
    body = {"volume": f"{scheme}://petavoxel-test/in/nothing.zarr", "box": str(BOX)}
    reply = httpx.post(f"{at}/v1/boundary", json=body, timeout=60)
    assert (reply.status_code, reply.json()["type"]) == (404, "/problems/not-found")


def test_a_silent_bucket_delays_nobody_else(
    at: str, proxy: FaultyBucket, predictor: Predictor, image: NDArray[np.uint8]
) -> None:
    url = "gs://petavoxel-test/in/silent.zarr"
    create_volume(url, VolumeInfo(shape=image.shape, dtype=image.dtype, voxel_size_nm=(10, 10, 10))).close()
    patch = np.ascontiguousarray(image[:9, :10, :11])
    kind = "application/octet-stream"
    headers = {"Content-Type": kind, "Accept": kind, "X-Shape": "9,10,11", "X-Dtype": "uint8"}

    def ask_for_box(_: int) -> httpx.Response:
        return httpx.post(f"{at}/v1/boundary", json={"volume": url, "box": str(BOX)}, timeout=60)

    proxy.faults = [Fault("stall")]
    try:
        with ThreadPoolExecutor(5) as pool:
            boxes = [pool.submit(ask_for_box, i) for i in range(5)]
            while not [one for one in proxy.seen() if one.fault == "stall"]:
                assert not any(box.done() for box in boxes)
                time.sleep(0.05)
            reply = httpx.post(f"{at}/v1/boundary", content=patch.tobytes(), headers=headers, timeout=60)
            assert reply.status_code == 200, reply.text
            assert reply.content == predictor.predict(patch).tobytes()
            assert not any(box.done() for box in boxes), "the boxes still wait for their bucket"
            proxy.faults = []
            assert {box.result().status_code for box in boxes} <= {200, 502}
    finally:
        proxy.faults = []
    assert ask_for_box(0).status_code == 200
