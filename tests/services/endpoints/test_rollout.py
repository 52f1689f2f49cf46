"""A changed configuration is rolled out under load: what KubeRay does when the chart is upgraded."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from compared_load import ComparedLoad, Question
from served import HAPROXY
from served_head import ServedHead

from models.catalog import CARD_NAME, Model, find_model
from services.predict import Predictor

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

IMAGE = np.random.default_rng(5).integers(0, 256, (12, 13, 14), dtype=np.uint8)
RAW = "application/octet-stream"
HEADERS = {"Content-Type": RAW, "Accept": RAW, "X-Shape": "12,13,14", "X-Dtype": "uint8"}


def _version(model: Model, folder: Path, version: str, factor: float) -> Model:
    """The small model as another version, which answers otherwise."""
    folder.mkdir()
    normalisation = replace(model.card.normalisation, scale=model.card.normalisation.scale * factor)
    (folder / model.card.file.name).write_bytes(model.onnx_path.read_bytes())
    (folder / CARD_NAME).write_text(replace(model.card, version=version, normalisation=normalisation).to_json())
    return find_model(folder)


@pytest.mark.parametrize("front", ["Ray's proxy", "HAProxy"])
def test_no_request_fails_while_the_configuration_changes(
    front: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {str(n): _version(model, tmp_path / str(n), str(n), 1 + n / 2) for n in (1, 2)}
    wanted = {version: Predictor(found, precision="fp32").predict(IMAGE).tobytes() for version, found in models.items()}
    assert len(set(wanted.values())) == 2
    if front == "HAProxy":
        for name, value in HAPROXY.items():
            monkeypatch.setenv(name, value)
    seen: list[tuple[float, str]] = []

    def send(client: httpx.Client) -> httpx.Response:
        return client.post("/v1/boundary", content=IMAGE.tobytes(), headers=HEADERS)

    def check(reply: httpx.Response) -> bool:
        version = reply.headers["x-model-version"]
        seen.append((time.monotonic(), version))
        return reply.content == wanted[version] and len(reply.headers.get_list("x-request-id")) == 1

    config: dict[str, Any] = {"models": [str(models["1"].folder)], "threads": 1, "precision": "fp32"}
    with ServedHead(cpus=8) as head:
        head.deploy(config)
        head.wait_for_replicas(240, models=config["models"])
        with ComparedLoad(head.url, [Question("patch", send, check)], clients=3, pause_s=0.05) as load:
            time.sleep(3)
            before = set(head.processes())
            config |= {"models": [str(models["2"].folder)], "max_batch": 2, "request_timeout_s": 60.0}
            head.deploy(config)
            head.wait_for_replicas(240, models=config["models"], max_batch=2)
            changed = time.monotonic()
            roles = {role for pid, role in head.processes().items() if pid not in before}
            assert roles == {"Models", "Segmenters", "Ingress"}, "all replicas are new"
            time.sleep(3)
            head.deploy(config, ({"name": "Models", "num_replicas": 2},))
            time.sleep(2)
            head.wait_for_replicas(240, models=config["models"])
            assert list(head.processes().values()).count("Models") == 2
            time.sleep(2)
        bad = [one for one in load.asked if one.outcome != "right"]
        assert not bad, (front, len(bad), len(load.asked), bad[:3])
        assert len(load.asked) > 50
        assert {version for moment, version in seen if moment < changed} == {"1", "2"}
        assert {version for moment, version in seen if moment > changed + 1} == {"2"}
