"""A server with tight limits: it refuses, gives up and stops as it promises."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from models.catalog import Model
from services.predict import Predictor

DEADLINE_S = 10.0
Start = Callable[..., AbstractContextManager[Any]]


def _headers(extent: int) -> dict[str, str]:
    kind = "application/octet-stream"
    return {"Content-Type": kind, "Accept": kind, "X-Shape": f"{extent},{extent},{extent}", "X-Dtype": "uint8"}


def _post(url: str, extent: int, route: str = "boundary") -> tuple[httpx.Response, float]:
    start = time.monotonic()
    reply = httpx.post(f"{url}/v1/{route}", content=bytes(extent**3), headers=_headers(extent), timeout=60)
    return reply, time.monotonic() - start


@pytest.mark.cluster
def test_limits_and_stop(start_server: Start, model: Model, predictor: Predictor, tmp_path: Path) -> None:
    options = ["--model", str(model.folder), "--threads", "1", "--max-queued-requests", "2"]
    options += ["--request-timeout-s", str(DEADLINE_S), "--max-bytes", "70000000"]
    with start_server(tmp_path, *options) as server:
        _slow_requests_are_given_up(server.url)
        _crowds_are_refused(server.url)
        _a_killed_replica_is_replaced(server)
        _open_requests_outlive_sigterm(server, predictor)


@pytest.mark.cluster
def test_replicas_share_the_load(start_server: Start, model: Model, tmp_path: Path) -> None:
    options = ["--model", str(model.folder), "--threads", "1", "--replicas", "2", "--max-queued-requests", "32"]
    with start_server(tmp_path, *options) as server:
        replicas = [psutil.Process(pid) for pid in server.replicas("Models")]
        assert _post(server.url, 32)[0].status_code == 200, "one replica holds the model now"
        time.sleep(2)  # and Serve knows
        before = [sum(replica.cpu_times()[:2]) for replica in replicas]
        with ThreadPoolExecutor(6) as pool:
            replies = [reply for reply, _ in pool.map(lambda _: _post(server.url, 56), range(24))]
        assert {reply.status_code for reply in replies} == {200}
        took = [sum(replica.cpu_times()[:2]) - earlier for replica, earlier in zip(replicas, before, strict=True)]
        assert min(took) > 0.3 * sum(took), took


def _slow_requests_are_given_up(url: str) -> None:
    reply, seconds = _post(url, 400)
    assert reply.status_code == 504, reply.text[:300]
    assert reply.json()["type"] == "/problems/deadline-exceeded"
    assert DEADLINE_S <= seconds < DEADLINE_S + 4
    reply, seconds = _post(url, 8)
    assert reply.status_code == 200, "the replica is free again, its work was interrupted"
    assert seconds < DEADLINE_S


def _crowds_are_refused(url: str) -> None:
    with ThreadPoolExecutor(12) as pool:
        replies = [reply for reply, _ in pool.map(lambda _: _post(url, 64), range(12))]
    codes = [reply.status_code for reply in replies]
    assert 429 in codes
    assert 200 in codes
    assert set(codes) <= {200, 429, 504}
    for reply in replies:
        if reply.status_code == 429:
            assert reply.headers["retry-after"] == "1"
            assert reply.json()["type"] == "/problems/overloaded"


def _replica(server: Any) -> psutil.Process:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return next(child for child in children if "ServeReplica:petavoxel:Models" in " ".join(child.cmdline()))


def _a_killed_replica_is_replaced(server: Any) -> None:
    killed = _replica(server)
    assert killed.nice() == psutil.Process(server.process.pid).nice(), "other programs do not go first"
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(_post, server.url, 128, route) for route in ("boundary", "segment")]
        time.sleep(0.4)
        killed.kill()
        replies = [each.result()[0] for each in waiting]
    for lost in replies:
        assert lost.status_code == 503, lost.text[:300]
        assert lost.json()["type"] == "/problems/unavailable"
        assert lost.headers["retry-after"] == "5"
    give_up = time.monotonic() + 60
    while (reply := _post(server.url, 8)[0]).status_code in (503, 504) and time.monotonic() < give_up:
        time.sleep(0.2)
    assert reply.status_code == 200, reply.text[:300]
    assert _replica(server).pid != killed.pid


def _open_requests_outlive_sigterm(server: Any, predictor: Predictor) -> None:
    extent = 96
    children = psutil.Process(server.process.pid).children(recursive=True)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_post, server.url, extent)
        time.sleep(0.4)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        try:
            refused = _post(server.url, 8)[0]
        except httpx.TransportError:
            pass
        else:
            assert refused.status_code == 503, "no new requests while it stops"
        reply, _ = waiting.result()
    assert reply.status_code == 200, reply.text[:300]
    wanted = predictor.predict(np.zeros((extent, extent, extent), np.uint8))
    assert reply.content == wanted.tobytes()
    assert server.process.wait(timeout=60) == 0
    assert not psutil.wait_procs(children, timeout=15)[1], "nothing is left running"


def _fail(*options: str) -> str:
    command = [sys.executable, "-c", "from services.cli import main; main()", "serve", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode not in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    return next(line for line in done.stderr.splitlines() if line.startswith("petavoxel: "))


def test_mistakes_on_the_command_line_get_one_line(model: Model, tmp_path: Path) -> None:
    assert "known models" in _fail("--model", "nobody")
    assert "max_bytes" in _fail("--max-bytes", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"127.0.0.1:{port}: cannot listen" in _fail("--model", str(model.folder), "--port", port)


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # in ray.serve.schema
def test_damaged_and_double_models(model: Model, tmp_path: Path) -> None:
    from models.errors import InvalidConfig, InvalidInput, InvalidModel
    from services.endpoints.app import build_app
    from services.endpoints.config import ServeConfig

    copy = tmp_path / "copy"
    shutil.copytree(model.folder, copy)
    with pytest.raises(InvalidConfig, match="small"):
        build_app(ServeConfig(models=(str(model.folder), str(copy))))
    with pytest.raises(InvalidInput, match="ftp"):
        build_app(ServeConfig(models=(str(model.folder),), volumes=("ftp://host/",)))
    (copy / "model.onnx").write_bytes(model.onnx_path.read_bytes()[:-1])
    with pytest.raises(InvalidModel, match="bytes"):
        build_app(ServeConfig(models=(str(copy),)))
