"""The image: what the Dockerfile promises, and (slow) that it builds and segments."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
HOST_FILES = {"/etc/ssl/certs/ca-certificates.crt": "/etc/host-ca.crt", "/etc/resolv.conf": "/etc/resolv.conf"}
"""What the build borrows from this machine to reach its package index."""


def _stages() -> dict[str, str]:
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_images_run_as_the_user_of_rays_images() -> None:
    stages = _stages()
    for name in ("cpu", "gpu"):
        assert re.findall(r"^USER (.+)$", stages[name], re.MULTILINE)[-1] == "1000:100"
    assert "useradd --uid 1000 --gid 100 --create-home" in stages["system"]


def test_everything_is_pinned() -> None:
    assert re.search(r"^ARG BASE=\S+:[0-9]+\.[0-9]+-slim$", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^ARG TENSORRT=\S+==[0-9.]+$", DOCKERFILE, re.MULTILINE)
    installs = re.findall(r"pip install ((?:\\\n|[^&\n])*)", DOCKERFILE)
    assert installs
    for arguments in installs:
        pinned = "==" in arguments or "constraints.txt" in arguments
        assert pinned or "--no-deps" in arguments, arguments


def test_what_is_copied_is_in_the_context_of_the_build() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in line.split():
            assert source in allowed
            assert (ROOT / source).exists()


def _run(*command: str, seconds: int = 900) -> str:
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, check=False, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, f"{' '.join(command[:3])}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip()


def _base(name: str, folder: Path) -> None:
    """Debian's minimal system under the name of the Dockerfile's base, where no registry gives it."""
    if (
        subprocess.run(["buildah", "inspect", "--type", "image", name], capture_output=True, check=False).returncode
        == 0
    ):
        return
    _run("debootstrap", "--variant=minbase", "bookworm", str(folder / "root"))
    container = _run("buildah", "from", "scratch")
    _run("buildah", "copy", "--quiet", container, str(folder / "root"), "/")
    _run("buildah", "commit", "--quiet", container, name)
    _run("buildah", "rm", container)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("target", "arguments"), [("cpu", []), ("gpu", ["TENSORRT=tensorrt-rtx-cu12==1.7.1.116"])])
def test_image_builds_and_segments(target: str, arguments: list[str], tmp_path: Path) -> None:
    """Its build runs `petavoxel demo`. The GPU image gets the TensorRT of the public index."""
    if os.getuid() != 0 or not (shutil.which("buildah") and shutil.which("debootstrap")):
        pytest.skip("needs root, buildah and debootstrap")
    base = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert base is not None
    _base(base[1], tmp_path)
    pip = tmp_path / "pip.conf"
    pip.write_text("[global]\ncert = /etc/host-ca.crt\ntimeout = 180\n")
    mounts = [f"--volume={here}:{there}:ro" for here, there in {**HOST_FILES, str(pip): "/etc/pip.conf"}.items()]
    build = ["buildah", "bud", "--pull-never", "--layers", "--target", target, "--tag", f"petavoxel-test:{target}"]
    _run(*build, *mounts, *[f"--build-arg={argument}" for argument in arguments], ".", seconds=3000)
    container = _run("buildah", "from", "--pull-never", f"localhost/petavoxel-test:{target}")
    try:
        assert "uid=1000(ray) gid=100(users)" in _run("buildah", "run", container, "--", "id")
        assert _run("buildah", "run", container, "--", "petavoxel", "--version")
        kernels = _run("buildah", "run", container, "--", "find", "/opt/petavoxel/kernels", "-name", "*.nbc")
        assert len(kernels.splitlines()) > 50
        models = "from models.catalog import find_model; print(find_model('fib25-affinity').card.file.sha256)"
        assert len(_run("buildah", "run", container, "--", "python", "-c", models)) == 64
        absent = "import importlib.util as u; print([n for n in ('torch', 'pytest_timeout') if u.find_spec(n)])"
        assert _run("buildah", "run", container, "--", "python", "-c", absent) == "[]"
    finally:
        _run("buildah", "rm", container)
