"""A Ray cluster of several nodes on this host, as real `ray start` processes that can be killed one by one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PYTHONPATH": str(Path(__file__).parent),  # functions of test modules run on the nodes, and import what these do
}


class RayNodes:
    """A head, and nodes of `cpus` logical CPUs each; `address` is what drivers join. A context manager."""

    def __init__(self, head_cpus: int, *cpus: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pvx-", dir="/tmp"))  # Ray's sockets need a short path
        self._nodes: list[subprocess.Popen[bytes]] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.address = f"127.0.0.1:{self._port}"
        self._first_cpus = (head_cpus, *cpus)

    def __enter__(self) -> RayNodes:
        for cpus in self._first_cpus:
            self.add(cpus)
        return self

    def __exit__(self, *_: object) -> None:
        for node in list(self._nodes):
            self.kill(node)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def workers(self) -> list[subprocess.Popen[bytes]]:
        """The nodes besides the head."""
        return self._nodes[1:]

    def add(self, cpus: int, gpus: int = 0) -> subprocess.Popen[bytes]:
        """Start another node, and wait until it is up; `gpus` need no cards."""
        kind = ["--head", f"--port={self._port}", f"--temp-dir={self._folder}", "--include-dashboard=false"]
        if self._nodes:
            kind = [f"--address={self.address}"]
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", *kind, f"--num-cpus={cpus}"]
        command += [f"--num-gpus={gpus}"] if gpus else []
        command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats", f"--object-store-memory={100 * 2**20}"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        node = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **ENVIRONMENT}
        )
        self._nodes.append(node)
        give_up = time.monotonic() + 150
        while not any(process.name() == "raylet" for process in _family(node)) or not self._answers():
            assert node.poll() is None, "a Ray node ended at its start"
            assert time.monotonic() < give_up, "a Ray node did not start"
            time.sleep(0.2)
        return node

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """SIGKILL every process of a node."""
        for process in [*_family(node), psutil.Process(node.pid)]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        node.wait(timeout=30)
        self._nodes.remove(node)

    def worker_processes(self) -> list[psutil.Process]:
        """Processes that run chunks just now, of all nodes."""
        found = []
        for node in self._nodes:
            for process in _family(node):
                try:
                    title = " ".join(process.cmdline())
                except psutil.NoSuchProcess:
                    continue
                if title.startswith(("ray::MapWorker", "ray::MapBatches", "ray::Map(")):
                    found.append(process)
        return found

    def _answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self._port)) == 0


def _family(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(node.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
