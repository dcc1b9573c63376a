"""Brings a conversation's next turn to the replica that has computed the turns before it.

Each replica of a model keeps for itself what it has computed of a prompt.
"""

import random
from collections.abc import Sequence
from hashlib import blake2b

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from ..base import rendezvous_hash
from ..protocol import Message

CROWD = 8
"""Requests that a replica may have more than another before its conversations go elsewhere, too.

That many run in one batch at two thirds of the speed that each would have alone.
"""


class ConversationRouter(RequestRouter):
    """Prefers the replica to which the beginning of a conversation is hashed, while it has room.

    Else it chooses as Serve does: of two at random, the one with fewer requests. When a replica
    is gone, its conversations go to the next by their hash, all others stay.
    """

    queue_len_response_deadline_s = 0.5
    """A busy replica answers late. Computing a conversation anew takes longer than this."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        two = random.sample(candidate_replicas, min(2, len(candidate_replicas)))
        if pending_request is None:
            return [two]
        # Else Serve asks again without a pause, for as long as none has room.
        pending_request.routing_context.should_backoff = True
        # Calls that one request makes at once share its id. By that, Serve would find the first
        # of them alone, and the others would wait for ever.
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
        """Whether it is not crowded; Serve looks whether it is full."""
        return self._in_hand(own) <= min(map(self._in_hand, replicas)) + CROWD

    def _in_hand(self, replica: RunningReplica) -> int:
        """Requests that the replica has, as far as this process knows."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0


def beginning(request: PendingRequest) -> str | None:
    """Returns what a conversation's turns have in common: all up to the first question.

    None where nothing is asked.
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
