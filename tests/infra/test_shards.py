"""Sharded objects, with tensorstore as the reader that knows nothing of us."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts

from infra.objects import Folder
from infra.shards import Entry, ShardedObjects, Sharding
from models.errors import InvalidInput, InvalidVolume, NotFound

TOP = (1 << 64) - 1


def some_ids(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    spread = rng.integers(1, TOP, count - 5, dtype=np.uint64, endpoint=True)
    return np.unique(np.concatenate([spread, np.array([1, 2, 3, 1 << 32, TOP], np.uint64)]))


def content(segment: int) -> bytes:
    return random.Random(segment).randbytes(segment % 300)


def write_all(url: str, sharding: Sharding, ids: np.ndarray) -> ShardedObjects:
    objects = ShardedObjects(Folder(url), sharding)
    places = sharding.shards(ids)
    for shard in range(1 << sharding.shard_bits):
        objects.write(shard, [Entry(i, content(i)) for i in ids[places == shard].tolist()])
    return objects


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(("shard_bits", "minishard_bits"), [(0, 0), (0, 6), (3, 2), (5, 6)])
def test_tensorstore_reads_what_we_write(shard_bits: int, minishard_bits: int, compress: bool, tmp_path: Path) -> None:
    sharding, ids = Sharding(shard_bits, compress, minishard_bits), some_ids(400)
    objects = write_all(str(tmp_path), sharding, ids)
    assert len(list(tmp_path.iterdir())) == 1 << shard_bits
    spec = {
        "driver": "neuroglancer_uint64_sharded",
        "metadata": sharding.description(),
        "base": {"driver": "file", "path": f"{tmp_path}/"},
    }
    store = ts.KvStore.open(spec).result()
    for segment in ids.tolist():
        key = segment.to_bytes(8, "big")
        assert store.read(key).result().value == content(segment)
        assert objects.read(segment) == content(segment)
    assert sorted(objects.ids()) == ids.tolist()
    assert store.read((77).to_bytes(8, "big")).result().state == "missing"
    with pytest.raises(NotFound, match="/77"):
        objects.read(77)
    assert Sharding.of(sharding.description(), "here") == sharding


def test_what_is_stored_before_an_object_is_found_from_it() -> None:
    sharding = Sharding(0, compress=False, minishard_bits=1)
    entries = [Entry(i, f"manifest {i}".encode(), f"fragments of {i}".encode()) for i in (9, 4, 1000)]
    stored = sharding.encode(entries)
    for entry in entries:
        at = stored.index(entry.content)
        assert stored[at - len(entry.before) : at] == entry.before
    url = "memory://shards/before"
    objects = ShardedObjects(Folder(url), sharding)
    objects.write(0, entries)
    assert objects.read(1000) == b"manifest 1000"
    objects.folder.remove("")


def test_a_shard_that_loses_its_last_object_is_removed(tmp_path: Path) -> None:
    objects = ShardedObjects(Folder(str(tmp_path)), Sharding(0))
    objects.write(0, [Entry(5, b"five")])
    assert objects.write(0, []) == []
    assert list(tmp_path.iterdir()) == []


def test_bytes_depend_on_the_content_alone() -> None:
    entries = [Entry(i, content(i)) for i in range(1, 200)]
    shuffled = random.Random(1).sample(entries, len(entries))
    assert Sharding(0).encode(entries) == Sharding(0).encode(shuffled)


def test_mistakes_and_damage_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="got 60 and 6"):
        Sharding(60)
    with pytest.raises(InvalidVolume, match="here: expected sharding"):
        Sharding.of({**Sharding(3).description(), "hash": "identity"}, "here")
    sharding, ids = Sharding(1), some_ids(50)
    objects = write_all(str(tmp_path), sharding, ids)
    with pytest.raises(InvalidInput, match="ids of shard 0"):
        objects.write(0, [Entry(i, b"") for i in ids.tolist()])
    file = tmp_path / sharding.name(0)
    whole = file.read_bytes()
    mine = int(ids[sharding.shards(ids) == 0][0])
    for damaged in (whole[:8], whole[:1024] + bytes(len(whole) - 1024)):
        file.write_bytes(damaged)
        with pytest.raises(InvalidVolume, match=str(tmp_path)):
            objects.read(mine)
