from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from infra.volumes import VolumeInfo, create_volume, open_volume
from models.catalog import Model
from models.geometry import Box
from services.predict import Predictor

pytestmark = pytest.mark.cluster

RAW = "application/octet-stream"
NPY = "application/x-npy"
SHAPE = (50, 61, 33)
BOX = Box((11, 3, 7), (30, 44, 33))


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def load(reply: httpx.Response) -> NDArray[Any]:
    assert reply.status_code == 200, reply.text
    array: NDArray[Any] = np.load(io.BytesIO(reply.content), allow_pickle=False)
    return array


def problem(reply: httpx.Response, status: int, kind: str, *texts: str) -> None:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    assert set(body) == {"type", "title", "status", "detail", "instance"}
    assert body["status"] == status
    assert body["type"] == f"/problems/{kind}"
    assert body["instance"].startswith("urn:uuid:")
    assert "Traceback" not in reply.text
    for text in texts:
        assert text in body["detail"]


@pytest.fixture(scope="session")
def expected(predictor: Predictor, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return predictor.predict(image)


def test_npy_patch_equals_the_predictor(
    client: httpx.Client, model: Model, image: NDArray[np.uint8], expected: NDArray[np.uint8]
) -> None:
    reply = client.post("/v1/boundary", content=npy(image), headers={"Content-Type": NPY})
    np.testing.assert_array_equal(load(reply), expected)
    assert expected.std() > 10
    headers = reply.headers
    assert headers["content-type"] == NPY
    assert headers["x-shape"] == "3,50,61,33"
    assert headers["x-affinity-offsets"] == "-1,0,0;0,-1,0;0,0,-1"
    assert headers["x-affinity-anchor"] == "p"
    assert headers["x-model-name"] == "small"
    assert headers["x-model-version"] == model.card.version
    assert headers["x-model-sha256"] == model.card.file.sha256
    assert headers["x-model-voxel-size-nm"] == "10,10,10"
    assert "x-voxel-size-nm" not in headers


def test_raw_patch_and_raw_reply(client: httpx.Client, image: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    headers = {"Content-Type": RAW, "X-Shape": "50,61,33", "X-Dtype": "uint8", "Accept": RAW}
    reply = client.post("/v1/boundary?voxel_size_nm=10,9.5,11", content=image.tobytes(), headers=headers)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == RAW
    assert reply.headers["x-dtype"] == "uint8"
    assert reply.headers["x-voxel-size-nm"] == "10,9.5,11"
    shape = tuple(int(part) for part in reply.headers["x-shape"].split(","))
    np.testing.assert_array_equal(np.frombuffer(reply.content, np.uint8).reshape(shape), expected)


def test_shape_in_the_query_and_a_body_in_pieces(
    client: httpx.Client, image: NDArray[np.uint8], expected: NDArray[np.uint8]
) -> None:
    data = image.tobytes()
    pieces = (data[i : i + 9973] for i in range(0, len(data), 9973))
    url = "/v1/boundary?shape=50,61,33&dtype=uint8&model=small"
    reply = client.post(url, content=pieces, headers={"Content-Type": RAW})
    np.testing.assert_array_equal(load(reply), expected)


def test_fortran_order_and_thin_patches(client: httpx.Client, predictor: Predictor) -> None:
    for shape in ((1, 1, 1), (1, 30, 2), (64, 17, 23)):
        image = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
        reply = client.post("/v1/boundary", content=npy(np.asfortranarray(image)), headers={"Content-Type": NPY})
        np.testing.assert_array_equal(load(reply), predictor.predict(image))


def test_second_model_takes_floats(client: httpx.Client, float_model: Model, image: NDArray[np.uint8]) -> None:
    floats = image.astype(np.float32)
    url = "/v1/boundary?model=small-float"
    reply = client.post(url, content=npy(floats), headers={"Content-Type": NPY})
    np.testing.assert_array_equal(load(reply), Predictor(float_model).predict(floats))
    floats[3, 4, 5] = np.nan
    reply = client.post(url, content=npy(floats), headers={"Content-Type": NPY})
    problem(reply, 422, "invalid-volume", "finite", "(3, 4, 5)")


def test_reference_equals_the_pipelines_prediction(
    client: httpx.Client, predictor: Predictor, volume_url: str, image: NDArray[np.uint8]
) -> None:
    with open_volume(volume_url) as volume:
        wanted = predictor.predict_box(volume.read, volume.info.shape, BOX)
    reply = client.post("/v1/boundary", json={"volume": volume_url, "box": str(BOX)})
    np.testing.assert_array_equal(load(reply), wanted)
    assert reply.headers["x-box"] == str(BOX)
    assert reply.headers["x-voxel-size-nm"] == "10,10,10"
    alone = predictor.predict(image[BOX.slices()])
    assert (alone != wanted).any(), "the box is predicted with the volume around it"


def test_reference_with_output(
    client: httpx.Client, predictor: Predictor, model: Model, volume_url: str, outputs: Path
) -> None:
    target = str(outputs / "affinities.zarr")
    body = {"volume": f"file://{volume_url}", "box": str(BOX), "output": target}
    reply = client.post("/v1/boundary", json=body)
    assert reply.status_code == 201, reply.text
    answer = reply.json()
    assert answer["sha256"] == model.card.file.sha256
    assert answer["shape"] == [3, *BOX.shape]
    with open_volume(volume_url) as volume, open_volume(target) as written:
        wanted = predictor.predict_box(volume.read, volume.info.shape, BOX)
        np.testing.assert_array_equal(written.read(written.box), wanted)
        assert written.info.voxel_size_nm == (10, 10, 10)
        assert written.info.offset_voxels == (16, 9, 14)
        assert written.info.affinity_offsets == model.card.output.offsets
        assert written.info.attributes["model"]["sha256"] == model.card.file.sha256
    problem(client.post("/v1/boundary", json=body), 409, "run-conflict", "already there")


def test_references_outside_the_prefixes(
    client: httpx.Client, volume_url: str, volumes: Path, outputs: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.npy"
    np.save(secret, np.zeros((9, 9, 9), np.uint8))
    (volumes / "link.npy").symlink_to(secret)
    (volumes / "folder").symlink_to(tmp_path)
    outside = [
        str(secret),
        f"{volumes}/../{tmp_path.name}/secret.npy",
        f"{volumes}/./image.zarr",
        f"{volumes}/link.npy",
        f"{volumes}/folder/secret.npy",
        f"{volumes}-other/image.zarr",
        f"{outputs}/affinities.zarr",
        "gs://bucket/image.zarr",
        "s3://169.254.169.254/latest",
        "memory://image.zarr",
        "zarr://file:///etc",
    ]
    for url in outside:
        problem(client.post("/v1/boundary", json={"volume": url, "box": "0:4,0:4,0:4"}), 403, "access-denied")
    for target in (str(tmp_path / "a.zarr"), f"{volumes}/a.zarr", "gs://bucket/a.zarr"):
        body = {"volume": volume_url, "box": "0:4,0:4,0:4", "output": target}
        problem(client.post("/v1/boundary", json=body), 403, "access-denied", "--outputs")
    assert not (tmp_path / "a.zarr").exists()
    assert not (volumes / "a.zarr").exists()


def test_wrong_references(client: httpx.Client, volumes: Path, volume_url: str) -> None:
    def send(**body: Any) -> httpx.Response:
        return client.post("/v1/boundary", json={"volume": volume_url, "box": str(BOX)} | body)

    problem(send(volume=f"{volumes}/nothing.zarr"), 404, "not-found")
    problem(send(volume="http://example.org/image.zarr"), 422, "invalid-input", "http://")
    problem(send(volume="\x00"), 422, "invalid-input", "printable")
    problem(send(model="nobody"), 404, "not-found", "small:1, small-float:1")
    problem(send(box="0:4,0:4"), 422, "invalid-input", "z0:z1,y0:y1,x0:x1")
    problem(send(box="0:4,0:4,30:34"), 422, "invalid-input", "within")
    problem(send(box="-1:4,0:4,0:4"), 422, "invalid-input")
    problem(send(box="4:0,0:4,0:4"), 422, "invalid-input")
    problem(send(box="4:4,0:4,0:4"), 422, "invalid-input", "voxels")
    problem(send(level=3), 404, "not-found", "level")
    problem(send(voxel_size_nm=[40, 10, 10]), 422, "invalid-model", "40×10×10")
    problem(send(extra=1), 422, "invalid-input", "extra")
    assert send(voxel_size_nm=[40, 10, 10], any_voxel_size=True).status_code == 200
    problem(client.post("/v1/boundary", json=[]), 422, "invalid-input")
    problem(client.post("/v1/boundary?model=small", json={}), 422, "invalid-input", "query")


def test_volumes_that_are_no_images(client: httpx.Client, volumes: Path) -> None:
    def make(name: str, **info: Any) -> dict[str, str]:
        given = {"shape": (8, 8, 8), "dtype": np.dtype(np.uint8), "voxel_size_nm": (10, 10, 10)} | info
        create_volume(volumes / name, VolumeInfo(**given)).close()
        return {"volume": str(volumes / name), "box": "0:8,0:8,0:8"}

    channels = make("channels.zarr", channels=2)
    problem(client.post("/v1/boundary", json=channels), 422, "invalid-volume", "2 channels")
    wide = make("wide.zarr", dtype=np.dtype(np.uint16))
    problem(client.post("/v1/boundary", json=wide), 422, "invalid-volume", "uint16")
    unknown = make("unknown.zarr", voxel_size_nm=None)
    problem(client.post("/v1/boundary", json=unknown), 422, "invalid-volume", "voxel_size_nm")
    assert client.post("/v1/boundary", json=unknown | {"voxel_size_nm": [10, 10, 10]}).status_code == 200
    assert client.post("/v1/boundary", json=unknown | {"any_voxel_size": True}).status_code == 200
    large = make("large.zarr", shape=(10**5, 10**5, 10**5)) | {"box": "0:200,0:200,0:200"}
    problem(client.post("/v1/boundary", json=large), 413, "payload-too-large", "4000000")
    problem(client.post("/v1/boundary", json=large | {"box": "7:8,7:8,0:99999"}), 413, "payload-too-large", "patches")
    assert client.post("/v1/boundary", json=large | {"box": "99990:100000,7:8,7:8"}).status_code == 200


def test_wrong_patches(client: httpx.Client, image: NDArray[np.uint8]) -> None:
    def send(content: bytes, kind: str = NPY, query: str = "", **headers: str) -> httpx.Response:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        return client.post(f"/v1/boundary{query}", content=content, headers={"Content-Type": kind} | named)

    good = npy(image)
    problem(send(npy(image.astype(np.uint16))), 422, "invalid-volume", "expects dtype uint8, got uint16")
    problem(send(npy(image.astype(np.float32))), 422, "invalid-volume", "float32")
    problem(send(npy(image[0])), 422, "invalid-volume", "three axes")
    problem(send(npy(image[:0])), 422, "invalid-input", "at least 1")
    problem(send(good[:-1]), 400, "malformed-body", f"expected {image.size} bytes of voxels, got {image.size - 1}")
    problem(send(good + b"\0"), 400, "malformed-body", "got more")
    problem(send(good[:50]), 400, "malformed-body", "within the header")
    problem(send(b""), 400, "malformed-body")
    problem(send(good, query="?model=nobody"), 404, "not-found")
    problem(send(good, query="?modle=small"), 422, "invalid-input", "modle")
    problem(send(good, query="?voxel_size_nm=40,4,4"), 422, "invalid-model", "40×4×4")
    problem(send(good, query="?voxel_size_nm=1,2"), 422, "invalid-input", "z,y,x")
    problem(send(good, query="?voxel_size_nm=nan,1,1"), 422, "invalid-model")
    problem(send(good, kind="text/plain"), 415, "unsupported-media-type", "text/plain")
    problem(send(good, Content_Encoding="gzip"), 415, "unsupported-media-type", "gzip")
    problem(send(good, Accept="text/html"), 406, "not-acceptable")
    raw = image.tobytes()
    problem(send(raw, RAW), 400, "malformed-body", "X-Shape")
    problem(send(raw, RAW, X_Shape="50,61,34", X_Dtype="uint8"), 400, "malformed-body", "got 100650")
    problem(send(raw, RAW, X_Shape="50,61,0", X_Dtype="uint8"), 422, "invalid-input", "at least 1")
    problem(send(raw, RAW, X_Shape="50,61,33", X_Dtype="object"), 422, "invalid-volume", "object")
    problem(send(raw, RAW, X_Shape="9" * 30 + ",1,1", X_Dtype="uint8"), 413, "payload-too-large")
    assert send(good, query="?voxel_size_nm=40,4,4&any_voxel_size=true").status_code == 200


def test_too_large_bodies_are_refused_unread(client: httpx.Client) -> None:
    def endless() -> Any:
        for _ in range(200):
            yield bytes(100_000)

    header = npy(np.zeros((1, 1, 1), np.uint8))[:-1]
    huge = header.replace(b"(1, 1, 1)", b"(9999, 9999, 9999)".ljust(9))[:128]
    declared = client.post("/v1/boundary", content=bytes(9_000_000), headers={"Content-Type": NPY})
    problem(declared, 413, "payload-too-large", "Content-Length says 9000000")
    lying = client.post("/v1/boundary", content=huge, headers={"Content-Type": NPY})
    assert lying.status_code in (400, 413)
    for shape, status, kind in (("100,100,100", 400, "malformed-body"), ("200,200,200", 413, "payload-too-large")):
        headers = {"Content-Type": RAW, "X-Shape": shape, "X-Dtype": "uint8"}
        problem(client.post("/v1/boundary", content=endless(), headers=headers), status, kind)
    text = client.post("/v1/boundary", content=endless(), headers={"Content-Type": "application/json"})
    problem(text, 413, "payload-too-large")


def test_health_models_and_pages(client: httpx.Client, model: Model) -> None:
    for path in ("/", "/healthz"):  # the first is where load balancers ask by default
        assert client.get(path).json() == {"status": "ok"}
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready", "replicas": {"models": 1, "segmenters": 1}}
    models = client.get("/v1/models").json()["models"]
    assert [item["name"] for item in models] == ["small", "small-float"]
    assert client.get("/v1/models/small").json() == models[0]
    assert models[0]["sha256"] == model.card.file.sha256
    assert models[0]["offsets"] == [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]
    problem(client.get("/v1/models/nobody"), 404, "not-found", "small")
    missing = client.get("/v1/nothing")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    wrong = client.get("/v1/boundary")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert client.get("/problems/access-denied").json()["status"] == 403
    problem(client.get("/problems/nothing"), 404, "not-found")


def test_documentation_needs_no_other_host(client: httpx.Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v1/boundary"]["post"]
    assert set(operation["requestBody"]["content"]) == {RAW, NPY, "application/json"}
    assert {"200", "201", "400", "403", "413", "422", "429", "504"} <= set(operation["responses"])
    page = client.get("/docs")
    assert page.status_code == 200
    assert "http://" not in page.text.replace(str(client.base_url), "")
    assert "https://" not in page.text
    script = next(part for part in page.text.split('"') if part.endswith(".js"))
    assert len(client.get(script).content) > 100_000


def test_no_serving_process_loads_torch(client: httpx.Client, server: Any) -> None:
    replicas = 0
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            name = " ".join(process.cmdline())
        except (psutil.Error, OSError):
            continue
        replicas += "ServeReplica" in name
        assert "libtorch" not in maps, name
        assert ("libopenvino.so" in maps) == ("petavoxel:Models" in name), name
    assert replicas == 3
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()


@pytest.mark.slow
def test_latency_beside_the_plain_predictor(client: httpx.Client, predictor: Predictor) -> None:
    image = np.random.default_rng(3).integers(0, 256, (64, 64, 64), dtype=np.uint8)
    headers = {"Content-Type": RAW, "X-Shape": "64,64,64", "X-Dtype": "uint8", "Accept": RAW}
    seconds: dict[str, list[float]] = {"plain": [], "http": [], "healthz": []}
    for _ in range(20):
        start = time.perf_counter()
        wanted = predictor.predict(image)
        seconds["plain"].append(time.perf_counter() - start)
        start = time.perf_counter()
        reply = client.post("/v1/boundary", content=image.tobytes(), headers=headers)
        seconds["http"].append(time.perf_counter() - start)
        assert reply.content == wanted.tobytes()
        start = time.perf_counter()
        client.get("/healthz")
        seconds["healthz"].append(time.perf_counter() - start)
    medians = {name: float(np.median(values[3:])) for name, values in seconds.items()}
    print({name: f"{1000 * value:.1f} ms" for name, value in medians.items()}, os.getloadavg())
    assert medians["http"] < 3 * medians["plain"] + 0.5
