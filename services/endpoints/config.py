"""What `petavoxel serve` runs: one frozen configuration, from which the application is built."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import InvalidConfig

MIB = 2**20


class ServeConfig(BaseModel):
    """Models, limits and permissions of the endpoints; unknown keys are refused.

    - `models`: names, folders or URLs (see `infra.registry.locate`); a request that names none gets the first.
    - `model_folder`: a folder or bucket prefix whose subfolders are models too, or a registry's names and versions. It
      is looked through every `rescan_s`, so a model or version that is put there is served without a restart; broken
      ones are logged and left out.
    - `models_per_replica`: models that one replica keeps loaded; the least recently used one makes place.
    - `volumes`, `outputs`: URL prefixes below which requests may read images and write results; none by default.
    - `tokens`: file of bearer tokens (see `services.endpoints.tokens`); None lets everyone in.
    - `max_bytes`: largest image of one request, in bytes. `max_segment_voxels`: largest box to segment.
    - `replicas`: processes that hold models, each with `threads` CPU threads (None: all that it may use) and `gpus`;
      `max_replicas` lets Serve add more under load. `segment_replicas`, `max_segment_replicas`: the same for what makes
      labels from affinities, on CPUs only.
    - `target_ongoing`: open requests per replica that autoscaling aims at; `upscale_delay_s`, `downscale_delay_s`: for
      how long load must last until replicas are added or removed.
    - `ongoing`: requests of one replica at a time, so that one reads while another computes.
    - `max_batch`: patches of different requests that the engine runs together, at most.
    - `max_queued_requests`: requests that wait for their turn in replicas; further ones are refused with 429.
    - `request_timeout_s`: from a request's first byte to its reply; then 504.
    - `startup_timeout_s`: until the models have run once. `drain_timeout_s`: until a stopping server gives up on open
      requests.
    - `log_format`: "text", or "json" for one object per line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: Annotated[tuple[str, ...], Field(min_length=1)] = ("fib25-affinity",)
    model_folder: str | None = None
    rescan_s: Annotated[float, Field(gt=0)] = 10.0
    models_per_replica: Annotated[int, Field(ge=1)] = 4
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    volumes: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    tokens: str | None = None
    max_bytes: Annotated[int, Field(ge=1, le=1024 * MIB)] = 32 * MIB
    max_segment_voxels: Annotated[int, Field(ge=1, le=1024 * MIB)] = 16 * MIB
    replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int | None, Field(ge=1)] = None
    segment_replicas: Annotated[int, Field(ge=1)] = 1
    max_segment_replicas: Annotated[int | None, Field(ge=1)] = None
    target_ongoing: Annotated[float, Field(gt=0)] = 2.0
    upscale_delay_s: Annotated[float, Field(ge=0)] = 10.0
    downscale_delay_s: Annotated[float, Field(ge=0)] = 300.0
    threads: Annotated[int | None, Field(ge=1)] = None
    gpus: Annotated[float, Field(ge=0)] = 0.0
    runtime: Literal["auto", "openvino", "tensorrt", "torch"] = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    ongoing: Annotated[int, Field(ge=1)] = 2
    max_batch: Annotated[int, Field(ge=1, le=256)] = 1
    max_queued_requests: Annotated[int, Field(ge=1)] = 32
    request_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    startup_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    drain_timeout_s: Annotated[float, Field(ge=0)] = 60.0
    log_format: Literal["text", "json"] = "text"

    @model_validator(mode="after")
    def _ordered(self) -> ServeConfig:
        for name in ("replicas", "segment_replicas"):
            most = getattr(self, f"max_{name}")
            if most is not None and most < getattr(self, name):
                raise ValueError(f"max_{name} must not be below {name}, got {most} and {getattr(self, name)}")
        return self

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
    def all_cpus(self) -> int:
        """Logical CPUs that all replicas need at most."""
        return (self.max_replicas or self.replicas) * self.replica_cpus + (
            self.max_segment_replicas or self.segment_replicas
        )

    @property
    def stop_s(self) -> float:
        """How long a replica that is to stop may go on with what it has: the time of the longest request."""
        return max(self.drain_timeout_s, self.request_timeout_s)

    @property
    def open_requests(self) -> int:
        """Requests that the ingress takes in at a time: what replicas hold and what waits, twice, to read bodies."""
        return 2 * (self.max_queued_requests + self.ongoing * (self.max_replicas or self.replicas))
