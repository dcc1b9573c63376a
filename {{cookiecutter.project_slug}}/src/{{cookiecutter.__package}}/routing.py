"""Keeps each session with the page replica that began it.

A session of Gradio lives in one process: its queue, its `gr.State`, its files. The replica
names itself in a cookie, which the router in Serve's HTTP proxy reads.
"""

import pickle
import re
from collections.abc import Callable
from hashlib import blake2b
from itertools import count
from secrets import token_hex
from typing import Protocol

from ray import serve
from ray.serve.request_router import (
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .settings import SESSION_LOST

ABOUT_AS_FEW = 3
"""Requests by which two replicas may differ from one moment to the next."""


class SessionRouter(RequestRouter):
    """Sends a request to the replica that its cookie names, while that one is there.

    A session whose replica is gone gets another, the same for all of its requests: a client may
    go on sending the old cookie. A request without a cookie goes to the replica with the
    fewest requests in hand, and those with about as few take turns.
    """

    def initialize_state(self) -> None:
        self._turns = count(1)
        self._last_turn: dict[ReplicaID, int] = {}

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        cookie = _cookie(pending_request, cookie_name(self.app_name))
        if cookie is None:
            replica = self._next(candidate_replicas)
        else:
            named = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
            replica = named.get(replica_of(cookie)) or max(
                candidate_replicas, key=lambda replica: _weight(cookie, replica)
            )
        return [[replica]]

    def _next(self, replicas: list[RunningReplica]) -> RunningReplica:
        in_hand = {
            replica: self.replica_queue_len_cache.get(replica.replica_id) or 0
            for replica in replicas
        }
        fewest = min(in_hand.values())
        replica = min(
            (replica for replica in replicas if in_hand[replica] <= fewest + ABOUT_AS_FEW),
            key=lambda replica: self._last_turn.get(replica.replica_id, 0),
        )
        self._last_turn[replica.replica_id] = next(self._turns)
        return replica


def _cookie(request: PendingRequest | None, name: str) -> str | None:
    if request is None or not request.metadata.is_http_request:
        return None
    # Serve's proxy pickles the request for the replica, without its body.
    scope: Scope = pickle.loads(request.args[0]).asgi_scope  # noqa: S301
    return HTTPConnection(scope).cookies.get(name)


def _weight(cookie: str, replica: RunningReplica) -> bytes:
    """Rendezvous hashing: every proxy finds the same replica, and few change with another."""
    return blake2b(f"{cookie} {replica.replica_id.unique_id}".encode()).digest()


def cookie_name(application: str) -> str:
    """Applications on one host need a cookie each."""
    return f"replica-{re.sub('[^A-Za-z0-9]', '-', application)}"


def replica_of(cookie: str) -> str:
    """A cookie has the name of the replica and one of the session, with a dot between."""
    return cookie.partition(".")[0]


class Replica(Protocol):
    @property
    def app_name(self) -> str: ...

    @property
    def replica_tag(self) -> str: ...


class SessionCookie:
    """ASGI middleware of a page replica, which names it in a cookie.

    A cookie that names another replica is replaced, and its request marked with `SESSION_LOST`:
    the router would have honoured it, so that replica is gone.

    Args:
        embedded: the page is shown in frames of other sites, over HTTPS.
    """

    def __init__(
        self,
        app: ASGIApp,
        embedded: bool,
        context: Callable[[], Replica] = serve.get_replica_context,
    ) -> None:
        self._app = app
        self._context = context
        self._scope = "SameSite=None; Secure; Partitioned" if embedded else "SameSite=Lax"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        replica = self._context()
        name = cookie_name(replica.app_name)
        cookie = HTTPConnection(scope).cookies.get(name)
        if cookie is not None and replica_of(cookie) == replica.replica_tag:
            await self._app(scope, receive, send)
            return
        path = scope.get("root_path") or "/"
        value = f"{replica.replica_tag}.{token_hex(8)}"

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append(
                    "set-cookie", f"{name}={value}; Path={path}; HttpOnly; {self._scope}"
                )
            await send(message)

        if cookie is not None:
            scope = {**scope, "headers": [*scope["headers"], (SESSION_LOST.encode(), b"1")]}
        await self._app(scope, receive, send_with_cookie)
