"""Keeps each session on the page replica where it began.

A Gradio session lives in one process: its queue, its `gr.State`, its files. The replica puts its
name into a cookie, and the router in Serve's HTTP proxy reads it.
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

from ..base import SESSION_LOST, rendezvous_hash
from .hosts import SESSION_PATH

QUEUE_LENGTH_MARGIN = 3
"""How many more requests than the least busy replica another one may have and still be chosen."""

DRAINING_SECONDS = 10.0
"""How long a replica that shuts down still gets the follow-up requests of calls that it began."""

MAX_REMEMBERED_SESSIONS = 10_000
"""How many sessions a router remembers, each with the replica that began its last call."""

COOKIE = re.compile(r"[A-Za-z0-9_-]{1,64}\.[0-9a-f]{1,16}", re.ASCII)
"""The names of the replica and the session. Anything else is not our cookie, and is ignored."""

IN_PATH = re.compile(rf"/~({COOKIE.pattern})(?=/|$)", re.ASCII)
"""The session in the path, which replaces the cookie when another site calls the page.

Across sites, browsers send cookies only if the script asks for it, and <gradio-app> does not.
"""

SESSIONLESS_PATH = re.compile("/v1/(chat/completions|models(/[^/]*)?)")
"""Paths that any replica can answer: the OpenAI API."""

FOLLOW_UP_PATH = re.compile(
    "/gradio_api/(queue/data|cancel|reset|file=|stream/|call/(v2/[^/]+|(?!v2/)[^/]+)/.)"
)
"""Paths of requests that follow up on the session's last call."""


def application_name() -> str:
    """Returns the name of this replica's application in Serve."""
    try:
        name: str = serve.get_replica_context().app_name
    except RayServeException:
        # There are no replicas in the preview and in Serve's local testing mode.
        return "page"
    return name


class SessionRouter(RequestRouter):
    """Sends a request to the replica that its cookie names, as long as that replica is there.

    If the replica is gone, all requests of the session go to one other replica, because a client
    may keep sending the old cookie. A request without a cookie goes to the replica with the fewest
    ongoing requests. Replicas with about as few take turns.

    A Gradio call takes two requests: one puts it into the queue, the other reads its answer. If the
    replica starts to shut down between the two, it still answers the second one, because Serve
    waits for it.
    """

    def initialize_state(self) -> None:
        self._turns = count(1)
        self._last_turn: dict[ReplicaID, int] = {}
        self._began: dict[str, RunningReplica] = {}
        self._leaving: dict[ReplicaID, float] = {}

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Keeps replicas that shut down in the list for a few seconds."""
        now = time.monotonic()
        left = self.curr_replicas.keys() - {replica.replica_id for replica in replicas}
        until = {name: self._leaving.get(name, now + DRAINING_SECONDS) for name in left}
        self._leaving = {name: end for name, end in until.items() if end > now}
        super().update_replicas([*replicas, *(self.curr_replicas[name] for name in self._leaving)])

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            # Without a backoff, Serve retries in a busy loop when there is no replica to choose,
            # and its proxy does nothing else.
            pending_request.routing_context.should_backoff = True
        request = _http_request(pending_request)
        cookie = None if request is None else session_cookie(request, self.app_name)
        staying = [
            replica for replica in candidate_replicas if replica.replica_id not in self._leaving
        ]
        if request is None or cookie is None or _needs_no_session(request):
            return [[self._next(staying)]] if staying else []
        if FOLLOW_UP_PATH.search(request.scope["path"]):
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
            (replica for replica in replicas if in_hand[replica] <= fewest + QUEUE_LENGTH_MARGIN),
            key=lambda replica: self._last_turn.get(replica.replica_id, 0),
        )
        self._last_turn[replica.replica_id] = next(self._turns)
        return replica

    def _remember(self, cookie: str, replica: RunningReplica) -> None:
        self._began.pop(cookie, None)
        self._began[cookie] = replica
        if len(self._began) > MAX_REMEMBERED_SESSIONS:
            del self._began[next(iter(self._began))]


def _http_request(request: PendingRequest | None) -> HTTPConnection | None:
    if request is None or not request.metadata.is_http_request:
        return None
    # Serve's proxy pickles the request, without its body, to send it to the replica.
    scope: Scope = pickle.loads(request.args[0]).asgi_scope  # noqa: S301
    return HTTPConnection(scope)


def _needs_no_session(request: HTTPConnection) -> bool:
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    return SESSIONLESS_PATH.fullmatch(path) is not None


def _named(cookie: str, replicas: list[RunningReplica]) -> RunningReplica | None:
    name = replica_of(cookie)
    return next((replica for replica in replicas if replica.replica_id.unique_id == name), None)


def _hashed(cookie: str, replicas: list[RunningReplica]) -> RunningReplica:
    named = {replica.replica_id.unique_id: replica for replica in replicas}
    return named[rendezvous_hash(cookie, named)]


def cookie_name(application: str) -> str:
    """Returns the name of the application's cookie. Each application on a host needs its own."""
    return f"replica-{re.sub('[^A-Za-z0-9]', '-', application)}"


def session_cookie(request: HTTPConnection, application: str) -> str | None:
    if found := IN_PATH.search(request.scope["path"]):
        return found[1]
    cookie = request.cookies.get(cookie_name(application), "")
    return cookie if COOKIE.fullmatch(cookie) else None


def replica_of(cookie: str) -> str:
    """Returns the replica's name. A dot separates it from the session's name."""
    return cookie.partition(".")[0]


def _is_encrypted(request: HTTPConnection) -> bool:
    """Returns whether the browser loaded the page over HTTPS, even if a proxy forwards HTTP."""
    forwarded = request.headers.get("x-forwarded-proto", "").startswith("https")
    return request.url.scheme == "https" or forwarded or "sec-fetch-site" in request.headers


class Replica(Protocol):
    @property
    def app_name(self) -> str: ...

    @property
    def replica_tag(self) -> str: ...


class SessionCookieMiddleware:
    """ASGI middleware that puts the name of the page replica into a cookie.

    If the cookie names another replica, that replica is gone, because the router would have chosen
    it otherwise. The cookie is then replaced, and the request gets the header `SESSION_LOST`.

    Args:
        embedded: whether other sites show the page, over HTTPS.
        path: the page's path for visitors, if it differs from the application's.
        origins: sites that call the page. For them, the session's name is in the page's paths.
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
