from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from models.catalog import Model

SCRIPT = """
import sys
from services.endpoints.config import ServeConfig
from services.endpoints.running import serving

config = ServeConfig(
    models=(sys.argv[1],), port=0, threads=1, max_replicas=2, target_ongoing=1.0, upscale_delay_s=0.5,
    downscale_delay_s=2.0,
)
with serving(config) as url:
    print(url, flush=True)
    sys.stdin.read()
"""
HEADERS = {"Content-Type": "application/octet-stream", "X-Shape": "64,64,64", "X-Dtype": "uint8"}


def _wait_for(url: str, replicas: int) -> None:
    give_up = time.monotonic() + 120
    while httpx.get(f"{url}/readyz", timeout=30).json()["replicas"]["models"] != replicas:
        assert time.monotonic() < give_up, f"expected {replicas} replicas"
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.cluster
def test_replicas_come_with_load_and_go_without_losing_a_request(model: Model, tmp_path: Path) -> None:
    log = (tmp_path / "log.txt").open("w")
    command = [sys.executable, "-c", SCRIPT, str(model.folder)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    statuses: list[int] = []
    stop = threading.Event()

    def ask(_: int) -> None:
        while not stop.is_set():
            reply = httpx.post(f"{url}/v1/boundary", content=bytes(64**3), headers=HEADERS, timeout=120)
            statuses.append(reply.status_code)

    try:
        _wait_for(url, 1)
        with ThreadPoolExecutor(6) as pool:
            asking = [pool.submit(ask, i) for i in range(6)]
            try:
                _wait_for(url, 2)
                time.sleep(2)
            finally:
                stop.set()
            for each in asking:
                each.result()
        _wait_for(url, 1)
        assert httpx.post(f"{url}/v1/boundary", content=bytes(64**3), headers=HEADERS, timeout=60).status_code == 200
        assert set(statuses) == {200}
    finally:
        server.communicate(timeout=90)
        log.close()
