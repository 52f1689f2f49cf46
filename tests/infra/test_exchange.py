"""The exchange against a plain dictionary, for numbers of sources that need no pass, one pass and two."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from infra.chunk_names import ChunkNames
from infra.exchange import Exchange, Record
from infra.objects import Folder
from models.errors import StorageFailed


def bucket_of(exchange: Exchange, segment: int) -> int:
    return (segment * 2654435761 >> 7) % exchange.buckets


def records_of(source: int, segments: int) -> list[Record]:
    rng = random.Random(source)
    ids = sorted(rng.sample(range(1, segments), 5))
    return [Record(i, source, rng.randbytes(rng.randrange(4) * 5)) for i in ids]


CASES = [(1, 0, 1), (16, 0, 1), (17, 1, 2), (100, 1, 8), (1100, 2, 128)]


@pytest.mark.parametrize(("sources", "passes", "buckets"), CASES)
def test_everything_arrives_once_in_order(sources: int, passes: int, buckets: int) -> None:
    exchange = Exchange(Folder(f"memory://exchange/{sources}"), sources)
    assert (exchange.passes, exchange.buckets, len(exchange.units())) == (passes, buckets, buckets)
    counts: dict[int, int] = defaultdict(int)
    contents: dict[int, list[bytes]] = defaultdict(list)
    order = random.Random(0).sample(range(sources), sources)
    for source in range(sources):
        for record in records_of(source, 400):
            counts[record.id] += record.count
            contents[record.id] += [record.content] if record.content else []
    for source in order:
        records = records_of(source, 400)
        exchange.write(source, records, [bucket_of(exchange, record.id) for record in records])
    for number in range(1, passes + 1):
        for unit in reversed(exchange.tasks(number)):
            exchange.run_pass(number, unit, lambda found: [bucket_of(exchange, record.id) for record in found])
    seen = []
    for unit in exchange.units():
        bucket = unit.index[0]
        found = list(exchange.gather(bucket))
        assert [item.id for item in found] == sorted({item.id for item in found})
        for item in found:
            assert bucket_of(exchange, item.id) == bucket
            assert item.count == counts[item.id]
            assert item.contents == contents[item.id]
        seen += [item.id for item in found]
    assert sorted(seen) == sorted(counts)
    exchange.folder.remove("")


@pytest.mark.parametrize("sources", [1, 16, 17, 257, 1024, 1025, 65536, 65537, 10**6, 6 * 10**7])
def test_no_task_opens_more_than_64_files_whatever_the_volume(sources: int) -> None:
    exchange = Exchange(Folder("memory://exchange/plan"), sources)
    assert exchange.sources / exchange.buckets <= 16
    assert exchange._files(exchange.passes) <= 64
    assert sum(exchange._widths) == exchange.bits
    assert all(width <= 6 for width in exchange._widths)
    if exchange.passes and sources < 10**5:
        units = exchange.tasks(exchange.passes)
        assert len(units) == len({unit.name for unit in units}) <= 2 * sources


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    exchange = Exchange(Folder(str(tmp_path)), 1)
    exchange.write(0, [Record(5, 1, b"hello")], [0])
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    whole = file.read_bytes()
    many = Exchange(Folder(str(tmp_path)), 17)
    for size in (0, 12, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(StorageFailed, match="section 0 is cut short"):
            list(exchange.gather(0))
        with pytest.raises(StorageFailed, match=r"0\.records: damaged"):
            many.run_pass(1, many.tasks(1)[0], lambda found: [0] * len(found))


def test_the_same_records_make_the_same_bytes(tmp_path: Path) -> None:
    exchange = Exchange(Folder(str(tmp_path)), 99)
    records = records_of(1, 50)
    buckets = np.array([bucket_of(exchange, record.id) for record in records])
    first = exchange.write(0, records, buckets)
    assert exchange.write(0, records[::-1], buckets[::-1]) == first


@pytest.mark.parametrize(("sources", "number"), [(1100, 2), (10**6, 3), (6 * 10**7, 4), (6 * 10**7, 1)])
def test_units_of_a_pass_have_names_that_fit_and_say_what_is_done(sources: int, number: int) -> None:
    exchange = Exchange(Folder("memory://exchange/names"), sources)
    units = exchange.tasks(number)
    prefixes = 1 << sum(exchange._widths[: number - 1])
    assert units.shape == (exchange._files(number) * prefixes, 1, 1)
    ranks = np.unique([0, 1, prefixes - 1, len(units) // 3, len(units) - 2, len(units) - 1])
    done = ChunkNames.at(units, ranks)
    assert done == {units[int(rank)].name for rank in ranks}
    assert np.array_equal(ChunkNames(list(done)).ranks(units), ranks)


def test_every_unit_of_a_pass_writes_its_own_file(tmp_path: Path) -> None:
    exchange = Exchange(Folder(str(tmp_path)), 1100)
    for source in range(1100):
        exchange.write(source, [], [])
    for number in (1, 2):
        written = [
            exchange.run_pass(number, unit, lambda found: [0] * len(found)).url for unit in exchange.tasks(number)
        ]
        names = [
            exchange._name(number, file, prefix) for file in range(69 if number == 1 else 2) for prefix in range(64)
        ]
        assert written == [f"{tmp_path}/{name}" for name in names if number == 2 or "/0/" in name]
