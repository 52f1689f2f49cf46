"""Traces, as a collector receives them over OTLP: one per request, from the client's span to the runtime's call."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from models.catalog import Model
from models.errors import InvalidConfig
from services.endpoints import tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
PATCH = (12, 13, 14)
HEADERS = {"Content-Type": "application/octet-stream", "X-Shape": "12,13,14"}
BOX = "11:30,3:44,7:33"
Start = Callable[..., AbstractContextManager[Any]]


@dataclass(frozen=True)
class Span:
    name: str
    role: str
    trace: str
    id: str
    parent: str
    begin: int
    end: int
    attributes: dict[str, Any]


class Collector(ThreadingHTTPServer):
    """Takes spans on /v1/traces as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []

    def of(self, trace: str, complete: Callable[[list[Span]], bool]) -> list[Span]:
        """The spans of a trace, once they are all there."""
        give_up = time.monotonic() + 60
        while True:
            found = [span for span in list(self.spans) if span.trace == trace]
            if complete(found):
                return found
            assert time.monotonic() < give_up, [(span.role, span.name) for span in found]
            time.sleep(0.2)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/traces"
        for resource in request.resource_spans:
            about = {item.key: item.value.string_value for item in resource.resource.attributes}
            assert about["service.name"] == "petavoxel"
            for scope in resource.scope_spans:
                for span in scope.spans:
                    values = {item.key: item.value for item in span.attributes}
                    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                    times = (span.start_time_unix_nano, span.end_time_unix_nano)
                    self.server.spans.append(Span(span.name, about["petavoxel.role"], *ids, *times, values))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def traced(  # noqa: PLR0917
    collector: Collector,
    model: Model,
    float_model: Model,
    volumes: Path,
    outputs: Path,
    start_server: Start,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """A server that exports its traces and keeps one model loaded; its second one is loaded by a request."""
    options = ["--model", str(model.folder), "--model", str(float_model.folder), "--models-per-replica", "1"]
    options += ["--threads", "1", "--max-batch", "2", "--log-format", "json"]
    options += ["--volumes", str(volumes), "--outputs", str(outputs)]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        with start_server(tmp_path_factory.mktemp("traced"), *options) as server:
            yield server


def _named(spans: list[Span], name: str) -> Span:
    [found] = [span for span in spans if span.name == name]
    return found


@pytest.mark.cluster
def test_from_the_request_to_the_runtime(traced: Any, collector: Collector, volume_url: str, outputs: Path) -> None:
    body = {"volume": volume_url, "box": BOX, "output": str(outputs / "traced.zarr")}
    reply = httpx.post(f"{traced.url}/v1/boundary", json=body, headers=SAMPLED, timeout=60)
    assert reply.status_code == 201, reply.text
    names = {"POST /v1/boundary", "queue", "open volume", "read volume", "runtime", "write volume"}
    spans = collector.of(TRACE, lambda found: names <= {span.name for span in found})
    request = _named(spans, "POST /v1/boundary")
    assert (request.role, request.parent) == ("ingress", PARENT)
    assert request.attributes["http.response.status_code"].int_value == 201
    inside = [span for span in spans if span is not request]
    assert {span.role for span in inside} == {"models"}
    by_id = {span.id: span for span in spans}
    for span in inside:
        assert by_id[span.parent] is request
        assert request.begin <= span.begin <= span.end <= request.end, "one machine, one clock"
    assert _named(spans, "read volume").attributes["box"].string_value
    runs = [span for span in spans if span.name == "runtime"]
    assert sum(span.attributes["patches"].int_value for span in runs) > 1
    assert _named(spans, "open volume").end <= _named(spans, "read volume").begin
    assert max(span.end for span in runs) <= _named(spans, "write volume").begin


@pytest.mark.cluster
def test_models_batches_and_segments(traced: Any, collector: Collector) -> None:
    trace = TRACE.replace("0af", "1af")
    headers = HEADERS | {"traceparent": f"00-{trace}-{PARENT}-01", "X-Dtype": "float32"}
    content = np.zeros(PATCH, np.float32).tobytes()
    reply = httpx.post(f"{traced.url}/v1/segment?model=small-float", content=content, headers=headers, timeout=60)
    assert reply.status_code == 200, reply.text
    names = {"POST /v1/segment", "load model", "batch", "runtime", "segment"}
    spans = collector.of(trace, lambda found: names <= {span.name for span in found})
    assert _named(spans, "load model").attributes["model"].string_value == "small-float:1"
    request, load = _named(spans, "POST /v1/segment"), _named(spans, "load model")
    batches = [span for span in spans if span.name == "batch"]
    assert {span.parent for span in batches} == {request.id, load.id}, "a loaded model runs once"
    assert {span.parent for span in spans if span.name == "runtime"} == {span.id for span in batches}
    assert _named(spans, "segment").role == "segmenters"
    assert {span.role for span in spans if span.name == "queue"} == {"models", "segmenters"}


@pytest.mark.cluster
def test_failures_logs_and_what_is_not_sampled(traced: Any, collector: Collector) -> None:
    trace = TRACE.replace("0af", "2af")
    unseen = {"traceparent": f"00-{TRACE.replace('0af', '3af')}-{PARENT}-00"}
    assert httpx.get(f"{traced.url}/v1/models/nobody", headers=unseen, timeout=60).status_code == 404
    headers = {"traceparent": f"00-{trace}-{PARENT}-01"}
    assert httpx.get(f"{traced.url}/v1/models/nobody", headers=headers, timeout=60).status_code == 404
    [span] = collector.of(trace, bool)
    assert span.name == "GET /v1/models/{name}"
    assert span.attributes["http.response.status_code"].int_value == 404
    assert not [span for span in collector.spans if span.trace == TRACE.replace("0af", "3af")]
    (pid,) = traced.replicas("Ingress")
    logs = {Path(file.path) for file in psutil.Process(pid).open_files() if file.path.endswith(".err")}
    [line] = [json.loads(text) for log in logs for text in log.read_text().splitlines() if trace in text]
    assert line["trace_id"] == trace
    assert line["status"] == 404


def test_only_standard_variables_turn_traces_on() -> None:
    address = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    assert not tracing.wanted({})
    assert tracing.wanted(address)
    assert tracing.wanted({"OTEL_TRACES_EXPORTER": "otlp"})
    assert not tracing.wanted(address | {"OTEL_TRACES_EXPORTER": "none"})
    assert not tracing.wanted(address | {"OTEL_SDK_DISABLED": "true"})
    with pytest.raises(InvalidConfig, match="console"):
        tracing.wanted({"OTEL_TRACES_EXPORTER": "console"})
    with pytest.raises(InvalidConfig, match="grpc"):
        tracing.wanted(address | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert tracing.carried() == {}
    assert tracing.trace_id() == ""
