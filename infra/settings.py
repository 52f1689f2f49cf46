"""Settings of the machine that petavoxel runs on, from environment variables that begin with `PETAVOXEL_`.

A job's own options live in its configuration file; here is only what depends on where it runs.
"""

from __future__ import annotations

import os
from functools import lru_cache

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Frozen settings; `Settings()` reads the environment, e.g. `PETAVOXEL_STORAGE_TIMEOUT_S=20`."""

    model_config = SettingsConfigDict(env_prefix="PETAVOXEL_", frozen=True, extra="forbid")

    storage_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds until an operation on one stored object is given up, retries included; large objects get more."""
    storage_request_timeout_s: float = Field(default=15.0, gt=0)
    """Seconds without a byte after which one request is given up and tried again, within the operation's time."""
    storage_slowest_bytes_per_s: float = Field(default=1e6, gt=0)
    """Every byte to move adds its time at this rate to the timeout, so slow links are not taken for dead ones."""
    storage_anonymous: bool = False
    """Read public buckets without credentials."""
    chunk_timeout_s: float = Field(default=3600.0, gt=0)
    """Seconds that one try of one chunk may take; then its worker is ended."""
    stall_s: float = Field(default=900.0, gt=0)
    """Seconds without any chunk begun or ended after which a stage is given up; time for a cluster to grow."""
    registry: str | None = None
    """Prefix of a model registry: names that are not in the zoo are looked for there."""
    model_cache: str = "~/.cache/petavoxel/models"
    """Local folder for copies of models that lie in a bucket."""
    cluster_cpus: int | None = Field(default=None, ge=2)
    """Processors that a cluster may grow to; default: those that it has when a stage begins."""
    cluster_gpus: int | None = Field(default=None, ge=0)
    """GPUs that a cluster may grow to; default: those that it has when a stage begins."""

    def timeout_s(self, nbytes: int = 0) -> float:
        """Seconds that moving `nbytes` bytes may take."""
        return self.storage_timeout_s + nbytes / self.storage_slowest_bytes_per_s


def current_settings() -> Settings:
    """The settings that the environment says now; parsing them costs over a millisecond, so that is done once."""
    return _parsed(tuple(sorted(item for item in os.environ.items() if item[0].startswith("PETAVOXEL_"))))


@lru_cache(maxsize=16)
def _parsed(_environment: tuple[tuple[str, str], ...]) -> Settings:
    return Settings()
