"""One pass of an exchange: the records of 64 files, cut anew by the next bits of their bucket."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infra.chunk_map import ChunkFunction, Report
from infra.exchange import Exchange, Record
from infra.ledger import Ledger
from infra.shards import Sharding
from models.geometry import Chunk


def regroup(exchange: Exchange, sharding: Sharding, ledger: Ledger, number: int) -> ChunkFunction:
    """The stage's function for pass `number`; a bucket is a shard."""

    def shards(records: Sequence[Record]) -> Sequence[int]:
        numbers: list[int] = sharding.shards(np.array([record.id for record in records], np.uint64)).tolist()
        return numbers

    def apply(chunk: Chunk) -> Report:
        ledger.mark(chunk, [exchange.run_pass(number, chunk, shards)])
        return {}

    return apply
