"""Routes the next turn of a conversation to the replica that computed the earlier turns.

Each replica of a model has its own cache of computed prompts.
"""

import random
from collections.abc import Sequence
from hashlib import blake2b

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from ..base import rendezvous_hash
from ..protocol import Message

MAX_IMBALANCE = 8
"""How many more requests than the least busy replica a replica may have and still be preferred.

This many requests in one batch each run at two thirds of the speed of a single one.
"""


class ConversationRouter(RequestRouter):
    """Hashes the beginning of a conversation to a replica, and prefers it unless it is crowded.

    Otherwise it chooses as Serve does: the less busy of two random replicas. When a replica
    is gone, its conversations move to the next one by hash, and all others stay.
    """

    queue_len_response_deadline_s = 0.5
    """A busy replica responds late. Recomputing a conversation takes longer than this."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        two = random.sample(candidate_replicas, min(2, len(candidate_replicas)))
        if pending_request is None:
            return [two]
        # Otherwise Serve retries without a pause for as long as no replica has room.
        pending_request.routing_context.should_backoff = True
        # Concurrent calls of one request share its id. Serve would find only the first of them
        # by that id, and the others would wait forever.
        shared = pending_request.metadata.internal_request_id
        self._pending_requests_by_id[shared] = pending_request
        began = beginning(pending_request)
        if began is None or not candidate_replicas:
            return [two]
        own = self._hashed(began, candidate_replicas)
        return [[own], two] if self._has_room(own, candidate_replicas) else [two]

    def _hashed(self, began: str, replicas: Sequence[RunningReplica]) -> RunningReplica:
        named = {replica.replica_id.unique_id: replica for replica in replicas}
        return named[rendezvous_hash(began, named)]

    def _has_room(self, own: RunningReplica, replicas: Sequence[RunningReplica]) -> bool:
        """Whether the replica is not crowded. Serve itself checks whether it is full."""
        return self._request_count(own) <= min(map(self._request_count, replicas)) + MAX_IMBALANCE

    def _request_count(self, replica: RunningReplica) -> int:
        """Returns how many requests the replica has, as far as this process knows."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0


def beginning(request: PendingRequest) -> str | None:
    """Returns a hash of what all turns of a conversation share: the text up to the first question.

    Returns None if there is no question.
    """
    messages = request.args[0] if request.args else request.kwargs.get("messages")
    said = []
    for message in messages if isinstance(messages, list | tuple) else ():
        if not isinstance(message, Message):
            return None
        said.append((message.role, message.content))
        if message.role == "user":
            return blake2b(repr(said).encode(), digest_size=16).hexdigest()
    return None
