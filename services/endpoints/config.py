"""What `petavoxel serve` runs: one frozen configuration, from which the application is built."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import InvalidConfig

MIB = 2**20


class ServeConfig(BaseModel):
    """Models, limits and permissions of an endpoint; unknown keys are refused.

    - `models`: zoo names, folders or cards; a request that names none gets the first.
    - `volumes`, `outputs`: URL prefixes below which requests may read images and write affinities; none by default.
    - `max_bytes`: largest image of one request, in bytes.
    - `replicas`: processes per model, each with `threads` CPU threads (None: all that it may use).
    - `ongoing`: requests of one replica at a time, so that one reads while another computes.
    - `max_queued_requests`: requests per model that wait; further ones are refused with 429.
    - `request_timeout_s`: from a request's first byte to its reply; then 504.
    - `startup_timeout_s`: until every model has run once. `drain_timeout_s`: until a stopping server gives up on open
      requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Annotated[tuple[str, ...], Field(min_length=1)] = ("fib25-affinity",)
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    volumes: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    max_bytes: Annotated[int, Field(ge=1, le=1024 * MIB)] = 32 * MIB
    replicas: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int | None, Field(ge=1)] = None
    runtime: Literal["auto", "openvino", "tensorrt", "torch"] = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    ongoing: Annotated[int, Field(ge=1)] = 2
    max_queued_requests: Annotated[int, Field(ge=1)] = 32
    request_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    startup_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    drain_timeout_s: Annotated[float, Field(ge=0)] = 60.0

    @classmethod
    def read(cls, values: dict[str, Any]) -> ServeConfig:
        """The configuration of these values; raises `InvalidConfig` with one line that names what is wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors())
            raise InvalidConfig(f"serve: {wrong}") from error

    @property
    def replica_cpus(self) -> int:
        """Logical CPUs that Ray sets aside for one replica."""
        return self.threads or 1

    @property
    def open_requests(self) -> int:
        """Requests that the ingress takes in at a time: what replicas hold and what waits, twice, to read bodies."""
        return 2 * len(self.models) * (self.max_queued_requests + self.ongoing * self.replicas)
