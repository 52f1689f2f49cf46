"""The endpoints on a Ray head of their own, configured as KubeRay does it: through the dashboard."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any, cast

import psutil
from ray_head import RayHead

APP = "petavoxel"


class ServedHead(RayHead):
    """A `RayHead` on which `deploy` sets what is served; `url` is where."""

    @property
    def url(self) -> str:
        """Where the endpoints answer."""
        return f"http://127.0.0.1:{self.ports['serve']}"

    def deploy(self, config: dict[str, Any], deployments: tuple[dict[str, Any], ...] = ()) -> None:
        """Ask for this `ServeConfig`, and overrides of deployments; returns at once."""
        port = self.ports["serve"]
        application = {
            "name": APP,
            "route_prefix": "/",
            "import_path": "services.deploy:build",
            "args": {**config, "port": port},
            "deployments": list(deployments),
        }
        options = {"host": "127.0.0.1", "port": port}
        document = {"proxy_location": "HeadOnly", "http_options": options, "applications": [application]}
        request = urllib.request.Request(
            f"{self.dashboard}/api/serve/applications/",
            json.dumps(document).encode(),
            {"Content-Type": "application/json"},
            method="PUT",
        )
        try:
            with urllib.request.urlopen(request, timeout=60):
                pass
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def status(self) -> dict[str, Any]:
        """The application, as the dashboard describes it."""
        applications = json.loads(self.get(f"{self.dashboard}/api/serve/applications/"))["applications"]
        return cast("dict[str, Any]", applications.get(APP, {}))

    def wait_for_replicas(self, seconds: float, **args: Any) -> None:
        """Wait until the application runs with these `ServeConfig` values, and all its replicas run."""
        give_up, last = time.monotonic() + seconds, {}
        while time.monotonic() < give_up:
            last = self.status()
            wanted = (last.get("deployed_app_config") or {}).get("args", {})
            deployments = last.get("deployments", {}).values()
            states = {replica["state"] for deployment in deployments for replica in deployment["replicas"]}
            ready = last.get("status") == "RUNNING" and states == {"RUNNING"}
            if ready and all(wanted.get(name) == value for name, value in args.items()) and self._answers():
                return
            assert last.get("status") != "DEPLOY_FAILED", last["message"]
            time.sleep(0.5)
        raise AssertionError(f"not ready within {seconds:g} s: {last.get('status')} {last.get('message')}")

    def processes(self) -> dict[int, str]:
        """Serve's processes by id: Models, Segmenters, Ingress, ProxyActor, ServeController."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                name = child.name() if not (line := child.cmdline()) else line[0]
            except psutil.NoSuchProcess:
                continue
            for role in ("Models", "Segmenters", "Ingress"):
                if f"ServeReplica:{APP}:{role}" in name:
                    found[child.pid] = role
            for role in ("ProxyActor", "ServeController"):
                if role in name:
                    found[child.pid] = role
        return found

    def _answers(self) -> bool:
        try:
            return "ready" in self.get(f"{self.url}/readyz")
        except (urllib.error.HTTPError, OSError):
            return False
