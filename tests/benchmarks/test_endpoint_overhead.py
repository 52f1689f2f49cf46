"""What the way through HTTP and Serve costs beside the network itself, and beside the plainest server one could write.

`pytest -m slow -s tests/benchmarks/test_endpoint_overhead.py` prints the tables. `PETAVOXEL_BENCH_S` is how long each
load lasts, in seconds (default 30).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from served import running

from infra.volumes import VolumeInfo, create_volume
from models.catalog import Model
from services.predict import Predictor

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]

SHAPE = (32, 160, 160)
SECONDS = float(os.environ.get("PETAVOXEL_BENCH_S", "30"))
RAW = "application/octet-stream"
HEADERS = {"Content-Type": RAW, "Accept": RAW, "X-Shape": ",".join(map(str, SHAPE)), "X-Dtype": "uint8"}

PLAIN = """
import sys
import numpy as np, onnxruntime, uvicorn
from fastapi import FastAPI, Request, Response

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
name, app = session.get_inputs()[0].name, FastAPI()
shift, scale, patch = float(sys.argv[3]), float(sys.argv[4]), tuple(map(int, sys.argv[5].split(",")))

@app.get("/ready")
def ready(): return {}

@app.post("/")
async def predict(request: Request):
    image = np.frombuffer(await request.body(), np.uint8).reshape(patch)
    x = (image.astype(np.float32) - np.float32(shift)) * np.float32(scale)
    return Response(np.rint(session.run(None, {name: x[None, None]})[0][0] * 255).astype(np.uint8).tobytes())

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def test_overhead_beside_the_bare_call(image: NDArray[np.uint8], tmp_path: Path) -> None:
    """Latency of single requests without what the replica itself takes, which the reply's Server-Timing tells.

    The client is the standard library's, which adds the least of its own.
    """
    url = str(tmp_path / "image.zarr")
    info = VolumeInfo(shape=SHAPE, dtype=image.dtype, voxel_size_nm=(10, 10, 10))
    with create_volume(url, info) as volume:
        volume.write(volume.box, image)
    box = ",".join(f"0:{n}" for n in SHAPE)
    predictor = Predictor("fib25-affinity")
    options = ["--volumes", str(tmp_path), "--outputs", str(tmp_path)]
    rows: dict[str, list[tuple[float, float]]] = {"body": [], "reference": [], "bare": []}
    with running(tmp_path, *options) as server:
        connection = HTTPConnection(server.url.removeprefix("http://"), timeout=600)

        def ask(name: str, status: int, body: bytes, headers: dict[str, str]) -> bytes:
            began = time.perf_counter()
            connection.request("POST", "/v1/boundary", body, headers)
            reply = connection.getresponse()
            content = reply.read()
            rows[name].append((time.perf_counter() - began, _replica_s(reply.headers["server-timing"])))
            assert reply.status == status
            return content

        end = time.monotonic() + 3 * SECONDS
        for turn in range(100):
            began = time.perf_counter()
            wanted = predictor.predict(image)
            rows["bare"].append((time.perf_counter() - began, 0))
            assert ask("body", 200, image.tobytes(), HEADERS) == wanted.tobytes()
            reference = {"volume": url, "box": box, "output": str(tmp_path / f"out{turn}.zarr")}
            ask("reference", 201, json.dumps(reference).encode(), {"Content-Type": "application/json"})
            if time.monotonic() > end and turn >= 4:
                break
        connection.close()
    bare = float(np.median([latency for latency, _ in rows["bare"]]))
    for name in ("body", "reference"):
        extra = np.median([latency - inside for latency, inside in rows[name][1:]])
        print(f"{name}: +{1000 * extra:.1f} ms of a bare call of {1000 * bare:.0f} ms ({100 * extra / bare:.1f} %)")
        assert extra < 0.5 * bare + 0.2
    print(len(rows["body"]), "turns; load", os.getloadavg())


@pytest.mark.parametrize("options", [(), ("--replicas", str(os.cpu_count()), "--threads", "1")])
def test_throughput_beside_bare_calls(options: tuple[str, ...], tmp_path: Path) -> None:
    """16 clients, one patch of the shipped network per request: voxels per second beside calls without a server."""
    shape = (32, 80, 80)
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    predictor = Predictor("fib25-affinity")
    assert predictor.plan(shape).counts == (1, 1, 1)
    headers = HEADERS | {"X-Shape": "32,80,80"}
    rates: list[float] = []
    with running(tmp_path, *options) as server:
        for _ in range(2):
            count, began = 0, time.monotonic()
            while time.monotonic() < began + SECONDS / 2:
                predictor.predict(image)
                count += 1
            rates.append(count / (time.monotonic() - began))
            print(f"bare calls: {rates[-1]:.2f}/s")
            print(f"16 clients {' '.join(options)}: {_load(server.url, 16, lambda c: _ours(c, image, headers))}")
    print("load", os.getloadavg())
    assert min(rates) > 0


def test_throughput_of_many_clients(model: Model, tmp_path: Path) -> None:
    """One patch per request, the small network of the tests in fp32: requests per second and latencies, in turns."""
    patch = model.card.patch.shape
    image = np.random.default_rng(1).integers(0, 256, (20, 20, 20), dtype=np.uint8)
    assert Predictor(model).plan((20, 20, 20)).counts == (1, 1, 1)
    headers = HEADERS | {"X-Shape": "20,20,20"}
    padded = np.pad(image, 2, mode="reflect")
    assert padded.shape == patch
    options = ["--model", str(model.folder), "--precision", "fp32", "--ongoing", "4"]
    predictor = Predictor(model, precision="fp32")
    results: dict[str, list[str]] = {}

    def measure(name: str, clients: int, ask: Callable[[HTTPConnection], int], base: str) -> None:
        results.setdefault(f"{name}, {clients} clients", []).append(_load(base, clients, ask))

    with running(tmp_path, *options) as server, _plain(model, tmp_path) as plain:
        for _ in range(2):
            count, end = 0, time.monotonic() + SECONDS / 2
            while time.monotonic() < end:
                predictor.predict(image)
                count += 1
            results.setdefault("bare calls", []).append(f"{2 * count / SECONDS:.0f}/s")
            for clients in (1, 16, 64):
                measure("petavoxel", clients, lambda c: _ours(c, image, headers), server.url)
                measure("FastAPI + ONNX Runtime", clients, lambda c: _theirs(c, padded), plain)
    for name, rows in results.items():
        print(f"{name}: {'; '.join(rows)}")
    print("load", os.getloadavg())


def _ours(client: HTTPConnection, image: NDArray[np.uint8], headers: dict[str, str]) -> int:
    return _status(client, "/v1/boundary", image.tobytes(), headers)


def _theirs(client: HTTPConnection, padded: NDArray[np.uint8]) -> int:
    return _status(client, "/", padded.tobytes(), {})


def _status(client: HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> int:
    client.request("POST", path, body, headers)
    reply = client.getresponse()
    reply.read()
    return reply.status


def _replica_s(timing: str) -> float:
    return float(timing.partition("dur=")[2]) / 1000


def _load(base: str, clients: int, ask: Callable[[HTTPConnection], int]) -> str:
    """Closed-loop load for `SECONDS` / 2 by the standard library's clients; a refused one waits for a moment."""
    statuses: list[tuple[int, float]] = []
    stop = threading.Event()

    def one(_: int) -> None:
        with closing(HTTPConnection(base.removeprefix("http://"), timeout=120)) as client:
            while not stop.is_set():
                began = time.perf_counter()
                status = ask(client)
                statuses.append((status, time.perf_counter() - began))
                if status == 429:
                    time.sleep(0.2)

    with ThreadPoolExecutor(clients) as pool:
        began = time.monotonic()
        asking = [pool.submit(one, i) for i in range(clients)]
        time.sleep(SECONDS / 2)
        stop.set()
        for each in asking:
            each.result()
        elapsed = time.monotonic() - began  # to the last reply, so that none counts only in part
    good = [seconds for status, seconds in statuses if status == 200]
    refused = sum(status == 429 for status, _ in statuses)
    assert good
    assert len(good) + refused == len(statuses)
    p50, p99 = np.quantile(good, [0.5, 0.99])
    return f"{len(good) / elapsed:.2f}/s p50 {1000 * p50:.0f} p99 {1000 * p99:.0f} ms, {refused} refused"


@contextmanager
def _plain(model: Model, folder: Path) -> Iterator[str]:
    script, port = folder / "plain.py", str(_free_port())
    script.write_text(PLAIN)
    card = model.card
    numbers = [str(card.normalisation.shift), str(card.normalisation.scale), ",".join(map(str, card.patch.shape))]
    process = subprocess.Popen([sys.executable, str(script), str(model.onnx_path), port, *numbers])
    url = f"http://127.0.0.1:{port}"
    try:
        give_up = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{url}/ready")
                break
            except httpx.TransportError:
                assert time.monotonic() < give_up
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def _free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
