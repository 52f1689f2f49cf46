"""The stores that volumes lie on: small objects, zarr stores and file systems, with time limits and our errors.

The libraries retry: gcsfs six times over half a minute (408, 429, 500 to 504, broken and silent connections, bodies
that end early), botocore and s3fs the same with the attempts set here, tensorstore with those set in its context. A
dead host must fail within about `Settings.storage_timeout_s`, so every operation has that limit around the library's
retries, and a silent request its own, shorter one, so that it is tried again in time.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec.asyn
from fsspec import AbstractFileSystem

from infra.settings import Settings
from infra.volumes.failures import storage_errors
from infra.volumes.location import Location
from infra.volumes.metering import count, http_trace
from infra.volumes.patience import Patience, operation_limit
from models.errors import InvalidVolume, RuntimeUnavailable, StorageFailed

LIST_PAGE = 5000
"""Names in one answer of a bucket's list; Amazon gives 1000 at most."""
AMAZON_ATTEMPTS = 6
"""Attempts of one request to S3, as many as gcsfs makes; they wait up to 1, 2, 4, 8 and 16 s in between."""


def file_system(location: Location, settings: Settings, *, asynchronous: bool = False) -> AbstractFileSystem:
    """The fsspec file system of a bucket or of memory, without listing caches and with bounded requests.

    Raises `RuntimeUnavailable` where the installed s3fs is too old, `AccessDenied` where no credentials are found.
    """
    with storage_errors(str(location)):
        if location.scheme == "gs":
            return _google(settings, asynchronous)
        if location.scheme == "s3":
            return _amazon(settings, asynchronous)
        from fsspec.implementations.memory import MemoryFileSystem

        return MemoryFileSystem()


def _google(settings: Settings, asynchronous: bool) -> AbstractFileSystem:
    # The plain class: gcsfs's default subclass asks another service for the bucket's layout first, which took over two
    # minutes per session where that service does not answer.
    from aiohttp import ClientTimeout
    from gcsfs.core import GCSFileSystem

    log = logging.getLogger("gcsfs")
    if log.level == logging.NOTSET:  # it logs a traceback for every error that it raises, and we report those
        log.setLevel(logging.CRITICAL)
    emulator = os.environ.get("STORAGE_EMULATOR_HOST") or None
    silence = min(settings.storage_request_timeout_s, settings.storage_timeout_s)
    patience = Patience(silence, settings.storage_slowest_bytes_per_s)
    return GCSFileSystem(
        token="anon" if settings.storage_anonymous or emulator else None,
        asynchronous=asynchronous,
        endpoint_url=emulator,  # said here, so that fsspec does not hand out an instance for another address
        requests_timeout=ClientTimeout(sock_connect=silence),
        timeout=settings.storage_timeout_s,
        session_kwargs={"trace_configs": [http_trace()], "middlewares": (patience,)},
        use_listings_cache=False,
    )


def _amazon(settings: Settings, asynchronous: bool) -> AbstractFileSystem:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old versions, which are refused below
        from s3fs import S3FileSystem, __version__
    if not S3FileSystem.async_impl:
        raise RuntimeUnavailable(f"s3://: expected s3fs 2024 or newer, this environment has s3fs {__version__}")
    from infra.volumes.amazon_session import MeteredSession

    silence = min(settings.storage_request_timeout_s, settings.storage_timeout_s)
    return S3FileSystem(
        anon=settings.storage_anonymous,
        asynchronous=asynchronous,
        endpoint_url=amazon_endpoint(),  # as for Google
        use_listings_cache=False,
        max_concurrency=1,  # with more it asks for the size of every object before it reads it
        config_kwargs={
            "connect_timeout": silence,
            "read_timeout": silence,
            # "standard" does not retry 429, which S3's relatives answer, and gives up early when many requests fail.
            "retries": {"total_max_attempts": AMAZON_ATTEMPTS, "mode": "legacy"},
            "http_session_cls": MeteredSession,
        },
    )


def amazon_endpoint() -> str | None:
    """The S3 endpoint that the environment names, None for Amazon's own."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


class Objects:
    """The objects below one location, as names to bytes; for metadata, not for voxels.

    Every method raises `AccessDenied`, `StorageFailed` or `NotFound`, naming the object.
    """

    def __init__(self, location: Location, settings: Settings) -> None:
        self.location = location
        self._settings = settings
        self._fs = None if location.scheme == "file" else file_system(location, settings)

    def read(self, name: str = "") -> bytes | None:
        """The bytes of an object, None where there is none."""
        with storage_errors(self._where(name)):
            try:
                if self._fs is None:
                    return _local_bytes(Path(self._path(name)))
                found: bytes = self._call("cat_file", self._path(name))
                return found
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

    def read_range(self, name: str, start: int, stop: int) -> bytes | None:
        """Bytes `start` to `stop` of an object, fewer where it ends before; None where there is no object."""
        if stop <= start:
            return b""
        with storage_errors(self._where(name)):
            try:
                if self._fs is None:
                    with open(self._path(name), "rb") as file:
                        file.seek(start)
                        return file.read(stop - start)
                options = {"start": start, "end": stop, "nbytes": stop - start}
                found: bytes = self._call("cat_file", self._path(name), **options)
                return found
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

    def write(self, name: str, data: bytes) -> None:
        """Write an object whole: a reader sees the old bytes or the new ones."""
        with storage_errors(self._where(name)):
            if self._fs is None:
                write_whole(Path(self._path(name)), data)
                count("put", bytes_out=len(data))
            else:
                self._call("pipe_file", self._path(name), data, nbytes=len(data))

    def create(self, name: str, data: bytes) -> bool:
        """Write an object whole where there is none; False, and nothing is changed, where there is another one."""
        with storage_errors(self._where(name)):
            try:
                if self._fs is None:
                    write_whole(Path(self._path(name)), data, replacing=False)
                    count("put", bytes_out=len(data))
                else:
                    self._call("pipe_file", self._path(name), data, mode="create", nbytes=len(data))
            except FileExistsError:  # also where the answer was lost and the library sent the request again
                return self.read(name) == data
            return True

    def size(self, name: str) -> int | None:
        """Bytes of an object, None where there is none."""
        with storage_errors(self._where(name)):
            try:
                if self._fs is None:
                    count("head")
                    status = os.stat(self._path(name))
                    return status.st_size if stat.S_ISREG(status.st_mode) else None
                known = self._call("info", self._path(name))
                return int(known["size"]) if known["type"] == "file" else None
            except (FileNotFoundError, NotADirectoryError):
                return None

    def below(self, depth: int) -> dict[str, tuple[int, str]]:
        """Every object at most `depth` names below the location: its size, and what changes when it is replaced."""
        with storage_errors(self._where("")):
            if self._fs is None:
                count("list")
                return dict(_files_below(Path(self.location.path), depth))
            try:
                found = self._call("find", self.location.path, detail=True)
            except FileNotFoundError:
                return {}
            start = f"{self.location.path}/"
            names = ((path.lstrip("/").removeprefix(start), known) for path, known in found.items())
            return {
                name: (int(known["size"]), _stamp_of_object(known)) for name, known in names if name.count("/") < depth
            }

    def stamp(self, name: str = "") -> str:
        """What changes when an object is replaced: size and time of a file, etag and generation in a bucket."""
        with storage_errors(self._where(name)):
            if self._fs is None:
                status = os.stat(self._path(name))
                count("head")
                return _stamp_of_file(status)
            return _stamp_of_object(self._call("info", self._path(name)))

    def occupied(self) -> bool:
        """Whether anything lies at or below the location."""
        with storage_errors(self._where("")):
            if self._fs is None:
                path = Path(self.location.path)
                count("list")
                return any(path.iterdir()) if path.is_dir() else path.exists()
            try:
                return bool(self._call("ls", self.location.path, detail=False))
            except FileNotFoundError:
                return False

    def names(self) -> list[str]:
        """Names of the objects directly below the location, sorted; none where nothing is there."""
        return sorted(self.each_name())

    def each_name(self) -> Iterator[str]:
        """Names of the objects directly below the location as they come, in bounded memory.

        A page of a bucket's list is an operation of its own: a list of millions takes longer than one may.
        """
        with storage_errors(self._where("")):
            try:
                if self.location.scheme == "gs":
                    yield from self._google_names()
                elif self.location.scheme == "s3":
                    yield from self._amazon_names()
                elif self._fs is not None:
                    found = self._fs.ls(self.location.path, detail=True)
                    yield from (entry["name"].rsplit("/", 1)[-1] for entry in found if entry["type"] == "file")
                else:
                    count("list")
                    with os.scandir(self.location.path) as entries:
                        yield from (entry.name for entry in entries if entry.is_file())
            except FileNotFoundError:
                return

    def _google_names(self) -> Iterator[str]:
        bucket, prefix = self._bucket_and_prefix()
        token = None
        while True:
            page = self._call(
                "call", "GET", "b/{}/o", bucket, prefix=prefix, delimiter="/", maxResults=LIST_PAGE, pageToken=token,
                fields="items(name),nextPageToken", json_out=True,
            )  # fmt: skip
            yield from (item["name"].removeprefix(prefix) for item in page.get("items", ()) if item["name"] != prefix)
            token = page.get("nextPageToken")
            if not token:
                return

    def _amazon_names(self) -> Iterator[str]:
        bucket, prefix = self._bucket_and_prefix()
        asked: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/", "MaxKeys": LIST_PAGE}
        while True:
            page = self._call("call_s3", "list_objects_v2", **asked)
            yield from (item["Key"].removeprefix(prefix) for item in page.get("Contents", ()) if item["Key"] != prefix)
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def _bucket_and_prefix(self) -> tuple[str, str]:
        bucket, _, prefix = self.location.path.partition("/")
        return bucket, f"{prefix}/" if prefix else ""

    def delete(self, name: str) -> None:
        """Delete one object, by one request; nothing happens where there is none."""
        with storage_errors(self._where(name)):
            try:
                if self._fs is None:
                    count("delete")
                    os.unlink(self._path(name))
                else:
                    self._call("rm_file", self._path(name))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return

    def delete_all(self) -> None:
        """Delete whatever lies at or below the location; raises `StorageFailed` where something is left."""
        with storage_errors(self._where("")):
            path = Path(self.location.path)
            if self._fs is None:
                count("delete")
            if self._fs is not None:
                self._call("rm", self.location.path, recursive=True, nbytes=1 << 32)
                if self.occupied():  # s3fs passes over what S3 refuses to delete
                    raise StorageFailed(f"{self.location}: still there after its removal; may objects be deleted here?")
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _path(self, name: str) -> str:
        return f"{self.location.path}/{name}" if name else self.location.path

    def _where(self, name: str) -> str:
        return f"{self.location}/{name}" if name else str(self.location)

    def _call(self, method: str, *args: Any, nbytes: int = 0, **kwargs: Any) -> Any:
        fs = self._fs
        if fs is None or not fs.async_impl:
            return getattr(fs, method)(*args, **kwargs)

        async def limited() -> Any:
            async with operation_limit(self._settings, nbytes):
                return await getattr(fs, f"_{method}")(*args, **kwargs)

        return fsspec.asyn.sync(fs.loop, limited)


def _local_bytes(path: Path) -> bytes:
    content = b""
    try:
        content = path.read_bytes()
    finally:
        count("get", bytes_in=len(content))
    return content


def _files_below(root: Path, depth: int) -> Iterator[tuple[str, tuple[int, str]]]:
    for path in (path for level in range(depth) for path in root.glob("*/" * level + "*")):
        try:
            status = path.stat()
        except FileNotFoundError:  # it was being written and has its final name by now
            continue
        if stat.S_ISREG(status.st_mode):
            yield path.relative_to(root).as_posix(), (status.st_size, _stamp_of_file(status))


def _stamp_of_file(status: os.stat_result) -> str:
    return f"size={status.st_size} mtime_ns={status.st_mtime_ns} inode={status.st_ino}"


def _stamp_of_object(known: Mapping[str, Any]) -> str:
    keys = ("size", "generation", "etag", "ETag", "updated", "LastModified", "created")
    return " ".join(f"{key}={known[key]}" for key in keys if known.get(key) is not None)


def write_whole(path: Path, data: bytes, *, replacing: bool = True) -> None:
    """Write a local file so that it is either absent, old or complete, whatever happens meanwhile.

    Raises `FileExistsError` where there is one and it is not to be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(data)
        if replacing:
            partial.replace(path)
        else:
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def local_path(location: Location, what: str) -> Path:
    """The local path of a file; raises `InvalidVolume` on a bucket, where `what` cannot be read or written in place."""
    if location.scheme != "file":
        raise InvalidVolume(
            f"{location}: {what} works on local files only, not on {location.scheme}://; copy the file here first, "
            f"or convert it to zarr"
        )
    return Path(location.path)
