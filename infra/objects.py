"""Small objects below one prefix: JSON, Parquet tables and array bundles, on a disk or a bucket.

A `Folder` is to files what a volume is to voxels: it names the place in errors, gives up in bounded time, and never
shows a reader half an object (local files are moved into place, buckets put whole objects).
"""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.settings import current_settings
from infra.volumes.failures import storage_errors
from infra.volumes.location import Location
from infra.volumes.stores import Objects
from infra.written import Written
from models.errors import NotFound, StorageFailed

THREADS = 16
_AT_ONCE = 4096
"""Names that a pool of threads holds at a time: a name that waits takes 2 kB."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Folder:
    """A prefix of a store; `url` is a local path, or gs://, s3:// or memory:// with a path. Picklable."""

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", str(Location.parse(self.url)))

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.url}/{name}")

    def at(self, name: str) -> str:
        """The URL of `name` below this folder."""
        return f"{self.url}/{name}"

    def write(self, name: str, content: bytes) -> Written:
        """Store `content` as one object; a reader sees what was there before or all of it."""
        self._objects().write(name, content)
        return Written.content(self.at(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Store `content` where no object is yet, also if several try at once; False where there is another one."""
        return self._objects().create(name, content)

    def read(self, name: str) -> bytes:
        """The bytes of one object; raises `NotFound` where there is none."""
        content = self._objects().read(name)
        if content is None:
            raise NotFound(f"{self.at(name)}: not there")
        return content

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of one object, fewer where it ends before; raises `NotFound` where there is none."""
        content = self._objects().read_range(name, start, stop)
        if content is None:
            raise NotFound(f"{self.at(name)}: not there")
        return content

    def size(self, name: str) -> int | None:
        """Bytes of one object, None where there is none."""
        return self._objects().size(name)

    def exists(self, name: str) -> bool:
        """Whether the object is there; a store that cannot be asked is an error, not a no."""
        return self._objects().read(name) is not None

    def names(self, prefix: str = "") -> list[str]:
        """Names of the objects directly below `prefix`, sorted; none where nothing is there."""
        return self._objects(prefix).names()

    def each_name(self, prefix: str = "") -> Iterator[str]:
        """The same names in no order, as they come: for millions of them."""
        return self._objects(prefix).each_name()

    def below(self, depth: int) -> dict[str, tuple[int, str]]:
        """Objects at most `depth` names below this folder, each with its size and what changes when it is replaced."""
        return self._objects().below(depth)

    def occupied(self) -> bool:
        """Whether anything lies below this folder."""
        return self._objects().occupied()

    def remove(self, name: str) -> None:
        """Delete an object, or everything below a name; nothing happens where nothing is."""
        below = self._objects(name)
        if below.occupied() or below.read() is not None:
            below.delete_all()

    def delete(self, names: Iterable[str]) -> None:
        """Delete single objects, by one request each; nothing happens where one is not there. Names may be millions."""
        objects, waiting = self._objects(), iter(names)
        with ThreadPoolExecutor(THREADS) as threads:
            while some := list(islice(waiting, _AT_ONCE)):
                deque(threads.map(objects.delete, some), maxlen=0)

    def write_json(self, name: str, content: Mapping[str, Any]) -> Written:
        """Store a JSON object, keys sorted, so that equal content has equal bytes."""
        return self.write(name, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object; raises `StorageFailed` where it is damaged."""
        try:
            content = json.loads(self.read(name))
        except ValueError as error:
            raise StorageFailed(f"{self.at(name)}: damaged JSON ({error})") from error
        if not isinstance(content, dict):
            raise StorageFailed(f"{self.at(name)}: expected a JSON object, got {type(content).__name__}")
        return content

    def write_table(
        self, name: str, columns: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
    ) -> Written:
        """Store 1D arrays of one length as a Parquet table; `metadata` becomes the schema's."""
        table = pa.table({key: pa.array(column) for key, column in columns.items()})
        sink = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(dict(metadata or {})), sink, compression="zstd")
        return self.write(name, sink.getvalue())

    def read_table(self, name: str) -> Arrays:
        """Read a Parquet table as 1D arrays."""
        content = self.read(name)
        with storage_errors(self.at(name)):
            table = pq.ParquetFile(io.BytesIO(content)).read(use_threads=False)
            return {key: table.column(key).to_numpy() for key in table.column_names}

    def write_arrays(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> Written:
        """Store named arrays as one `.npz` (never pickled)."""
        sink = io.BytesIO()
        np.savez_compressed(sink, allow_pickle=False, **arrays)
        return self.write(name, sink.getvalue())

    def read_arrays(self, name: str) -> Arrays:
        """Read what `write_arrays` wrote."""
        content = self.read(name)
        with storage_errors(self.at(name)), np.load(io.BytesIO(content), allow_pickle=False) as bundle:
            return {key: bundle[key] for key in bundle.files}

    def _objects(self, name: str = "") -> Objects:
        return Objects(Location.parse(self.at(name) if name else self.url), current_settings())
