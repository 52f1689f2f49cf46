"""One pool of replicas, many models: what is put into the folder is served, what is broken harms nobody."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from services.predict import Predictor

pytestmark = pytest.mark.cluster

IMAGE = np.random.default_rng(5).integers(0, 256, (12, 13, 14), dtype=np.uint8)
RAW = {
    "Content-Type": "application/octet-stream",
    "Accept": "application/octet-stream",
    "X-Shape": "12,13,14",
    "X-Dtype": "uint8",
}


def _post(client: httpx.Client, query: str) -> httpx.Response:
    return client.post(f"/v1/boundary?{query}", content=IMAGE.tobytes(), headers=RAW)


def _wait_for(client: httpx.Client, path: str) -> None:
    give_up = time.monotonic() + 30
    while client.get(path).status_code == 404 and time.monotonic() < give_up:
        time.sleep(0.1)


@pytest.fixture(scope="session")
def wanted(predictor: Predictor) -> NDArray[np.uint8]:
    return predictor.predict(IMAGE)


def test_more_models_than_a_replica_holds(
    client: httpx.Client,
    server: Any,
    model_folder: Path,
    put_model: Callable[..., None],
    wanted: NDArray[np.uint8],
) -> None:
    names = [f"many-{i}" for i in range(4)]
    for name in names:
        put_model(model_folder, name, "1")
    _wait_for(client, "/v2/models/many-3")
    before = server.replicas()
    for name in [*names, *reversed(names), "small"]:
        reply = _post(client, f"model={name}")
        assert reply.status_code == 200, reply.text
        assert reply.headers["x-model-name"] == name
        assert reply.content == wanted.tobytes()
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda name: _post(client, f"model={name}"), names * 4))
    assert [reply.status_code for reply in replies] == [200] * 16
    assert {reply.content for reply in replies} == {wanted.tobytes()}
    assert server.replicas() == before


def test_a_broken_model_harms_nobody(
    client: httpx.Client,
    server: Any,
    model_folder: Path,
    put_model: Callable[..., None],
    wanted: NDArray[np.uint8],
) -> None:
    put_model(model_folder, "garbage", "1", b"this is no network" * 100)
    _wait_for(client, "/v2/models/garbage")
    before = server.replicas()
    for _ in range(3):
        reply = _post(client, "model=garbage")
        assert reply.status_code == 503, reply.text
        assert reply.json()["type"] == "/problems/model-unavailable"
        assert "cannot be loaded" in reply.json()["detail"]
        assert reply.headers["retry-after"]
        assert "Traceback" not in reply.text
        assert client.get("/v2/models/garbage/ready").status_code == 503
        assert _post(client, "model=small").content == wanted.tobytes()
    assert client.get("/v2/models/small/ready").status_code == 200
    assert client.get("/v2/health/ready").status_code == 200
    put_model(model_folder, "late", "1")
    _wait_for(client, "/v2/models/late")
    (model_folder / "late-1" / "model.onnx").unlink()
    assert _post(client, "model=late").status_code in (404, 503), "it is left out when the folder is looked through"
    time.sleep(0.5)
    assert _post(client, "model=late").status_code == 404
    assert _post(client, "model=small").status_code == 200
    assert server.replicas() == before


def test_a_new_version_is_rolled_out_without_a_failed_request(
    server: Any, model_folder: Path, put_model: Callable[..., None], wanted: NDArray[np.uint8]
) -> None:
    put_model(model_folder, "rolling", "1")
    seen: list[tuple[int, str, bytes]] = []
    stop = threading.Event()

    def ask(_: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not stop.is_set():
                reply = _post(client, "model=rolling")
                seen.append((reply.status_code, reply.headers.get("x-model-version", ""), reply.content))

    with httpx.Client(base_url=server.url, timeout=60) as client:
        _wait_for(client, "/v2/models/rolling")
        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(ask, i) for i in range(3)]
            time.sleep(1)
            put_model(model_folder, "rolling", "2")
            give_up = time.monotonic() + 30
            while not any(version == "2" for _, version, _ in seen) and time.monotonic() < give_up:
                time.sleep(0.1)
            time.sleep(0.5)
            stop.set()
            for each in asking:
                each.result()
        assert client.get("/v2/models/rolling").json()["versions"] == ["1", "2"]
        old = _post(client, "model=rolling&version=1")
        assert (old.status_code, old.headers["x-model-version"]) == (200, "1")
    assert {status for status, _, _ in seen} == {200}
    assert {version for _, version, _ in seen} == {"1", "2"}
    assert {content for _, _, content in seen} == {wanted.tobytes()}


def test_request_ids_come_back_and_are_in_the_logs(client: httpx.Client, server: Any) -> None:
    reply = client.post(
        "/v1/boundary?model=small", content=IMAGE.tobytes(), headers=RAW | {"X-Request-Id": "test-4711"}
    )
    assert reply.headers.get_list("x-request-id") == ["test-4711"]
    made = client.get("/v1/models").headers.get_list("x-request-id")
    assert len(made) == 1
    assert len(made[0]) >= 16
    lines: list[dict[str, Any]] = []
    (pid,) = server.replicas("Ingress")
    give_up = time.monotonic() + 20
    while not lines and time.monotonic() < give_up:
        files = {file.path for file in psutil.Process(pid).open_files() if file.path.endswith(".err")}
        texts = [text for path in files for text in Path(path).read_text().splitlines() if "test-4711" in text]
        lines = [line for line in map(json.loads, texts) if line.get("logger") == "services.endpoints.access"]
        time.sleep(0.2)
    (line,) = lines
    assert line["request_id"] == "test-4711"
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/boundary", 200)
    assert line["bytes_out"] == 3 * IMAGE.size
    assert 0 < line["seconds"] < 60


def test_metrics_are_counted_under_load(client: httpx.Client, metrics_port: int) -> None:
    def read() -> dict[str, float]:
        text = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10).text
        found: dict[str, float] = {}
        for name, labels, value in re.findall(r"^(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            model = re.search(r'model="([^"]*)"', labels)
            key = f"{name}:{model.group(1)}" if model else name
            found[key] = found.get(key, 0) + float(value)
        return found

    def grown() -> float:
        return read().get("ray_petavoxel_voxels_total:small:1", 0) - before

    for _ in range(3):
        assert _post(client, "model=small").status_code == 200
    before = read().get("ray_petavoxel_voxels_total:small:1", 0)
    for _ in range(5):
        assert _post(client, "model=small").status_code == 200
    give_up = time.monotonic() + 40
    while grown() < 5 * IMAGE.size and time.monotonic() < give_up:
        time.sleep(0.5)
    assert grown() >= 5 * IMAGE.size
    found = read()
    assert found["ray_petavoxel_model_loads_total:small:1"] >= 1
    assert found["ray_petavoxel_batch_size_count:small:1"] >= 5
    assert any(name.startswith("ray_serve_num_http_requests") for name in found)
    assert any("latency_ms" in name for name in found)
