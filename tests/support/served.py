"""Real servers: `petavoxel serve` in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Server:
    """A running `petavoxel serve`."""

    url: str
    process: subprocess.Popen[str]
    log: Path

    def replicas(self, deployment: str = "") -> set[int]:
        """Process ids of the replicas of a deployment, or of all."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return {child.pid for child in children if f"ServeReplica:petavoxel:{deployment}" in " ".join(child.cmdline())}


HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
"""What puts HAProxy in the place of Ray's proxy; one such server per host, as some of its ports are fixed."""


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Server]:
    """Start the command line on a free port, wait until it says that it is ready, stop it at the end."""
    log = folder / "log.txt"
    command = [sys.executable, "-c", "from services.cli import main; main()", "serve", "--port", "0", *options]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            if " at http://" in line:
                break
            lines.append(line)  # Ray's own words
        else:
            process.wait(timeout=60)
            raise AssertionError("".join(lines) + log.read_text())
        yield Server(line.partition(" at ")[2].partition(";")[0], process, log)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)
