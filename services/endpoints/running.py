"""Starts the application on Ray, waits until it answers, and ends it without losing an open request."""

from __future__ import annotations

import logging
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve
from ray.exceptions import ActorDiedError
from ray.serve.schema import ApplicationStatusOverview

from infra.cluster import cluster, own_processors
from models.errors import InvalidConfig, RuntimeUnavailable
from services.endpoints.app import APP, build_app
from services.endpoints.config import ServeConfig

logger = logging.getLogger(__name__)

FLUSH_S = 0.3
"""For the last replies to leave the proxy."""
PROXY_START_S = 30
"""How long Serve waits for its proxy before it begins another, where it is ours: 5 s are too few on a busy machine."""
LOCAL = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


@contextmanager
def serving(config: ServeConfig, address: str | None = None, *, metrics_port: int | None = None) -> Iterator[str]:
    """Serve `config` on the Ray at `address` (default: an embedded one) until the block ends; yields the URL.

    The block begins when the models have run once and the server answers. At its end new requests are refused, open
    ones are finished within `config.drain_timeout_s`, and the application is deleted. An embedded Ray exports its
    metrics for Prometheus on `metrics_port`.

    Raises `InvalidConfig` for a port in use, `RuntimeUnavailable` where the application does not start in time, and
    what `services.endpoints.app.build_app` raises.
    """
    application = build_app(config)
    if address is None:
        config = config.model_copy(update={"port": _port(config.host, config.port)})
        os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", str(PROXY_START_S))
    if config.tokens is None and LOCAL.get(config.host, config.host) != config.host:
        logger.warning("%s: everyone who reaches this address may use it; --tokens names a file of tokens", config.host)
    cpus = max(own_processors(), config.all_cpus)
    with cluster(address, cpus=cpus, metrics_port=metrics_port):
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            url = _start(config, application, everywhere=address is not None)
            yield url
            _drain(config)
        finally:
            if address is None:
                serve.shutdown()  # type: ignore[no-untyped-call]
            else:
                serve.delete(APP)


def _start(config: ServeConfig, application: serve.Application, *, everywhere: bool) -> str:
    host = LOCAL.get(config.host, config.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{config.port}"
    give_up = time.monotonic() + config.startup_timeout_s
    _start_serve(config, everywhere=everywhere, give_up=give_up)
    try:
        serve.run_many([serve.RunTarget(application, name=APP, route_prefix="/")], wait_for_applications_running=False)
    except (RuntimeError, TimeoutError, ValueError) as error:
        raise RuntimeUnavailable(f"Ray Serve does not start: {error}") from error
    while True:
        status = serve.status().applications.get(APP)
        if status is not None and status.status == "RUNNING" and _ready(url):
            return url
        if status is not None and status.status == "DEPLOY_FAILED":
            raise RuntimeUnavailable(f"the models cannot be served: {_causes(status)}")
        if time.monotonic() > give_up:
            causes = _causes(status) if status else "there is no application"
            raise RuntimeUnavailable(f"{url}: not ready after {config.startup_timeout_s:g} s; {causes}")
        time.sleep(0.2)


def _start_serve(config: ServeConfig, *, everywhere: bool, give_up: float) -> None:
    """Start Serve and its proxy; where the machine is so busy that Serve gives up on its proxy, wait for the next."""
    while True:
        try:
            serve.start(
                proxy_location="EveryNode" if everywhere else "HeadOnly",
                http_options={"host": config.host, "port": config.port},
            )
        except (ActorDiedError, TimeoutError) as error:
            if time.monotonic() > give_up:
                waited = f"after {config.startup_timeout_s:g} s"
                raise RuntimeUnavailable(f"Ray Serve's proxy has not started {waited}: {error}") from error
        except (RuntimeError, ValueError) as error:
            raise RuntimeUnavailable(f"Ray Serve does not start: {error}") from error
        else:
            return


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        pass
    return False


def _causes(status: ApplicationStatusOverview) -> str:
    """What Serve says about deployments that are not healthy: the last lines, where a traceback names its error."""
    texts = [d.message for d in status.deployments.values() if d.message and d.status != "HEALTHY"]
    lines = [
        text.strip().splitlines()[-1].removeprefix("models.errors.")
        for text in texts or [status.message or status.status]
    ]
    return "; ".join(dict.fromkeys(lines))


def _drain(config: ServeConfig) -> None:
    left = serve.get_app_handle(APP).drain.remote(config.drain_timeout_s).result(timeout_s=config.drain_timeout_s + 10)
    if left:
        logger.warning("%d requests were still open after %g s and are lost", left, config.drain_timeout_s)
    time.sleep(FLUSH_S)


def _port(host: str, port: int) -> int:
    """The port, or a free one for 0; raises `InvalidConfig` where it cannot be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            return int(listener.getsockname()[1])
    except OSError as error:
        raise InvalidConfig(f"{host}:{port}: cannot listen there ({error.strerror or error})") from error
