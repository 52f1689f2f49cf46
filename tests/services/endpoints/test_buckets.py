"""Volumes in buckets, over HTTP: read from and written to real emulators, below the allowed prefixes alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import numpy as np
import pytest
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
def at(gcs_server: str, s3_server: str, model: Model, start_server: Start, tmp_path_factory: Any) -> Iterator[str]:
    """URL of a server that may read below `in` and write below `out` of one bucket of each emulator."""
    options = ["--model", str(model.folder), "--threads", "1"]
    for scheme in SCHEMES:
        options += ["--volumes", f"{scheme}://petavoxel-test/in", "--outputs", f"{scheme}://petavoxel-test/out"]
    with start_server(tmp_path_factory.mktemp("buckets"), *options) as server:
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
