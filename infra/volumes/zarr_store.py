"""The zarr store behind zarr volumes: every operation is bounded in time and names the object that failed."""

from __future__ import annotations

import atexit
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from zarr.abc.store import ByteRequest, Store
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from infra.settings import Settings
from infra.volumes.failures import translated
from infra.volumes.location import Location
from infra.volumes.metering import count
from infra.volumes.patience import operation_limit
from infra.volumes.stores import file_system
from models.errors import StorageFailed

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer, BufferPrototype

_T = TypeVar("_T")
_closed_at_exit: list[Any] = []


class GuardedStore(WrapperStore[Store]):
    """A store whose operations end within the settings' time limit, with errors of our tree.

    `absences` counts keys that were asked for and not there. With `counting`, operations are metered here; stores that
    speak HTTP are metered where they do.
    """

    def __init__(self, store: Store, settings: Settings | None = None, *, counting: bool = False) -> None:
        super().__init__(store)
        self._settings = settings or Settings()
        self._counting = counting
        self.absences = 0

    def _with_store(self, store: Store) -> GuardedStore:
        return GuardedStore(store, self._settings, counting=self._counting)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of a key, None where there are none."""
        found = await self._guarded(key, self._store.get(key, prototype, byte_range))
        if self._counting:
            count("get", bytes_in=0 if found is None else len(found))
        if found is None:
            self.absences += 1
        if found is not None and not len(found):  # zarr takes an empty shard for one that was never written
            raise StorageFailed(f"object {key}: expected bytes, it is empty")
        return found

    async def set(self, key: str, value: Buffer) -> None:
        """Write a key."""
        await self._guarded(key, self._store.set(key, value), len(value))
        if self._counting:
            count("put", bytes_out=len(value))

    async def exists(self, key: str) -> bool:
        """Whether a key is there."""
        if self._counting:
            count("head")
        return await self._guarded(key, self._store.exists(key))

    async def delete(self, key: str) -> None:
        """Delete a key; one that is not there is none of our concern."""
        if isinstance(self._store, FsspecStore):  # its own way asks for a listing first
            await self._guarded(key, self._remove(f"{self._store.path}/{key}"))
        else:
            await self._guarded(key, self._store.delete(key))
        if self._counting:
            count("delete")

    async def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            await self._store.fs._rm_file(path)  # type: ignore[attr-defined]

    async def _guarded(self, key: str, operation: Awaitable[_T], nbytes: int = 0) -> _T:
        began = time.monotonic()
        try:
            async with operation_limit(self._settings, nbytes):
                return await operation
        except TimeoutError as error:
            waited = time.monotonic() - began
            raise StorageFailed(f"object {key}: the store did not answer within {waited:.0f} s") from error
        except Exception as error:
            raise translated(error, f"object {key}") from error


def _close(fs: Any) -> None:
    """Close a file system's connections in zarr's loop, which they belong to; left open, each complains at exit."""
    session = getattr(fs, "_session", None) or getattr(fs, "_s3", None)
    if session is not None:
        with suppress(Exception):
            sync(session.close(), timeout=2)


def zarr_store(location: Location, settings: Settings, *, read_only: bool) -> GuardedStore:
    """The guarded zarr store at a location."""
    store: Store
    if location.scheme == "file":
        store = LocalStore(location.path, read_only=read_only)
    else:
        fs = file_system(location, settings, asynchronous=True)
        if not fs.async_impl:
            from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

            fs = AsyncFileSystemWrapper(fs, asynchronous=True)
        if location.scheme in ("gs", "s3") and not any(fs is known for known in _closed_at_exit):
            _closed_at_exit.append(fs)
            atexit.register(_close, fs)
        path = f"/{location.path}" if location.scheme == "memory" else location.path
        store = FsspecStore(fs, path=path, read_only=read_only)
    return GuardedStore(store, settings, counting=location.scheme in ("file", "memory"))
