"""Stores that fail: damaged bytes, full disks, hosts that deny, answer nonsense or do not answer at all."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

import numpy as np
import pytest

from infra.volumes import VolumeInfo, create_volume, open_volume
from infra.volumes.failures import translated
from models.errors import AccessDenied, NotFound, PetavoxelError, StorageFailed
from models.geometry import Box

BOX = Box((3, 0, 0), (32, 32, 32))
INFO = VolumeInfo(shape=(32, 32, 32), dtype=np.dtype("uint64"), voxel_size_nm=(8.0, 8.0, 8.0), chunk_shape=(16, 16, 16))
SHARDED = VolumeInfo(shape=(32, 32, 32), dtype=np.dtype("uint64"), chunk_shape=(16, 16, 16), shard_shape=(32, 32, 32))
METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", "info")


def written(url: str, info: VolumeInfo = INFO) -> None:
    with create_volume(url, info) as volume:
        array = np.random.default_rng(0).integers(0, 2**60, info.shape, dtype=np.uint64)
        volume.write(volume.box, array)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def emptied(data: bytes) -> bytes:
    return b""


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :]


def damage(path: Path, how: Callable[[bytes], bytes]) -> None:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    chunks = [file for file in files if file.name not in METADATA]
    assert chunks
    for file in chunks:
        file.write_bytes(how(file.read_bytes()))


@pytest.mark.parametrize(
    ("prefix", "name", "info", "how"),
    [
        ("", "a.zarr", INFO, cut),
        ("", "a.zarr", INFO, emptied),
        ("", "a.zarr", INFO, flipped),
        ("zarr2://", "a.zarr", INFO, cut),
        ("zarr2://", "a.zarr", INFO, flipped),
        ("", "a.zarr", SHARDED, cut),
        ("", "a.zarr", SHARDED, emptied),
        ("", "a.zarr", SHARDED, flipped),
        ("precomputed://", "a", INFO, cut),
        ("precomputed://", "a", INFO, emptied),
    ],
)
def test_damaged_chunks(
    tmp_path: Path, prefix: str, name: str, info: VolumeInfo, how: Callable[[bytes], bytes]
) -> None:
    url = f"{prefix}{tmp_path}/{name}"
    written(url, info)
    damage(tmp_path / name, how)
    volume = open_volume(url)
    with pytest.raises(StorageFailed, match=r"/a(\.zarr)?: reading box 3:32,0:32,0:32: "):
        volume.read(BOX)


@pytest.mark.parametrize("name", ["a.zarr", "precomputed"])
def test_damaged_metadata(tmp_path: Path, name: str) -> None:
    url = f"{tmp_path}/{name}" if name.endswith("zarr") else f"precomputed://{tmp_path}/{name}"
    written(url)
    document = tmp_path / name / ("zarr.json" if name.endswith("zarr") else "info")
    document.write_bytes(cut(document.read_bytes()))
    with pytest.raises(StorageFailed, match="damaged"):
        open_volume(url)


@pytest.mark.parametrize("name", ["a.h5:/x", "a.npy", "a.tif"])
def test_truncated_files(tmp_path: Path, name: str) -> None:
    url = f"{tmp_path}/{name}"
    written(url)
    damage(tmp_path / name.split(":", maxsplit=1)[0], cut)
    with pytest.raises(StorageFailed, match=name):
        open_volume(url)


def test_flipped_bytes_in_hdf5(tmp_path: Path) -> None:
    written(f"{tmp_path}/a.h5:/x")
    damage(tmp_path / "a.h5", flipped)
    with pytest.raises(StorageFailed, match="reading box"):
        open_volume(f"{tmp_path}/a.h5:/x").read(INFO.box)


def test_damaged_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", raw=np.random.default_rng(0).integers(0, 255, (20, 20, 20)))
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(flipped(data))
    with pytest.raises(StorageFailed, match="reading box"):
        open_volume(tmp_path / "a.npz").read(Box.from_shape((20, 20, 20)))
    (tmp_path / "a.npz").write_bytes(cut(data))
    with pytest.raises(StorageFailed, match=r"a\.npz: the stored bytes are damaged"):
        open_volume(tmp_path / "a.npz")


FILL_THE_DISK = """
import resource, sys
import numpy as np
from infra.volumes import VolumeInfo, create_volume
from models.errors import StorageFailed
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    volume = create_volume(sys.argv[1], VolumeInfo(shape=(64, 64, 64), dtype="uint8", voxel_size_nm=(1, 1, 1)))
    volume.write(volume.box, np.random.default_rng(0).integers(0, 255, (64, 64, 64), dtype=np.uint8))
except StorageFailed as error:
    sys.exit(0 if sys.argv[2] in str(error) else f"another message: {error}")
sys.exit("no error")
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.zarr", "writing box 0:64,0:64,0:64: object c/0/0/0: the disk is full"),
        ("a.npy", "the disk is full"),
        ("a.tif", "the disk is full"),
    ],
)
def test_full_disk(tmp_path: Path, name: str, message: str) -> None:
    """A limit on file sizes makes the operating system refuse bytes as a full disk does."""
    command = [sys.executable, "-c", FILL_THE_DISK, f"{tmp_path}/{name}", message]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_full_disk_with_hdf5(tmp_path: Path) -> None:
    """HDF5 crashes where a write is refused, so this needs a disk that is really small, in a mount of its own."""
    limitless = FILL_THE_DISK.replace("resource.setrlimit", "(lambda *limits: None)")
    message = "writing box 0:64,0:64,0:64: the disk is full"
    mounted = 'mount -t tmpfs -o size=256k tmpfs "$1" && exec "$2" -c "$3" "$1/a.h5:/x" "$4"'
    arguments = ["sh", str(tmp_path), sys.executable, limitless, message]
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("needs the right to mount")
    command = ["unshare", "-m", "sh", "-c", mounted, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_errors_of_the_operating_system() -> None:
    assert "the disk is full" in str(translated(OSError(errno.ENOSPC, "No space left on device"), "x"))
    assert isinstance(translated(PermissionError(13, "Permission denied"), "x"), AccessDenied)
    assert isinstance(translated(FileNotFoundError(2, "No such file"), "x"), NotFound)
    assert isinstance(translated(ConnectionResetError(104, "reset"), "x"), StorageFailed)
    assert "damaged" not in str(translated(ConnectionResetError(104, "reset"), "x"))
    assert not isinstance(translated(ValueError("bad chunk c/401/403"), "x"), AccessDenied)


class Answer(BaseHTTPRequestHandler):
    """Answers requests for `documents` with their bytes, every other one with the server's status."""

    documents: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = self.server.status  # type: ignore[attr-defined]
        body = b'{"error": {"code": %d, "message": "so it is"}}' % status
        name = unquote(self.path.split("?", maxsplit=1)[0]).rsplit("/", maxsplit=1)[-1]
        if name in self.documents:
            status, body = 200, self.documents[name]
        elif self.documents and name in METADATA:
            status = 404
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A host that answers with a status, is silent, or refuses connections; the environment points to it."""
    listener = socket.socket()
    server = None
    if isinstance(request.param, int):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        server.status = request.param  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        port = server.server_port
    else:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        if request.param == "silent":
            listener.listen(64)
    url = f"http://127.0.0.1:{port}"
    for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, url)
    for name in ("GOOGLE_AUTH_TOKEN_FOR_TESTING", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("PETAVOXEL_STORAGE_TIMEOUT_S", "0.5")
    yield url
    listener.close()
    if server is not None:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [(403, AccessDenied), (401, AccessDenied), (404, NotFound), (503, StorageFailed), ("silent", StorageFailed),
     ("closed", StorageFailed)],
    indirect=["host"],
)  # fmt: skip
@pytest.mark.parametrize("url", ["gs://bucket/a.zarr", "precomputed://gs://bucket/a"])
def test_hosts_that_fail(host: str, expected: type[PetavoxelError], url: str) -> None:
    start = time.monotonic()
    with pytest.raises(expected, match="bucket/a"):
        open_volume(url)
    with pytest.raises(expected, match="bucket/a"):
        create_volume(url, INFO)
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("prefix", ["", "precomputed://"])
@pytest.mark.parametrize(("host", "expected"), [(503, StorageFailed), (403, AccessDenied)], indirect=["host"])
def test_a_host_that_fails_after_opening(
    host: str, expected: type[PetavoxelError], prefix: str, tmp_path: Path
) -> None:
    """The metadata can still be read, every chunk fails."""
    written(f"{prefix}{tmp_path}/a.zarr")
    Answer.documents = {file.name: file.read_bytes() for file in (tmp_path / "a.zarr").iterdir() if file.is_file()}
    try:
        volume = open_volume(f"{prefix}gs://bucket/a.zarr")
        start = time.monotonic()
        with pytest.raises(expected, match="reading box 3:32,0:32,0:32"):
            volume.read(BOX)
        assert time.monotonic() - start < 8
    finally:
        Answer.documents = {}


def test_missing_buckets(gcs_server: str) -> None:
    for prefix in ("", "precomputed://"):
        with pytest.raises(NotFound):
            open_volume(f"{prefix}gs://no-such-bucket/a.zarr")
    with pytest.raises(NotFound, match="no-such-bucket"):
        create_volume("gs://no-such-bucket/a.zarr", INFO)


def test_missing_bucket_on_s3(s3_server: str) -> None:
    with pytest.raises(NotFound):
        open_volume("s3://no-such-bucket/a.zarr")
    with pytest.raises(NotFound, match="no-such-bucket"):
        create_volume("s3://no-such-bucket/a.zarr", INFO)


def test_read_only_folder_is_denied(tmp_path: Path) -> None:
    """As root nothing is denied, so a child process gives its rights up first."""
    script = (
        "import os, sys\nimport infra.volumes.zarr_arrays\nfrom infra.volumes import VolumeInfo, create_volume\n"
        "from models.errors import AccessDenied\nos.setuid(65534)\n"
        "try:\n    create_volume(sys.argv[1], VolumeInfo(shape=(4, 4, 4), dtype='uint8'))\n"
        "except AccessDenied as error:\n    sys.exit(0)\nsys.exit('no error')\n"
    )
    if os.getuid() != 0:
        pytest.skip("needs root to give rights up")
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o755)
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)
    command = [sys.executable, "-c", script, f"{folder}/a.zarr"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
