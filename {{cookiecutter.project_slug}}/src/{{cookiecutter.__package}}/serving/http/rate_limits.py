"""Rate limits for each caller: a user, else an API key, else an address.

A window begins with its first request. The counters are in Redis, shared by all replicas, or in the
memory of each replica, which then allows its share of a limit. Callers are stored as digests.
"""

import asyncio
import math
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, Literal, NamedTuple, TypeVar

import gradio as gr
from gradio.route_utils import API_PREFIX
from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.metrics import Counter
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..base import ALLOWANCE, Allowance, StartError, behind_haproxy
from ..telemetry.calls import function_of, is_automatic
from ..telemetry.logs import logger
from .login import BY_KEY, FORWARDED_VARIABLE, USER, user_of
from .sessions import application_name
from .settings import HttpSettings, RateLimits

REDIS_SECONDS = 3.0
"""How long a request waits for Redis."""
REDIS_RETRY_SECONDS = 10.0
"""How long to wait before asking Redis again if it did not answer."""
MAX_COUNTERS = 20_000
"""How many counters one replica keeps. With more, the search for expired ones takes too long."""
REDIS_SCHEMES = ("redis://", "rediss://")
NETWORK_BITS = 64
"""The prefix of an IPv6 address that is counted, because one client usually owns all of it."""
MAX_PROXIES = 50
"""How many proxies to follow in a header, which could list 100,000."""
DIRECT_CALLS = re.compile(rf"{API_PREFIX}/(run|api)/")
"""Gradio's paths for calls that bypass its queue."""
UNKNOWN_PROXY = (
    "This page limits requests by address, but the request came through an unknown proxy. If you run "
    "this page, add the proxy's address to `proxies` in the settings."
)
WHOSE = {"user": "Your limit is", "key": "The limit for your key is"}

T = TypeVar("T")


class Caller(NamedTuple):
    kind: Literal["user", "key", "address"]
    name: str

    @property
    def digest(self) -> str:
        """Returns a name for Redis, without characters that a caller chose."""
        text = f"{self.kind}\0{self.name}"
        return sha256(text.encode(errors="backslashreplace")).hexdigest()[:32]


@dataclass(frozen=True)
class Limit:
    unit: Literal["tokens", "requests"]
    window: Literal["minute", "day"]
    amount: int

    def item(self, parts: int) -> RateLimitItem:
        kind = RateLimitItemPerMinute if self.window == "minute" else RateLimitItemPerDay
        return kind(max(1, self.amount // parts), namespace=self.unit)


@dataclass(frozen=True)
class Refusal:
    limit: Limit
    amount: int
    seconds: int

    def error_for(self, caller: Caller) -> HTTPException:
        whose = WHOSE.get(caller.kind, "The limit for your address is")
        unit = self.limit.unit if self.amount > 1 else self.limit.unit[:-1]
        said = f"{whose} {self.amount:,} {unit} a {self.limit.window}."
        said += f" Try again in {_in_words(self.seconds)}."
        return HTTPException(429, said, {"retry-after": str(self.seconds)})


@dataclass(frozen=True)
class Store:
    """A place where requests are counted."""

    counts: FixedWindowRateLimiter
    parts: Callable[[], int]
    """The number by which each limit is divided."""


class Limiter:
    """Counts requests of callers, and refuses those over a limit.

    While Redis does not answer, each replica counts on its own.
    """

    def __init__(self, settings: RateLimits) -> None:
        self._limits = [*_each_limit(settings)]
        self._memory = MemoryStorage()
        self._local = Store(FixedWindowRateLimiter(self._memory), _replicas)
        self._shared: Store | None = None
        if settings.redis_url_variable is not None:
            url = _url_in(settings.redis_url_variable)
            storage = _storage(f"async+{url}", implementation="redispy", wrap_exceptions=True)
            self._shared = Store(FixedWindowRateLimiter(storage), lambda: 1)
        self._away_until = 0.0
        self._spending = set[asyncio.Task[None]]()
        self._refused = Counter(
            "rate_limit_refusals", "Requests over a limit.", ("limit", "caller")
        )
        self._lost = Counter("rate_limit_redis_failures", "How often Redis did not answer.")

    async def take(self, caller: Caller) -> None:
        """Counts a request.

        Raises:
            HTTPException: it is over a limit. The message says which one, and when to try again.
        """
        if refusal := await self._ask(partial(self._taken, caller)):
            limit = f"{refusal.limit.unit}_per_{refusal.limit.window}"
            self._refused.inc(tags={"limit": limit, "caller": caller.kind})
            raise refusal.error_for(caller)

    def spend(self, caller: Caller, tokens: int) -> None:
        """Counts tokens in the background."""
        if tokens and any(limit.unit == "tokens" for limit in self._limits):
            task = asyncio.create_task(self._ask(partial(self._spent, caller, tokens)))
            self._spending.add(task)
            task.add_done_callback(self._spending.discard)

    async def _taken(self, caller: Caller, store: Store) -> Refusal | None:
        for limit in self._limits:
            item = limit.item(store.parts())
            name = self._name(caller, item, store)
            # The number of tokens is not known yet, so this only checks.
            ask = store.counts.test if limit.unit == "tokens" else store.counts.hit
            if not await ask(item, name):
                reset, _ = await store.counts.get_window_stats(item, name)
                return Refusal(limit, item.amount, max(1, math.ceil(reset - time.time())))
        return None

    async def _spent(self, caller: Caller, tokens: int, store: Store) -> None:
        for limit in self._limits:
            if limit.unit == "tokens":
                item = limit.item(store.parts())
                await store.counts.hit(item, self._name(caller, item, store), cost=tokens)

    def _name(self, caller: Caller, item: RateLimitItem, store: Store) -> str:
        """Returns a counter's name. When memory is full, new callers share one counter."""
        name = f"{application_name()}/{caller.digest}"
        if store is not self._local or len(self._memory.storage) < MAX_COUNTERS:
            return name
        return name if item.key_for(name) in self._memory.storage else "others"

    async def _ask(self, question: Callable[[Store], Awaitable[T]]) -> T:
        if self._shared is not None and time.monotonic() >= self._away_until:
            try:
                # Its client would retry for some seconds.
                async with asyncio.timeout(REDIS_SECONDS):
                    return await question(self._shared)
            except (StorageError, OSError, TimeoutError) as error:
                self._away_until = time.monotonic() + REDIS_RETRY_SECONDS
                self._lost.inc()
                # Without the error's text, which may contain the address of Redis.
                reason = type(error.__cause__ or error).__name__
                logger.warning(
                    "Redis did not answer (%s). This replica counts on its own for %d seconds, and "
                    "then tries Redis again.",
                    reason,
                    REDIS_RETRY_SECONDS,
                )
        return await question(self._local)


@cache
def limiter_of(settings: RateLimits) -> Limiter:
    """Returns the limiter that the page and the OpenAI API share."""
    return Limiter(settings)


def _each_limit(settings: RateLimits) -> Iterator[Limit]:
    """Yields the limits of tokens, which only check, before those of requests, which count."""
    for name, (unit, window) in {
        "tokens_per_day": ("tokens", "day"),
        "tokens_per_minute": ("tokens", "minute"),
        "requests_per_minute": ("requests", "minute"),
        "requests_per_day": ("requests", "day"),
    }.items():
        amount = getattr(settings, name, None)
        if amount is not None:
            yield Limit(unit, window, amount)  # type: ignore[arg-type]


def _url_in(variable: str) -> str:
    url = os.environ.get(variable, "")
    if not url.startswith(REDIS_SCHEMES):
        state = "is not a Redis address" if url else "is not set"
        raise StartError(
            f"rate_limits need Redis, but {variable} {state}. Set it to redis://HOST:PORT/0, or to "
            "rediss://HOST:PORT/0 for TLS, in the environment that starts Ray, on each node."
        )
    return url


def _storage(url: str, **options: Any) -> Any:
    try:
        return storage_from_string(url, **options)
    except (ConfigurationError, ValueError):
        # The error repeats the address, which holds a password.
        raise StartError(
            "the address of Redis is not valid. Write it as redis://USER:PASSWORD@HOST:PORT/0, and "
            "percent-encode special characters."
        ) from None


def check_rate_limits(settings: HttpSettings) -> None:
    """Checks that limits can be counted, and that Redis answers.

    Raises:
        StartError: limits cannot be counted, or Redis does not answer.
    """
    check_addresses(settings)
    rates = settings.rate_limits
    if rates is None or rates.redis_url_variable is None:
        return
    options = {"socket_timeout": REDIS_SECONDS, "socket_connect_timeout": REDIS_SECONDS}
    if not _storage(_url_in(rates.redis_url_variable), **options).check():
        raise StartError(
            f"rate_limits need Redis, but it does not answer at the address in "
            f"{rates.redis_url_variable}. Start it, or correct the address or the password."
        )


def check_addresses(settings: HttpSettings) -> None:
    """Checks that callers cannot forge the address that the page sees."""
    if settings.knows_users or not settings.proxies or behind_haproxy():
        return
    if os.environ.get(FORWARDED_VARIABLE) != "":
        raise StartError(
            f"with rate_limits by address and proxies, {FORWARDED_VARIABLE} must be set to an "
            "empty value. Otherwise, visitors who come through a proxy on this machine can forge "
            "their address. Set it in the environment that starts Ray, on each node: export "
            f"{FORWARDED_VARIABLE}="
        )


def _replicas() -> int:
    """Returns how many replicas this deployment has, or may scale to."""
    try:
        context = serve.get_replica_context()
    except RayServeException:
        return 1
    scaling = context._deployment_config.autoscaling_config
    return max(1, int(scaling.max_replicas if scaling else context.world_size))


def _in_words(seconds: int) -> str:
    for unit, length in (("hour", 3600), ("minute", 60)):
        if seconds > 2 * length:
            return f"{math.ceil(seconds / length)} {unit}s"
    return f"{seconds} seconds" if seconds > 1 else "1 second"


@dataclass(frozen=True)
class CallerAllowance:
    """The rate limits that apply to the caller of a request."""

    limiter: Limiter
    settings: HttpSettings

    async def take(self, scope: Scope, user: str | None = None) -> None:
        await self.limiter.take(self._caller(scope, user))

    def spend(self, scope: Scope, tokens: int, user: str | None = None) -> None:
        # A caller who could not be identified was refused before.
        with suppress(HTTPException):
            self.limiter.spend(self._caller(scope, user), tokens)

    def _caller(self, scope: Scope, user: str | None) -> Caller:
        if scope.get(BY_KEY):
            return Caller("key", scope[USER])
        # With `login_user`, everybody has the same name, so it does not identify a user.
        if self.settings.login_user is None and (name := scope.get(USER) or user):
            return Caller("user", name)
        return Caller("address", address_of(scope, self.settings))


def address_of(scope: Scope, settings: HttpSettings) -> str:
    """Returns the address that sent a request to the first listed proxy, or directly to the page.

    Raises:
        HTTPException: the request came through a proxy that is not in the settings.
    """
    headers = Headers(scope=scope)
    lines = headers.getlist("x-forwarded-for")
    hops = [each.strip() for line in lines for each in line.split(",")]
    # Serve's HAProxy wrote the last one.
    foreign = hops[:-1] if behind_haproxy() else hops
    if not settings.proxies and (foreign or "forwarded" in headers):
        logger.warning("A request was refused: %s", UNKNOWN_PROXY)
        raise HTTPException(403, UNKNOWN_PROXY)
    sender, _ = scope.get("client") or ("", 0)
    seen = str(sender)
    # The first hop that is not a proxy is the caller. Everything left of it may be forged.
    for hop in (seen, *reversed(hops[-MAX_PROXIES:])):
        address = _address(hop)
        if address is None:
            break
        if not any(address in network for network in settings.proxies):
            return _network(address)
        seen = _network(address)
    return seen


def _address(text: str) -> IPv4Address | IPv6Address | None:
    # Some proxies add the port.
    found = re.fullmatch(r"\[([^\]]+)\](?::\d+)?|([\d.]+):\d+", text)
    try:
        address = ip_address((found[1] or found[2]) if found else text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def _network(address: IPv4Address | IPv6Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return str(IPv6Network((int(address), NETWORK_BITS), strict=False))


class RateLimitMiddleware:
    """Adds the limits to each request. They are checked where an answer begins."""

    def __init__(self, app: ASGIApp, allowance: Allowance) -> None:
        self._app = app
        self._allowance = allowance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, ALLOWANCE: self._allowance}, receive, send)


def rate_limit_middleware(settings: HttpSettings, rates: RateLimits) -> Middleware:
    """Returns the middleware that adds the limits to each request.

    Raises:
        StartError: the address of Redis is not set, or callers could forge their address.
    """
    check_addresses(settings)
    return Middleware(RateLimitMiddleware, allowance=CallerAllowance(limiter_of(rates), settings))


def limit_calls(page: gr.Blocks, settings: HttpSettings) -> None:
    """Makes the page's queue check the rate limits before it takes a call."""
    queue = page._queue
    push = queue.push

    async def push_within_limits(body: Any, request: Any, username: str | None) -> Any:
        function = function_of(page, body)
        allowance = request.scope.get(ALLOWANCE)
        if (
            function is not None
            and allowance is not None
            and not is_automatic(function)
            and settings.counts(function.concurrency_id, function.api_visibility)
        ):
            await allowance.take(request.scope, username)
        return await push(body, request, username)

    queue.push = push_within_limits


class DirectCallMiddleware:
    """Checks the rate limits before Gradio takes a call that bypasses its queue."""

    def __init__(self, answer: ASGIApp, app: Any) -> None:
        self._answer = answer
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_call = scope["type"] == "http" and scope["method"] == "POST"
        allowance = scope.get(ALLOWANCE)
        if is_call and allowance is not None and DIRECT_CALLS.search(scope["path"]):
            user = await user_of(self._app, Request(scope))
            try:
                await allowance.take(scope, user)
            except HTTPException as refused:
                body = {"detail": refused.detail}
                refusal = JSONResponse(body, refused.status_code, dict(refused.headers or {}))
                await refusal(scope, receive, send)
                return
        await self._answer(scope, receive, send)
