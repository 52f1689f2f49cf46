"""`petavoxel serve`."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer


def serve(
    *,
    model: Annotated[
        list[str] | None, typer.Option(help="Name in the zoo, or folder of a model; repeat for several.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default an embedded one.")] = None,
    volumes: Annotated[
        list[str] | None, typer.Option(metavar="PREFIX", help="URL prefix below which requests may read; repeatable.")
    ] = None,
    outputs: Annotated[
        list[str] | None, typer.Option(metavar="PREFIX", help="URL prefix below which requests may write; repeatable.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(help="Largest image of one request.")] = 32 * 2**20,
    replicas: Annotated[int, typer.Option(help="Processes per model.")] = 1,
    threads: Annotated[int | None, typer.Option(help="CPU threads per process; default all cores.")] = None,
    max_queued_requests: Annotated[int, typer.Option(help="Requests per model that may wait; more get 429.")] = 32,
    request_timeout_s: Annotated[float, typer.Option(help="Time for one request; then it gets 504.")] = 120.0,
    drain_timeout_s: Annotated[float, typer.Option(help="Time for open requests to end when stopping.")] = 60.0,
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")] = "auto",
    runtime: Annotated[str, typer.Option(help="auto, openvino, tensorrt or torch.")] = "auto",
) -> None:
    """Serve models over HTTP until Ctrl-C or SIGTERM: POST /v1/boundary turns an image into affinities."""
    from services.endpoints.config import ServeConfig

    given = {
        "models": model or None,
        "host": host,
        "port": port,
        "volumes": volumes or [],
        "outputs": outputs or [],
        "max_bytes": max_bytes,
        "replicas": replicas,
        "threads": threads,
        "max_queued_requests": max_queued_requests,
        "request_timeout_s": request_timeout_s,
        "drain_timeout_s": drain_timeout_s,
        "precision": precision,
        "runtime": runtime,
    }
    config = ServeConfig.read({key: value for key, value in given.items() if value is not None})
    from services.endpoints.running import serving

    with serving(config, address) as url:
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        print(f"Serving {', '.join(config.models)} at {url}; API: {url}/docs; Ctrl-C ends it.", flush=True)
        stopped.wait()
        print("Stopping: no new requests; open ones are finished.", flush=True)
