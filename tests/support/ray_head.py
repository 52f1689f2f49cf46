"""A Ray head of its own with dashboard, jobs and metrics, started as KubeRay does: `ray start --head --block`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
_OPTIONS = {
    "port": "gcs",
    "dashboard-port": "dashboard",
    "dashboard-agent-listen-port": "agent",
    "ray-client-server-port": "client",
    "metrics-export-port": "metrics",
}


class RayHead:
    """The head on free ports with a private folder, ended by killing its processes alone; a context manager.

    `ports` has one each for gcs, dashboard, agent, client, metrics and serve; `environment` is what its processes and
    clients run in. `token`: what clients must know.
    """

    def __init__(self, cpus: int = 3, token: str = "") -> None:
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in (*_OPTIONS.values(), "serve")]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            names = (*_OPTIONS.values(), "serve")
            self.ports = {name: int(each.getsockname()[1]) for name, each in zip(names, sockets, strict=True)}
        mode = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        own = {**mode, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        own["RAY_worker_niceness"] = "0"  # clients share the machine with it here, and would go first
        self.environment = {**os.environ, **own}
        self.dashboard = f"http://127.0.0.1:{self.ports['dashboard']}"
        self._cpus, self._token = cpus, token

    def __enter__(self) -> RayHead:
        self._folder = tempfile.mkdtemp(prefix="pvx-head-", dir="/tmp")  # Ray's sockets need a short path
        given = [f"--{option}={self.ports[name]}" for option, name in _OPTIONS.items()]
        given += ["--min-worker-port=0", "--max-worker-port=0", f"--num-cpus={self._cpus}"]
        given += ["--object-store-memory=200000000", f"--temp-dir={self._folder}", "--include-dashboard=true"]
        command = [str(BIN / "ray"), "start", "--head", "--block", *given]
        with (Path(self._folder) / "out.txt").open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        try:
            self.wait(f"{self.dashboard}/api/gcs_healthz", "success", 120)
            self.wait(f"http://127.0.0.1:{self.ports['agent']}/api/local_raylet_healthz", "success", 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(psutil.NoSuchProcess):  # it may have ended by itself
            head = psutil.Process(self.process.pid)
            for process in [*head.children(recursive=True), head]:  # asked to end, Ray would take half a minute
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait(timeout=30)
        shutil.rmtree(self._folder, ignore_errors=True)

    def get(self, url: str) -> str:
        """The text at a URL."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return str(answer.read().decode())

    def wait(self, url: str, text: str, seconds: float) -> str:
        """The text at a URL once it contains `text`."""
        give_up, last = time.monotonic() + seconds, ""
        while time.monotonic() < give_up:
            if self.process.poll() is not None:
                raise AssertionError(f"Ray has ended: {(Path(self._folder) / 'out.txt').read_text()[-2000:]}")
            try:
                last = self.get(url)
            except OSError as error:
                last = str(error)
            if text in last:
                return last
            time.sleep(0.5)
        raise AssertionError(f"{url}: no {text!r} within {seconds:g} s; the last answer was {last[:500]}")
