"""`petavoxel serve` and `petavoxel token`."""

from __future__ import annotations

import json
import signal
import threading
from typing import Annotated

import typer


def serve(
    *,
    model: Annotated[list[str] | None, typer.Option(help="Name, folder or URL of a model; repeat for several.")] = None,
    model_folder: Annotated[
        str | None,
        typer.Option(help="Folder or bucket prefix of further models, or a registry; new ones need no restart."),
    ] = None,
    rescan_s: Annotated[float, typer.Option(help="How often that folder is looked through.")] = 10.0,
    models_per_replica: Annotated[int, typer.Option(help="Models that one process keeps loaded.")] = 4,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the metrics for Prometheus, of an embedded Ray.", min=1, max=65535)
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default an embedded one.")] = None,
    volumes: Annotated[
        list[str] | None, typer.Option(metavar="PREFIX", help="URL prefix below which requests may read; repeatable.")
    ] = None,
    outputs: Annotated[
        list[str] | None, typer.Option(metavar="PREFIX", help="URL prefix below which requests may write; repeatable.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="File of bearer tokens, made with `petavoxel token`; default: open to everyone.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(help="Largest image of one request.")] = 32 * 2**20,
    max_segment_voxels: Annotated[int, typer.Option(help="Largest box to segment in one request.")] = 16 * 2**20,
    replicas: Annotated[int, typer.Option(help="Processes that hold models.")] = 1,
    max_replicas: Annotated[int | None, typer.Option(help="Processes to which load may raise them.")] = None,
    segment_replicas: Annotated[int, typer.Option(help="Processes that make labels of affinities.")] = 1,
    max_segment_replicas: Annotated[int | None, typer.Option(help="Processes to which load may raise them.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads per process; default all cores.")] = None,
    gpus: Annotated[float, typer.Option(help="GPUs per process that holds models.")] = 0.0,
    ongoing: Annotated[int, typer.Option(help="Requests of one such process at a time.")] = 2,
    max_batch: Annotated[int, typer.Option(help="Patches of different requests that run together.")] = 1,
    max_queued_requests: Annotated[int, typer.Option(help="Requests that may wait; more get 429.")] = 32,
    request_timeout_s: Annotated[float, typer.Option(help="Time for one request; then it gets 504.")] = 120.0,
    drain_timeout_s: Annotated[float, typer.Option(help="Time for open requests to end when stopping.")] = 60.0,
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")] = "auto",
    runtime: Annotated[str, typer.Option(help="auto, openvino, tensorrt or torch.")] = "auto",
    log_format: Annotated[str, typer.Option(help="text or json; processes log below Ray's folder.")] = "text",
) -> None:
    """Serve models over HTTP until Ctrl-C or SIGTERM: images in, affinities or segments out; /docs has the API."""
    given = {key: value for key, value in locals().items() if value is not None}
    for name in ("address", "metrics_port"):
        given.pop(name, None)
    if models := given.pop("model", None):
        given["models"] = models
    from services.endpoints.config import ServeConfig

    config = ServeConfig.read(given)
    from services.endpoints.running import serving

    with serving(config, address, metrics_port=metrics_port) as url:
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        print(f"Serving {', '.join(config.models)} at {url}; API: {url}/docs; Ctrl-C ends it.", flush=True)
        stopped.wait()
        print("Stopping: no new requests; open ones are finished.", flush=True)


def token(
    name: Annotated[str, typer.Argument(help="Whose token it is; shown in refusals.")],
    scope: Annotated[list[str] | None, typer.Option(help="read, predict or write; repeatable.")] = None,
) -> None:
    """Make a bearer token: line one is the token, line two goes into the list in the file of `serve --tokens`."""
    from models.errors import InvalidInput
    from services.endpoints.tokens import SCOPES, new_token

    wanted = scope or ["read", "predict"]
    if unknown := set(wanted) - set(SCOPES):
        raise InvalidInput(f"scope: expected some of {', '.join(SCOPES)}, got {', '.join(sorted(unknown))}")
    text, line = new_token(name, tuple(known for known in SCOPES if known in wanted))
    print(text)
    print(json.dumps(line.model_dump(mode="json")))
