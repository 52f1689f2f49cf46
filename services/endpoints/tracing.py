"""OpenTelemetry traces of requests, off unless the standard variables ask for them; needs the extra `tracing`.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`, or `OTEL_TRACES_EXPORTER=otlp`) turns them on; samplers, headers
and batches follow their own variables. Ray's processes inherit them. A trace goes on from the client's `traceparent`
through the ingress to the replicas: contexts travel in `Call`, as Serve's own tracing ends at the deployment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import context, propagate, trace
from opentelemetry.trace import SpanKind, Tracer

from models.errors import InvalidConfig, RuntimeUnavailable

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

_tracers: list[Tracer] = []  # one, once `configure` has found that traces are wanted


def wanted(environment: Mapping[str, str]) -> bool:
    """Whether these variables ask for traces; raises `InvalidConfig` for exporters and protocols that are not here."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER")
    if exporter == "none" or (exporter is None and not any(environment.get(name) for name in _ENDPOINTS)):
        return False
    if exporter not in (None, "otlp"):
        raise InvalidConfig(f"OTEL_TRACES_EXPORTER: expected otlp or none, got {exporter!r}")
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        raise InvalidConfig(f"OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf, got {protocol!r}")
    return True


def configure(role: str) -> None:
    """Export this process's spans, if the environment asks for it; `role` becomes an attribute of all of them.

    Raises what `wanted` raises, and `RuntimeUnavailable` where the extra is not installed.
    """
    if _tracers or not wanted(os.environ):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise RuntimeUnavailable(f"traces need `pip install petavoxel[tracing]` ({error})") from error
    name = os.environ.get("OTEL_SERVICE_NAME", "petavoxel")
    provider = TracerProvider(resource=Resource.create({"service.name": name, "petavoxel.role": role}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracers.append(provider.get_tracer("petavoxel"))


@contextmanager
def span(name: str, **attributes: Any) -> Iterator[None]:
    """A span around what is inside, below the current one; errors that leave it are recorded."""
    if not _tracers:
        yield
        return
    with _tracers[0].start_as_current_span(name, attributes=attributes):
        yield


@contextmanager
def request_span(method: str, headers: Mapping[str, str]) -> Iterator[None]:
    """The span of an HTTP request, below that of the client's `traceparent`."""
    if not _tracers:
        yield
        return
    parent = propagate.extract({name: headers[name] for name in ("traceparent", "tracestate") if name in headers})
    attributes = {"http.request.method": method}
    with _tracers[0].start_as_current_span(method, parent, SpanKind.SERVER, attributes):
        yield


def finish_request(method: str, route: str, status: int) -> None:
    """Tell the current request's span what is known at its end."""
    current = trace.get_current_span()
    current.update_name(f"{method} {route}".strip())
    current.set_attributes({"http.route": route, "http.response.status_code": status})
    if status >= 500:
        current.set_status(trace.StatusCode.ERROR)


def carried() -> dict[str, str]:
    """The current context as text that travels to another process; empty without one."""
    carrier: dict[str, str] = {}
    if _tracers:
        propagate.inject(carrier)
    return carrier


@contextmanager
def continued(carrier: Mapping[str, str]) -> Iterator[None]:
    """Work inside the context that `carried` gave in another process."""
    if not carrier:
        yield
        return
    token = context.attach(propagate.extract(carrier))
    try:
        yield
    finally:
        context.detach(token)


def trace_id() -> str:
    """The current trace's id, 32 hexadecimal digits, or an empty text."""
    current = trace.get_current_span().get_span_context()
    return trace.format_trace_id(current.trace_id) if current.is_valid else ""
