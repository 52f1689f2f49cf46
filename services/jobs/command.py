"""What of a command line has to change for it to run elsewhere: local paths are refused, a local model is packed.

A job runs in another folder of another machine. What only this machine knows would end in an error there after minutes,
or find something else under the same name, so it is refused here.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from infra.registry import fetch, locate
from models.catalog import list_models
from models.errors import InvalidInput

PACKED = "submitted"
"""Folder of the package in which a local model travels; with it, its path is no name of the zoo."""


@dataclass(frozen=True)
class JobCommand:
    """A command that takes `--address`, as words without it.

    `model` is a local model folder that it needs, `endpoints` the application that must run on its cluster, or None.
    """

    name: tuple[str, ...]
    options: tuple[str, ...]
    model: Path | None = None
    endpoints: str | None = None

    @property
    def entrypoint(self) -> str:
        """The shell command that runs on the cluster; it joins the Ray that it finds there."""
        return shlex.join(["petavoxel", *self.name, "--address", "auto", *self.options])

    @contextmanager
    def packed(self) -> Iterator[tuple[JobCommand, Path | None]]:
        """The command as it runs beside the unpacked package, and the folder to pack; None where there is none."""
        if self.model is None:
            yield self, None
            return
        with TemporaryDirectory(prefix="pvx-job-") as folder:
            shutil.copytree(self.model, Path(folder) / PACKED / self.model.name)
            there = f"{PACKED}/{self.model.name}"
            yield replace(self, options=_with_model(self.options, there), model=None), Path(folder)


def job_command(
    name: tuple[str, ...], options: tuple[str, ...], positional: Mapping[str, Any], named: Mapping[str, Any]
) -> JobCommand:
    """The command `name` with the words `options`, whose values are `positional` and `named` by parameter.

    A version in a registry is pinned: the job runs with the one that is the latest now. Raises `InvalidInput` for paths
    that only this machine knows, `NotFound` or `InvalidModel` for a model that is nowhere.
    """
    for key, value in positional.items():
        if isinstance(value, str | Path) and "://" not in str(value) and not str(value).startswith("/"):
            raise InvalidInput(
                f"{key.upper()}: expected a URL or an absolute path, as the cluster sees it, got {str(value)!r}: "
                "a job runs in another folder"
            )
    for key, value in named.items():
        named_only = key in ("model", "endpoints") or not isinstance(value, str)
        if not named_only and not value.startswith("/") and Path(value).exists():
            raise InvalidInput(
                f"--{key.replace('_', '-')}: expected a URL or an absolute path, as the cluster sees it, "
                f"got {value!r}, which is a path on this machine"
            )
    found, endpoints = _model(named.get("model")), named.get("endpoints")
    if isinstance(found, str):
        return JobCommand(name, _with_model(options, found), endpoints=endpoints)
    return JobCommand(name, options, found, endpoints)


def _model(named: object) -> Path | str | None:
    """The folder of a model that lies on this machine, or its URL; None for what the cluster finds by the same name."""
    if not isinstance(named, str) or named in list_models():
        return None
    if named.startswith("/") and not Path(named).exists():
        return None
    found = locate(named)
    return found if "://" in found or found in list_models() else fetch(found).folder


def _with_model(words: tuple[str, ...], model: str) -> tuple[str, ...]:
    changed = list(words)
    for i, word in enumerate(words):
        if word == "--model":
            changed[i + 1] = model
        elif word.startswith("--model="):
            changed[i] = f"--model={model}"
    return tuple(changed)
