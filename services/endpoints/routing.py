"""Which replica of the pool answers: one that holds the model, unless another one would answer sooner."""

from __future__ import annotations

import math
import random
import time
from typing import Any

from ray.serve.request_router import (
    FIFOMixin,
    MultiplexMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

LOADING_S = 60.0
"""How long a replica that was sent a request counts as a holder of its model, whether it has said so or not."""
ASK_AGAIN_S = 1.0
"""A replica that did not say how many requests it holds delays a request this often, by 0.1 s, until Serve drops it."""


class Spread(FIFOMixin, MultiplexMixin, RequestRouter):
    """Sends a request to the least busy replica that holds its model, or to one that is less busy by `busy` requests.

    Serve's own router keeps a model on the replicas that have loaded it once, however long their queues: after one
    request in a quiet moment all further ones go to one replica. Here another replica loads it too, as soon as each
    holder has `busy` requests more than it: affinity with bounded loads (Mirrokni et al., arXiv:1608.01350).
    """

    def initialize_state(self, **options: int) -> None:
        """Called by Serve; `busy`: requests that occupy a replica, and by how many more a queue is too long."""
        self._busy = options["busy"]
        self._sent: dict[tuple[str, ReplicaID], float] = {}
        self._asked: dict[ReplicaID, float] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas to choose from, by how many requests they hold; Serve takes the least busy of the first list."""
        model = pending_request.metadata.multiplexed_model_id if pending_request else ""
        if pending_request:
            pending_request.routing_context.should_backoff = True
        replicas = random.sample(candidate_replicas, len(candidate_replicas))  # among equals, any
        await self._ask(replicas)
        told, emptiest, others = self.rank_replicas_via_multiplex(replicas, model)
        loading = [replica for replica in (*emptiest, *others) if self._loads(model, replica)]
        preferred = [*told, *loading] or emptiest or others
        rest = [replica for replica in (*emptiest, *others) if replica not in preferred]
        limit = min(map(self._open, preferred)) - self._busy
        idle = [replica for replica in rest if self._open(replica) <= limit and self._open(replica) < math.inf]
        return [idle, preferred] if idle else [preferred, rest]

    async def _ask(self, replicas: list[RunningReplica]) -> None:
        """Ask those of which nothing is known how many requests they hold; what was known is forgotten after 10 s."""
        now = time.monotonic()
        self._asked = {key: moment for key, moment in self._asked.items() if now - moment < ASK_AGAIN_S}
        unknown = [each for each in replicas if self._open(each) == math.inf and each.replica_id not in self._asked]
        if unknown:
            self._asked |= dict.fromkeys([each.replica_id for each in unknown], now)
            await self._probe_queue_lens(unknown, 0)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Called by Serve when a replica has taken a request."""
        now = time.monotonic()
        self._sent = {key: moment for key, moment in self._sent.items() if now - moment < LOADING_S}
        self._sent[pending_request.metadata.multiplexed_model_id, replica_id] = now

    def _loads(self, model: str, replica: RunningReplica) -> bool:
        return time.monotonic() - self._sent.get((model, replica.replica_id), -math.inf) < LOADING_S

    def _open(self, replica: RunningReplica) -> float:
        """Requests that the replica has not answered yet; infinity where it does not say."""
        known = self.replica_queue_len_cache.get(replica.replica_id)
        return math.inf if known is None else known
