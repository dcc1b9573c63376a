"""Serve's routers with fake replicas that report their load, without Ray."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

from ray.exceptions import ActorDiedError
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
    RequestProtocol,
)
from ray.serve.request_router import PendingRequest, RequestRouter

DEPLOYMENT = DeploymentID("model", "my app")


@dataclass(eq=False)
class KnownReplica:
    """A replica as a router sees it."""

    name: str
    in_hand: int = 0
    max_ongoing_requests: int = 32
    dead: bool = False
    hangs: bool = False
    asked: int = 0
    """How often a router has queried its load."""
    multiplexed_model_ids: frozenset[str] = frozenset()
    replica_id: ReplicaID = field(init=False)

    def __post_init__(self) -> None:
        self.replica_id = ReplicaID(self.name, DEPLOYMENT)

    async def get_queue_len(self, *, deadline_s: float) -> int:
        self.asked += 1
        if self.dead:
            raise ActorDiedError
        if self.hangs:
            await asyncio.sleep(2 * deadline_s)
        return self.in_hand


def router_of(kind: type[RequestRouter], replicas: Collection[KnownReplica]) -> RequestRouter:
    """Returns a router as Serve creates it, which starts to query the load of the replicas."""
    router = kind(DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router.initialize_state()
    router.update_replicas([*replicas])
    return router


async def route(router: RequestRouter, request: PendingRequest) -> KnownReplica:
    """Returns the replica that Serve chooses for the request, and adds the request to its load."""
    replica: KnownReplica = await asyncio.wait_for(router._choose_replica_for_request(request), 10)
    router.on_send_request(replica.replica_id)
    return replica


def request_of(
    *args: Any,
    within: str | None = None,
    protocol: RequestProtocol = RequestProtocol.UNDEFINED,
    **kwargs: Any,
) -> PendingRequest:
    """Returns a call of a deployment. Calls within one request share its id."""
    known = within or token_hex(8)
    metadata = RequestMetadata(known, known, call_method="stream", _request_protocol=protocol)
    return PendingRequest([*args], kwargs, metadata)
