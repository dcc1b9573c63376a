"""Keeps each session with the page replica that began it.

A session of Gradio lives in one process: its queue, its `gr.State`, its files. The replica
names itself in a cookie, which the router in Serve's HTTP proxy reads.
"""

import pickle
import re
import time
from collections.abc import Callable
from itertools import count
from secrets import token_hex
from typing import Protocol

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.request_router import (
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..base import SESSION_LOST, chosen_by_hash
from .hosts import SESSION_PATH

ABOUT_AS_FEW = 3
"""Requests by which two replicas may differ from one moment to the next."""

LEAVING_SECONDS = 10.0
"""How long a replica that leaves is asked for what it has begun."""

REMEMBERED = 10_000
"""Sessions of which a router knows who has begun their last call."""

COOKIE = re.compile(r"[A-Za-z0-9_-]{1,64}\.[0-9a-f]{1,16}", re.ASCII)
"""The replica's name and the session's. What looks otherwise is none of ours, and not kept."""

IN_PATH = re.compile(rf"/~({COOKIE.pattern})(?=/|$)", re.ASCII)
"""What stands in for the cookie in the addresses of a page that another site calls.

There, browsers send a cookie only when they are told to, which <gradio-app> does not.
"""

WITHOUT_SESSION = re.compile("/v1/(chat/completions|models(/[^/]*)?)")
"""What any replica answers: OpenAI's protocol."""

FOLLOWS_A_CALL = re.compile(
    "/gradio_api/(queue/data|cancel|reset|file=|stream/|call/(v2/[^/]+|(?!v2/)[^/]+)/.)"
)
"""Paths that ask for what the session's last call has begun."""


def application_name() -> str:
    """Returns what Serve calls the application of this replica."""
    try:
        name: str = serve.get_replica_context().app_name
    except RayServeException:
        # The preview and Serve's local testing mode have no replicas.
        return "page"
    return name


class SessionRouter(RequestRouter):
    """Sends a request to the replica that its cookie names, while that one is there.

    A session whose replica is gone gets another, the same for all of its requests: a client may
    go on sending the old cookie. A request without a cookie goes to the replica with the
    fewest requests in hand, and those with about as few take turns.

    A call of Gradio takes two requests: one puts it into the queue, the other reads its answer.
    A replica that leaves between them still answers: Serve waits for the second one.
    """

    def initialize_state(self) -> None:
        self._turns = count(1)
        self._last_turn: dict[ReplicaID, int] = {}
        self._began: dict[str, RunningReplica] = {}
        self._leaving: dict[ReplicaID, float] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Takes the replicas that stay, and keeps those that leave for a moment."""
        now = time.monotonic()
        left = self.curr_replicas.keys() - {replica.replica_id for replica in replicas}
        until = {name: self._leaving.get(name, now + LEAVING_SECONDS) for name in left}
        self._leaving = {name: end for name, end in until.items() if end > now}
        super().update_replicas([*replicas, *(self.curr_replicas[name] for name in self._leaving)])

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            # Else Serve asks again without a pause, where nothing is left to choose: its proxy
            # would do nothing else from then on.
            pending_request.routing_context.should_backoff = True
        request = _http_request(pending_request)
        cookie = None if request is None else session_cookie(request, self.app_name)
        staying = [
            replica for replica in candidate_replicas if replica.replica_id not in self._leaving
        ]
        if request is None or cookie is None or _needs_no_session(request):
            return [[self._next(staying)]] if staying else []
        if FOLLOWS_A_CALL.search(request.scope["path"]):
            began = self._began.get(cookie)
            replica = began if began in candidate_replicas else _named(cookie, candidate_replicas)
            if replica is not None:
                return [[replica]]
        if not staying:
            return []
        replica = _named(cookie, staying) or _hashed(cookie, staying)
        self._remember(cookie, replica)
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

    def _remember(self, cookie: str, replica: RunningReplica) -> None:
        self._began.pop(cookie, None)
        self._began[cookie] = replica
        if len(self._began) > REMEMBERED:
            del self._began[next(iter(self._began))]


def _http_request(request: PendingRequest | None) -> HTTPConnection | None:
    if request is None or not request.metadata.is_http_request:
        return None
    # Serve's proxy pickles the request for the replica, without its body.
    scope: Scope = pickle.loads(request.args[0]).asgi_scope  # noqa: S301
    return HTTPConnection(scope)


def _needs_no_session(request: HTTPConnection) -> bool:
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return WITHOUT_SESSION.fullmatch(path) is not None


def _named(cookie: str, replicas: list[RunningReplica]) -> RunningReplica | None:
    name = replica_of(cookie)
    return next((replica for replica in replicas if replica.replica_id.unique_id == name), None)


def _hashed(cookie: str, replicas: list[RunningReplica]) -> RunningReplica:
    named = {replica.replica_id.unique_id: replica for replica in replicas}
    return named[chosen_by_hash(cookie, named)]


def cookie_name(application: str) -> str:
    """Applications on one host need a cookie each."""
    return f"replica-{re.sub('[^A-Za-z0-9]', '-', application)}"


def session_cookie(request: HTTPConnection, application: str) -> str | None:
    if found := IN_PATH.search(request.scope["path"]):
        return found[1]
    cookie = request.cookies.get(cookie_name(application), "")
    return cookie if COOKIE.fullmatch(cookie) else None


def replica_of(cookie: str) -> str:
    """A cookie has the name of the replica and one of the session, with a dot between."""
    return cookie.partition(".")[0]


def _is_encrypted(request: HTTPConnection) -> bool:
    """Says whether a browser takes the page for one over HTTPS, whatever proxies forward."""
    forwarded = request.headers.get("x-forwarded-proto", "").startswith("https")
    return request.url.scheme == "https" or forwarded or "sec-fetch-site" in request.headers


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
        embedded: the page is shown by other sites, over HTTPS.
        path: where visitors find the page, if that is not where the application is.
        origins: sites that call the page. They find the session's name in its addresses.
    """

    def __init__(
        self,
        app: ASGIApp,
        embedded: bool,
        path: str | None = None,
        origins: tuple[str, ...] = (),
        context: Callable[[], Replica] = serve.get_replica_context,
    ) -> None:
        self._app = app
        self._path = path
        self._origins = origins
        self._context = context
        self._embedded = embedded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        replica = self._context()
        name = cookie_name(replica.app_name)
        request = HTTPConnection(scope)
        cookie = session_cookie(request, replica.app_name)
        root = scope.get("root_path", "")
        path = (root if self._path is None else self._path) or "/"
        value = f"{replica.replica_tag}.{token_hex(8)}"
        inner = scope["path"].removeprefix(root)
        if found := IN_PATH.match(inner):
            scope = {**scope, "root_path": root + found[0], SESSION_PATH: found[0]}
        elif cookie is None and request.headers.get("origin") in self._origins:
            own = f"/~{value}"
            scope = {**scope, "root_path": root + own, "path": root + own + inner}
            scope[SESSION_PATH] = own
        if cookie is not None and replica_of(cookie) == replica.replica_tag:
            await self._app(scope, receive, send)
            return

        elsewhere = self._embedded and _is_encrypted(request)
        sites = "SameSite=None; Secure; Partitioned" if elsewhere else "SameSite=Lax"

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append(
                    "set-cookie", f"{name}={value}; Path={path}; HttpOnly; {sites}"
                )
            await send(message)

        if cookie is not None:
            scope = {**scope, "headers": [*scope["headers"], (SESSION_LOST.encode(), b"1")]}
        await self._app(scope, receive, send_with_cookie)
