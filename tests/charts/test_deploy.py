"""What the chart renders for Ray Serve is deployed on a real Ray; what its probes and dashboard ask there exists."""

from __future__ import annotations

import io
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from helm_cli import CHART, Helm
from manifests import named
from ray_head import BIN, RayHead

from models.catalog import Model

LATER = re.compile("ray_petavoxel_(chunks|bucket)_|ray_node_gpus_|ray_serve_deployment_queued_queries")
"""Series that this Ray need not show: a GPU's, those of pipelines, and of a queue in which nothing waited."""


@pytest.fixture(scope="module")
def ray() -> Iterator[RayHead]:
    with RayHead() as head:
        yield head


@pytest.mark.cluster
@pytest.mark.timeout(420)
def test_the_rendered_config_serves(helm4: Helm, ray: RayHead, model: Model, tmp_path: Path) -> None:
    config = {"models": [str(model.folder)], "port": ray.ports["serve"], "threads": 1}
    override = {"name": "Models", "autoscaling_config": {"min_replicas": 1, "max_replicas": 2}}
    manifests = helm4.template(serve__config=config, serve__deployments=[override])
    [service] = named(manifests, "RayService")
    path = tmp_path / "serve.yaml"
    path.write_text(service["spec"]["serveConfigV2"])
    command = [str(BIN / "serve"), "deploy", "--address", ray.dashboard, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ray.environment, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    url = f"http://127.0.0.1:{ray.ports['serve']}"
    _wait_for_application(ray)
    ready = json.loads(ray.wait(f"{url}/readyz", '"ready"', 30))
    assert min(ready["replicas"].values()) == 1
    assert _predict(url).shape == (3, 8, 9, 10)
    _probes_succeed(service, ray.ports)
    _dashboard_shows_what_is_there(ray)


def _wait_for_application(ray: RayHead) -> None:
    status, give_up = {}, time.monotonic() + 180
    while time.monotonic() < give_up:
        status = json.loads(ray.get(f"{ray.dashboard}/api/serve/applications/"))["applications"]
        if status["petavoxel"]["status"] in ("RUNNING", "DEPLOY_FAILED"):
            break
        time.sleep(0.5)
    assert status["petavoxel"]["status"] == "RUNNING", status["petavoxel"]["message"]


def _predict(url: str) -> np.ndarray:
    body = io.BytesIO()
    np.save(body, np.zeros((8, 9, 10), np.uint8))
    request = urllib.request.Request(f"{url}/v1/boundary", body.getvalue(), {"Content-Type": "application/x-npy"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return np.load(io.BytesIO(reply.read()), allow_pickle=False)


def _probes_succeed(service: dict[str, object], ports: dict[str, int]) -> None:
    """The rendered commands, with the ports of this Ray, say so; those of a port where nothing is, do not."""
    text = yaml.safe_dump(service["spec"])
    cluster = yaml.safe_load(text)["rayClusterConfig"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for container in [pod["template"]["spec"]["containers"][0] for pod in pods]:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            command = container[probe]["exec"]["command"]
            here = command[-1].replace(":52365/", f":{ports['agent']}/").replace(":8265/", f":{ports['dashboard']}/")
            done = subprocess.run([*command[:-1], here], timeout=30, check=False)
            assert done.returncode == 0, here
    dead = here.replace(str(ports["agent"]), str(ports["client"]))
    assert subprocess.run([*command[:-1], dead], timeout=30, check=False).returncode != 0


def _dashboard_shows_what_is_there(ray: RayHead) -> None:
    dashboard = (CHART / "files" / "dashboard.json").read_text()
    wanted = {name.removesuffix("_bucket") for name in re.findall(r"\bray_[a-z_]+", dashboard)}
    metrics = f"http://127.0.0.1:{ray.ports['metrics']}/metrics"
    ray.wait(metrics, "ray_serve_http_request_latency_ms_count", 60)
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        there = set(re.findall(r"^(?:# TYPE )?(ray_[a-z_]+)", ray.get(metrics), re.MULTILINE))
        missing = {name for name in wanted - there if not LATER.match(name)}
        if not missing:
            break
        time.sleep(1)
    assert not missing
    assert len(wanted) > 15
