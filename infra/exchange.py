"""Brings together what many chunks know of one segment: a shuffle on disk or bucket whose every task stays small.

Each source (a chunk) writes one file of records, cut into sections by the leading bits of the record's bucket. With
many sources a bucket would have to look into all their files. So pass 1 puts the files of 16 neighbours together, and
further passes take one section from each of 64 such files and cut what they find by the next bits: an external radix
sort. No task opens more than 64 files, nor holds much more than 16 sources wrote::

    sources 0 … 15   16 … 31        each a file of 64 sections (bits 0 to 5 of the bucket)
        └──┬──┘        └──┬──┘
    pass 1: group 0     group 1     the same sections; 64 groups →
              └───────┬───────┘
    pass 2: (group 0, section p)    64 sections (bits 6 to 11)
                      └ bucket p·64 + q: section q of at most 64 files

The number of buckets follows from the number of sources alone, never from a machine. What a bucket sees does not depend
on the order in which sources and passes were done: records come by ascending id, then by source.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import numpy as np

from infra.objects import Folder
from infra.written import Written
from models.errors import StorageFailed
from models.geometry import Box, Chunk, ChunkGrid

_BITS = 6
_GROUP = 1 << _BITS
_NEIGHBOURS = 16
_SOURCES_PER_BUCKET = 16
_HEAD = struct.Struct("<QQQ")  # id, count, bytes of content
_id = attrgetter("id")


@dataclass(frozen=True)
class Record:
    """What one source knows of one segment: a number that adds up (voxels), and bytes."""

    id: int
    count: int
    content: bytes


@dataclass(frozen=True)
class Gathered:
    """All that is known of one segment; contents in the order of sources, without empty ones."""

    id: int
    count: int
    contents: list[bytes]


BucketOf = Callable[[Sequence[Record]], Sequence[int]]


@dataclass(frozen=True)
class Exchange:
    """The plan for `sources` files below `folder`; picklable, and a pure function of the number of sources."""

    folder: Folder
    sources: int

    @property
    def bits(self) -> int:
        """Buckets are numbered with so many bits."""
        return max(0, -(-self.sources // _SOURCES_PER_BUCKET) - 1).bit_length()

    @property
    def buckets(self) -> int:
        """Number of buckets."""
        return 1 << self.bits

    @property
    def passes(self) -> int:
        """Passes between the sources and the buckets."""
        return len(self._widths) if self.sources > _NEIGHBOURS else 0

    def tasks(self, number: int) -> ChunkGrid:
        """The units of pass `number`, 1 to `passes`; the first index is group of files · prefixes + prefix.

        One index alone, since of the three in a chunk's name only the first may exceed 2^16; prefixes are up to 2^24.
        """
        return ChunkGrid(Box((0, 0, 0), (self._files(number) * self._prefixes(number), 1, 1)), (1, 1, 1))

    def units(self) -> ChunkGrid:
        """The buckets as units of work; the first index is the bucket."""
        return ChunkGrid(Box((0, 0, 0), (self.buckets, 1, 1)), (1, 1, 1))

    def write(self, source: int, records: Iterable[Record], buckets: Iterable[int]) -> Written:
        """Store the records of one source; `buckets` says where each belongs."""
        return self._write(0, source, 0, list(zip(records, (int(bucket) for bucket in buckets), strict=True)))

    def run_pass(self, number: int, unit: Chunk, bucket_of: BucketOf) -> Written:
        """Do one unit of a pass; `bucket_of` gives the buckets of records."""
        group, prefix = divmod(unit.index[0], self._prefixes(number))
        size = _GROUP if number > 1 else _NEIGHBOURS
        files = range(group * size, min((group + 1) * size, self._files(number - 1)))
        contents = self._sections(number - 1, prefix, files) if number > 1 else self._whole(files)
        found = [record for content in contents for record in _records(content)]
        return self._write(number, group, prefix, list(zip(found, bucket_of(found), strict=True)))

    def gather(self, bucket: int) -> Iterator[Gathered]:
        """The segments of one bucket, by ascending id."""
        contents = self._sections(self.passes, bucket, range(self._files(self.passes)))
        for _, records in groupby(heapq.merge(*map(_records, contents), key=_id), _id):
            listed = list(records)
            contents = [record.content for record in listed if record.content]
            yield Gathered(listed[0].id, sum(record.count for record in listed), contents)

    @property
    def _widths(self) -> tuple[int, ...]:
        """Bits of the bucket that each pass decides, the leading ones first."""
        full, rest = divmod(self.bits, _BITS)
        return (_BITS,) * full + ((rest,) if rest or not full else ())

    def _width(self, number: int) -> int:
        """Bits of the bucket that are decided by the sections of the files of pass `number`, 0 for the sources."""
        return self._widths[max(0, number - 1)]

    def _prefixes(self, number: int) -> int:
        """Leading bits of the bucket that the passes before `number` have decided, as a number of prefixes."""
        return 1 << sum(self._widths[: number - 1])

    def _files(self, number: int) -> int:
        """Files per prefix after pass `number`."""
        group: int = _NEIGHBOURS * _GROUP ** (number - 1) if number else 1
        return -(-self.sources // group)

    def _name(self, number: int, file: int, prefix: int) -> str:
        return f"{number}/{prefix}/{file}.records"

    def _sections(self, number: int, prefix: int, files: Iterable[int]) -> list[bytes]:
        """Of each file: the records whose bucket begins with `prefix`, which ends with a section's bits."""
        section, above = prefix & ((1 << self._width(number)) - 1), prefix >> self._width(number)
        return _at_once(lambda file: _read_section(self.folder, self._name(number, file, above), section), files)

    def _whole(self, files: Iterable[int]) -> list[bytes]:
        """All records of each of these sources."""
        head = 8 * ((1 << self._width(0)) + 1)
        return _at_once(lambda file: _read_whole(self.folder, self._name(0, file, 0), head), files)

    def _write(self, number: int, file: int, prefix: int, records: list[tuple[Record, int]]) -> Written:
        width = self._width(number)
        below = self.bits - sum(self._widths[: max(1, number)])
        sections: list[list[Record]] = [[] for _ in range(1 << width)]
        for record, bucket in records:
            sections[(bucket >> below) & ((1 << width) - 1)].append(record)
        packed = [b"".join(_packed(record) for record in sorted(section, key=_id)) for section in sections]
        ends = np.cumsum([8 * (len(packed) + 1), *(len(section) for section in packed)]).astype("<u8")
        return self.folder.write(self._name(number, file, prefix), b"".join([ends.tobytes(), *packed]))


def _packed(record: Record) -> bytes:
    return _HEAD.pack(record.id, record.count, len(record.content)) + record.content


def _read_section(folder: Folder, name: str, section: int) -> bytes:
    """The records of one section, in two requests; one where there are none."""
    head = folder.read_range(name, 8 * section, 8 * section + 16)
    begin, end = struct.unpack("<QQ", head) if len(head) == 16 else (0, 1)
    content = folder.read_range(name, begin, end) if len(head) == 16 else b""
    if len(content) != end - begin:
        raise StorageFailed(f"{folder.at(name)}: damaged, section {section} is cut short")
    return content


def _read_whole(folder: Folder, name: str, head: int) -> bytes:
    """The records of all sections, in one request; the file begins with `head` bytes of places."""
    content = folder.read(name)
    if len(content) < head or len(content) != int.from_bytes(content[head - 8 : head], "little"):
        raise StorageFailed(f"{folder.at(name)}: damaged, it is cut short")
    return content[head:]


def _at_once(read: Callable[[int], bytes], files: Iterable[int]) -> list[bytes]:
    with ThreadPoolExecutor(16) as readers:
        return list(readers.map(read, files))


def _records(content: bytes) -> Iterator[Record]:
    at = 0
    while at < len(content):
        segment, count, size = _HEAD.unpack_from(content, at)
        at += _HEAD.size
        yield Record(segment, count, content[at : at + size])
        at += size
