"""A real server in front of a registry on a bucket: versions come, break and go under load."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from served import running

from infra.registry import Registry, fetch
from models.catalog import CARD_NAME, Model
from services.predict import Predictor

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

IMAGE = np.random.default_rng(6).integers(0, 256, (12, 13, 14), dtype=np.uint8)
RAW = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream", "X-Shape": "12,13,14",
       "X-Dtype": "uint8"}  # fmt: skip
INFER = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": list(IMAGE.shape), "data": IMAGE.ravel().tolist()}]}


def _garbage(model: Model, folder: Path) -> Model:
    """A sound card beside something that is no network."""
    content = b"this is no network" * 100
    file = replace(model.card.file, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    folder.mkdir()
    (folder / file.name).write_bytes(content)
    (folder / CARD_NAME).write_text(replace(model.card, file=file).to_json())
    return Model(replace(model.card, file=file), folder)


def test_versions_of_a_registry_are_served_and_rolled_out_without_a_failed_request(
    model: Model, gcs_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PETAVOXEL_MODEL_CACHE", str(tmp_path / "cache"))
    registry = Registry(f"{gcs_bucket}/models")
    registry.push(model, "1")
    darker = Model(replace(model.card, normalisation=replace(model.card.normalisation, shift=90.0)), model.folder)
    seen: list[tuple[int, str, bytes]] = []
    stop = threading.Event()

    def ask(url: str) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.is_set():
                reply = client.post("/v1/boundary?model=small", content=IMAGE.tobytes(), headers=RAW)
                seen.append((reply.status_code, reply.headers.get("x-model-version", ""), reply.content))

    options = ["--model", f"{registry.url}/small@1", "--model-folder", registry.url, "--rescan-s", "0.2"]
    with (
        running(tmp_path, *options, "--threads", "1") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):

        def wait_for(path: str, found: Any) -> None:
            give_up = time.monotonic() + 120
            while not found(client.get(path)) and time.monotonic() < give_up:
                time.sleep(0.1)

        with ThreadPoolExecutor(2) as pool:
            asking = [pool.submit(ask, server.url) for _ in range(2)]
            time.sleep(0.5)
            registry.push(darker, "2")
            give_up = time.monotonic() + 120
            while not any(version == "2" for _, version, _ in seen) and time.monotonic() < give_up:
                time.sleep(0.1)
            registry.push(_garbage(model, tmp_path / "garbage"), "3")
            wait_for("/v2/models/small/versions/3", lambda reply: reply.status_code == 200)
            time.sleep(1)
            stop.set()
            for each in asking:
                each.result()
        metadata = client.get("/v2/models/small").json()
        assert (metadata["versions"], metadata["parameters"]["sha256"]) == (["1", "2", "3"], model.card.file.sha256)
        assert client.get("/v2/models/small/versions/3/ready").status_code == 503
        assert client.get("/v2/models/small/versions/7").status_code == 404
        wanted = {version: Predictor(fetch(f"{registry.url}/small/{version}")).predict(IMAGE) for version in ("1", "2")}
        for version, expected in wanted.items():
            reply = client.post(f"/v2/models/small/versions/{version}/infer", json=INFER)
            assert reply.status_code == 200, reply.text
            assert (reply.json()["model_name"], reply.json()["model_version"]) == ("small", version)
            np.testing.assert_array_equal(reply.json()["outputs"][0]["data"], expected.ravel())
    assert {status for status, _, _ in seen} == {200}
    assert {(version, content) for _, version, content in seen} == {(v, wanted[v].tobytes()) for v in wanted}
    assert wanted["1"].tobytes() != wanted["2"].tobytes()
