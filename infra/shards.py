"""Sharded objects: many small objects, keyed by segment id, in few files (`neuroglancer_uint64_sharded_v1`).

A volume of any size has more segments than a bucket likes objects. The format hashes an id to a shard, a file, and
within it to a minishard with an index of its own, so a reader finds any object with three small requests. Shards are
written whole, each by one writer; that is also what makes their bytes a function of their content alone. tensorstore
writes this format too, but not the bytes in front of an object that meshes need.

https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md. The hash is MurmurHash3 by
A. Appleby (public domain), variant x86_128.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.objects import Folder
from infra.written import Written
from models.errors import InvalidInput, InvalidVolume, NotFound

_TYPE = "neuroglancer_uint64_sharded_v1"
_HASH = "murmurhash3_x86_128"
_MINISHARD_BITS = 6
_ENTRY = 16  # bytes of an entry of a shard's index: begin and end of a minishard's index


@dataclass(frozen=True)
class Entry:
    """One object of a shard; `before` is stored right in front of it and found from there (fragments of a mesh)."""

    id: int
    content: bytes
    before: bytes = b""


@dataclass(frozen=True)
class Sharding:
    """How ids are spread over 2^`shard_bits` files, and whether objects are gzipped.

    Raises `InvalidInput` for bits outside 0 to 58.
    """

    shard_bits: int
    compress: bool = True
    minishard_bits: int = _MINISHARD_BITS

    def __post_init__(self) -> None:
        if self.shard_bits < 0 or self.minishard_bits < 0 or self.shard_bits + self.minishard_bits > 64:
            raise InvalidInput(
                f"sharding: expected shard and minishard bits of at least 0 and at most 64 together, "
                f"got {self.shard_bits} and {self.minishard_bits}"
            )

    @classmethod
    def of(cls, description: object, where: str) -> Sharding:
        """Read the `sharding` member of an info object; raises `InvalidVolume` for what is not written here."""
        if not isinstance(description, Mapping):
            raise InvalidVolume(f"{where}: expected sharding {_TYPE}, got {description!r}")
        found = cls(
            int(description.get("shard_bits", 0)),
            description.get("data_encoding") == "gzip",
            int(description.get("minishard_bits", 0)),
        )
        if found.description() != dict(description):
            raise InvalidVolume(f"{where}: expected sharding like {found.description()}, got {dict(description)}")
        return found

    def description(self) -> dict[str, Any]:
        """The `sharding` member of an info object."""
        return {
            "@type": _TYPE,
            "preshift_bits": 0,
            "hash": _HASH,
            "minishard_bits": self.minishard_bits,
            "shard_bits": self.shard_bits,
            "minishard_index_encoding": "gzip",
            "data_encoding": "gzip" if self.compress else "raw",
        }

    def shards(self, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The shard of each id, uint64 (n,), 0 to 2^shard_bits - 1."""
        return (_hashed(ids) >> np.uint64(self.minishard_bits)) & np.uint64((1 << self.shard_bits) - 1)

    def minishards(self, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The minishard of each id, uint64 (n,)."""
        return _hashed(ids) & np.uint64((1 << self.minishard_bits) - 1)

    def name(self, shard: int) -> str:
        """File name of a shard."""
        return f"{shard:0{math.ceil(self.shard_bits / 4)}x}.shard"

    def encode(self, entries: Iterable[Entry]) -> bytes:
        """The file of one shard; equal entries in any order give equal bytes. The ids are the caller's to choose."""
        listed = sorted(entries, key=lambda entry: entry.id)
        numbers = self.minishards(np.array([entry.id for entry in listed], np.uint64))
        parts: list[bytes] = []
        at = 0
        indices = []
        for minishard in range(1 << self.minishard_bits):
            rows = []
            for i in np.flatnonzero(numbers == minishard):
                content = self._packed(listed[i].content)
                parts += [listed[i].before, content]
                at += len(listed[i].before)
                rows.append((listed[i].id, at, len(content)))
                at += len(content)
            indices.append(_index(rows))
        header = np.zeros((len(indices), 2), "<u8")
        for minishard, index in enumerate(indices):
            header[minishard] = at, at + len(index)
            at += len(index)
        return b"".join([header.tobytes(), *parts, *indices])

    def _packed(self, content: bytes) -> bytes:
        return gzip.compress(content, 6, mtime=0) if self.compress else content

    def unpacked(self, content: bytes, where: str) -> bytes:
        """What `encode` stored as `content`; raises `InvalidVolume` for damaged bytes."""
        return _unzipped(content, where) if self.compress else content


@dataclass(frozen=True)
class ShardedObjects:
    """The objects below a folder; several processes may write different shards. Raises the storage errors."""

    folder: Folder
    sharding: Sharding

    def write(self, shard: int, entries: Iterable[Entry]) -> list[Written]:
        """Write the file of one shard, remove it for no entries; raises `InvalidInput` for an id of another shard."""
        listed = list(entries)
        if not listed:
            self.folder.delete([self.sharding.name(shard)])
            return []
        ids = np.array([entry.id for entry in listed], np.uint64)
        if (self.sharding.shards(ids) != shard).any():
            raise InvalidInput(f"{self.folder.url}: expected ids of shard {shard}, got {ids.tolist()[:20]}")
        return [self.folder.write(self.sharding.name(shard), self.sharding.encode(listed))]

    def read(self, segment: int) -> bytes:
        """The object of one id; raises `NotFound` without one, `InvalidVolume` for damaged bytes."""
        key = np.array([segment], np.uint64)
        name, minishard = self.sharding.name(int(self.sharding.shards(key)[0])), int(self.sharding.minishards(key)[0])
        where = f"{self.folder.url}/{segment}"
        try:
            ids, firsts, sizes = self._index_of(name, minishard)
        except NotFound as error:
            raise NotFound(f"{where}: not there") from error
        found = np.flatnonzero(ids == np.uint64(segment))
        if not found.size:
            raise NotFound(f"{where}: not there")
        first = self._data_begins + int(firsts[found[0]])
        content = self.folder.read_range(name, first, first + int(sizes[found[0]]))
        return self.sharding.unpacked(content, where)

    def ids(self) -> Iterator[int]:
        """All ids, ascending within each shard."""
        for name in self.folder.names():
            if name.endswith(".shard"):
                indices = [self._index_of(name, i)[0] for i in range(1 << self.sharding.minishard_bits)]
                yield from sorted(int(segment) for index in indices for segment in index)

    @property
    def _data_begins(self) -> int:
        return _ENTRY << self.sharding.minishard_bits

    def _index_of(self, name: str, minishard: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
        """Ids, first bytes (after the shard's index) and sizes of a minishard's objects."""
        where = self.folder.at(name)
        entry = self.folder.read_range(name, _ENTRY * minishard, _ENTRY * (minishard + 1))
        if len(entry) != _ENTRY:
            raise InvalidVolume(f"{where}: expected an index of {self._data_begins} bytes, the file ends before")
        begin, end = (int(value) + self._data_begins for value in np.frombuffer(entry, "<u8"))
        if begin == end:
            none = np.empty(0, np.uint64)
            return none, none, none
        content = _unzipped(self.folder.read_range(name, begin, end), where)
        if len(content) % 24:
            raise InvalidVolume(f"{where}: expected an index of three rows of uint64, got {len(content)} bytes")
        rows = np.frombuffer(content, "<u8").reshape(3, -1).astype(np.uint64)
        sizes = rows[2]
        ends = np.cumsum(rows[1] + sizes, dtype=np.uint64)
        return np.cumsum(rows[0], dtype=np.uint64), ends - sizes, sizes


def _index(rows: list[tuple[int, int, int]]) -> bytes:
    """A minishard's index of (id, first byte, size): ids and gaps as differences, gzipped."""
    if not rows:
        return b""
    table = np.array(rows, np.uint64)
    table[1:, 0] -= table[:-1, 0].copy()
    ends = np.array([first + size for _, first, size in rows[:-1]], np.uint64)
    table[1:, 1] -= ends
    return gzip.compress(np.ascontiguousarray(table.T).astype("<u8").tobytes(), 6, mtime=0)


def _unzipped(content: bytes, where: str) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidVolume(f"{where}: damaged bytes ({error})") from error


def _hashed(ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The low 64 bits of MurmurHash3_x86_128, seed 0, of each id's eight bytes."""
    keys = np.ascontiguousarray(ids, np.uint64)
    low, high = (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32)
    with np.errstate(over="ignore"):
        h1 = _rotated(low * np.uint32(0x239B961B), 15) * np.uint32(0xAB0E9789)
        h2 = _rotated(high * np.uint32(0xAB0E9789), 16) * np.uint32(0x38B34AE5)
        h1, h2 = h1 ^ np.uint32(8), h2 ^ np.uint32(8)  # 8 is the length
        rest = np.full_like(h1, 8)  # the third and fourth word of the state, which stay equal
        h1 = h1 + h2 + rest + rest
        h1, h2, rest = _finished(h1), _finished(h2 + h1), _finished(rest + h1)
        h1 = h1 + h2 + rest + rest
        h2 = h2 + h1
    return h1.astype(np.uint64) | (h2.astype(np.uint64) << np.uint64(32))


def _rotated(values: NDArray[np.uint32], by: int) -> NDArray[np.uint32]:
    return (values << np.uint32(by)) | (values >> np.uint32(32 - by))


def _finished(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    mixed = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return mixed ^ (mixed >> np.uint32(16))
