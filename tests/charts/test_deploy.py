"""What the chart renders for Ray Serve is deployed on a real Ray; what its probes and dashboard ask there exists."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import yaml
from helm_cli import CHART, Helm
from manifests import named

from models.catalog import Model

BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
PORTS = ("gcs", "dashboard", "agent", "client", "metrics", "serve")
LATER = re.compile("ray_petavoxel_(chunks|bucket)_|ray_node_gpus_|ray_serve_deployment_queued_queries")
"""Series that this Ray need not show: a GPU's, those of pipelines, and of a queue in which nothing waited."""


def _free_ports() -> dict[str, int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in PORTS]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: int(each.getsockname()[1]) for name, each in zip(PORTS, sockets, strict=True)}


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def _wait(url: str, text: str, process: subprocess.Popen[str], seconds: float) -> str:
    give_up, last = time.monotonic() + seconds, ""
    while time.monotonic() < give_up:
        assert process.poll() is None, "Ray has ended"
        try:
            last = _get(url)
        except OSError as error:
            last = str(error)
        if text in last:
            return last
        time.sleep(0.5)
    raise AssertionError(f"{url}: no {text!r} within {seconds:g} s; the last answer was {last[:500]}")


@pytest.fixture(scope="module")
def ray() -> Iterator[dict[str, int]]:
    """Ports of a Ray head of its own, started as KubeRay does, with a private folder; ended by a signal to it alone."""
    ports = _free_ports()
    folder = tempfile.mkdtemp(prefix="pvx-chart-")
    given = {"port": "gcs", "dashboard-port": "dashboard", "dashboard-agent-listen-port": "agent"}
    given |= {"ray-client-server-port": "client", "metrics-export-port": "metrics"}
    options = [f"--{option}={ports[name]}" for option, name in given.items()]
    options += ["--min-worker-port=0", "--max-worker-port=0", "--num-cpus=3", "--object-store-memory=200000000"]
    command = [str(BIN / "ray"), "start", "--head", "--block", f"--temp-dir={folder}", "--include-dashboard=true"]
    with (Path(folder) / "out.txt").open("w") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log, env=ENVIRONMENT, text=True)
        try:
            _wait(f"http://127.0.0.1:{ports['dashboard']}/api/gcs_healthz", "success", process, 120)
            _wait(f"http://127.0.0.1:{ports['agent']}/api/local_raylet_healthz", "success", process, 60)
            yield ports | {"process": process}  # type: ignore[dict-item]
        finally:
            process.terminate()
            process.wait(timeout=60)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.cluster
@pytest.mark.timeout(420)
def test_the_rendered_config_serves(helm4: Helm, ray: dict[str, int], model: Model, tmp_path: Path) -> None:
    process: subprocess.Popen[str] = ray["process"]  # type: ignore[assignment]
    config = {"models": [str(model.folder)], "port": ray["serve"], "threads": 1}
    override = {"name": "Models", "autoscaling_config": {"min_replicas": 1, "max_replicas": 2}}
    manifests = helm4.template(serve__config=config, serve__deployments=[override])
    [service] = named(manifests, "RayService")
    path = tmp_path / "serve.yaml"
    path.write_text(service["spec"]["serveConfigV2"])
    command = [str(BIN / "serve"), "deploy", "--address", f"http://127.0.0.1:{ray['dashboard']}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    url = f"http://127.0.0.1:{ray['serve']}"
    _wait_for_application(ray, process)
    ready = json.loads(_wait(f"{url}/readyz", '"ready"', process, 30))
    assert min(ready["replicas"].values()) == 1
    assert _predict(url).shape == (3, 8, 9, 10)
    _probes_succeed(service, ray)
    _dashboard_shows_what_is_there(ray, process)


def _wait_for_application(ports: dict[str, int], process: subprocess.Popen[str]) -> None:
    status, give_up = {}, time.monotonic() + 180
    while time.monotonic() < give_up:
        assert process.poll() is None, "Ray has ended"
        status = json.loads(_get(f"http://127.0.0.1:{ports['dashboard']}/api/serve/applications/"))["applications"]
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


def _dashboard_shows_what_is_there(ports: dict[str, int], process: subprocess.Popen[str]) -> None:
    dashboard = (CHART / "files" / "dashboard.json").read_text()
    wanted = {name.removesuffix("_bucket") for name in re.findall(r"\bray_[a-z_]+", dashboard)}
    metrics = f"http://127.0.0.1:{ports['metrics']}/metrics"
    _wait(metrics, "ray_serve_http_request_latency_ms_count", process, 60)
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        there = set(re.findall(r"^(ray_[a-z_]+)", _get(metrics), re.MULTILINE)) | set(
            re.findall(r"^# TYPE (ray_[a-z_]+)", _get(metrics), re.MULTILINE)
        )
        missing = {name for name in wanted - there if not LATER.match(name)}
        if not missing:
            break
        time.sleep(1)
    assert not missing
    assert len(wanted) > 15
