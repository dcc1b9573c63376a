"""The guards that check every request before the page gets it. See `SECURITY.md`."""

import asyncio
import re
from traceback import walk_tb
from urllib.parse import urlsplit

import gradio as gr
from fastapi import FastAPI
from fastapi.exceptions import HTTPException
from gradio.components import Component
from gradio.route_utils import API_PREFIX, FnIndexInferError
from gradio_client.utils import value_is_file
from httpx import InvalidURL
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..telemetry.logs import logger, where
from . import files
from .hosts import HostAndOriginMiddleware, PublicUrlMiddleware, hosts_from_environment
from .launch import Launch
from .login import login_middleware, rate_limits, read_keys
from .settings import TOOLS_NEED_KEYS, HttpSettings, RequestLimits

RETRY_SECONDS = 5
QUEUE_IS_FULL = "Too many requests are waiting. Try again in a few seconds."
UPLOAD_CALL = re.compile(r"\bupload\b")
"""How the JavaScript of a gr.HTML uploads a file: the function's name, or the end of the path."""
BODY_SECONDS = 15.0
"""How long a request may pause while it sends its body."""
FILES_AT_ONCE = 10
"""How many files of the largest size fit into one upload. More of them fit if they are smaller."""
FILE_PATHS = re.compile(rf"{API_PREFIX}/(upload|component_server)/?$")
"""The only paths whose requests Gradio writes to a file, piece by piece."""
MULTIPART = "multipart/form-data"
SELF = "'self'"
UNBUFFERED = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
"""nginx would buffer a stream up to a few kilobytes, and other proxies would compress it."""
PARSING_PACKAGES = {
    *("anyio", "asyncio", "concurrent", "contextlib", "fastapi", "functools", "gradio", "json"),
    *("orjson", "pydantic", "python_multipart", "starlette", "tempfile", "threading"),
}
"""Packages whose code runs before a component's function, or is one of Gradio's components."""


def guard(
    web: Starlette,
    settings: HttpSettings,
    *,
    takes_files: bool = True,
    offers_tools: bool = False,
    asks_login: bool = True,
) -> None:
    """Puts the guards in front of the page. The last one added handles a request first.

    Args:
        takes_files: whether the page takes files.
        offers_tools: whether the page offers tools to MCP clients.
        asks_login: whether to ask for the login that the settings describe.

    Raises:
        LoginError: the settings need a login, but a password, a secret or a key for the tools is
            not set.
    """
    if settings.rate_limits is not None:
        limits = rate_limits().rate_limit_middleware(settings, settings.rate_limits)
        web.add_middleware(limits.cls, *limits.args, **limits.kwargs)
    if settings.asks_login and asks_login:
        login = login_middleware(settings, read_keys(TOOLS_NEED_KEYS) if offers_tools else None)
        web.add_middleware(login.cls, *login.args, **login.kwargs)
    web.add_middleware(BodyLimitMiddleware, limits=settings.limits, takes_files=takes_files)
    # Needed even if no origin is allowed, because Gradio would allow all of them.
    web.add_middleware(
        CORSMiddleware,
        allow_origins=settings.origins,
        allow_methods=["*"],
        allow_headers=["*"],
        allow_credentials=True,
    )
    web.add_middleware(PublicUrlMiddleware, public_url=settings.public_url)
    host = urlsplit(settings.public_url or "").netloc
    hosts = (*settings.hosts, host, *hosts_from_environment())
    web.add_middleware(HostAndOriginMiddleware, hosts=hosts, origins=settings.origins)
    policy = f"frame-ancestors {' '.join([SELF, *settings.embedded_in])}"
    if settings.content_policy:
        policy += f"; {settings.content_policy}"
    web.add_middleware(SecurityHeadersMiddleware, policy=policy)


def explain_refusals(web: FastAPI) -> None:
    """Makes the page that was mounted last explain its refusals. Other routes are not changed."""
    mounted = web.router.routes[-1]
    if not isinstance(mounted, Mount):
        raise TypeError(f"{mounted} is not a mounted application")
    mounted.app = QueueFullMiddleware(UnprocessableMiddleware(mounted.app))


def refuse_files(web: FastAPI, *, takes_files: bool) -> None:
    """Responds with 404 to recordings, and to uploads if nothing in the page takes a file.

    Otherwise, Gradio would keep everything that anybody sends until the process ends. If the server
    saves no screen recording, the browser saves its own.
    """
    refused = {f"{API_PREFIX}/process_recording": "This page does not accept recordings."}
    if not takes_files:
        refused[f"{API_PREFIX}/upload"] = "This page does not accept files."
    for path, detail in refused.items():
        web.router.routes.append(Route(path, JSONResponse({"detail": detail}, 404)))


def takes_files(page: gr.Blocks, launch: Launch) -> bool:
    """Returns whether a component or a script of the page takes files."""
    if any(UPLOAD_CALL.search(str(script)) for script in (launch.js, launch.head)):
        return True
    # gr.render may make such a component later.
    if any(function.renderable is not None for function in page.fns.values()):
        return True
    for block in page.blocks.values():
        if isinstance(block, gr.HTML) and UPLOAD_CALL.search(block.js_on_load or ""):
            return True
        is_input = isinstance(block, Component) and not block.skip_api
        if is_input and value_is_file(block.api_info()):
            return True
    return False


class BodyLimitMiddleware:
    """Refuses bodies over the limit with 413. If the length is unknown, it counts as they arrive.

    If a client stops in the middle of a body, it gets 408 after `BODY_SECONDS`. A slow client does
    not.
    """

    def __init__(self, app: ASGIApp, limits: RequestLimits, takes_files: bool) -> None:
        self._app = app
        self._limits = limits
        self._takes_files = takes_files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.request_bytes
        refusal = f"A request may have at most {limit:,} bytes. Send a smaller one."
        found = FILE_PATHS.search(scope["path"]) if self._takes_files else None
        if found and Headers(scope=scope).get("content-type", "").startswith(MULTIPART):
            files = FILES_AT_ONCE if found[1] == "upload" else 1
            limit += files * self._limits.file_bytes
            refusal = f"A file may have at most {self._limits.file_bytes:,} bytes, and one request "
            refusal += f"at most {limit:,}. Send smaller or fewer files."
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            await JSONResponse({"detail": refusal}, 413)(scope, receive, send)
            return
        received = 0
        complete = False

        async def receive_up_to_the_limit() -> Message:
            nonlocal received, complete
            while True:
                try:
                    async with asyncio.timeout(None if complete else BODY_SECONDS):
                        message = await receive()
                    break
                except TimeoutError:
                    # Another task, which waits for a disconnect, may have set `complete` meanwhile.
                    if not complete:
                        reason = "The rest of the request did not arrive. Send it again."
                        raise HTTPException(408, reason) from None
            received += len(message.get("body", b""))
            complete = complete or not message.get("more_body", False)
            if received > limit:
                raise HTTPException(413, refusal)
            return message

        await self._app(scope, receive_up_to_the_limit, send)


class QueueFullMiddleware:
    """Responds with 429 and a retry time when Gradio's queue is full."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = False

        async def send_or_refuse(message: Message) -> None:
            nonlocal refused
            # Gradio responds with 503 only if its queue is full.
            if message["type"] == "http.response.start" and message["status"] == 503:
                refused = True
                headers = {"retry-after": str(RETRY_SECONDS)}
                refusal = JSONResponse({"detail": QUEUE_IS_FULL}, 429, headers)
                await refusal(scope, receive, send)
            elif not refused:
                await send(message)

        await self._app(scope, receive, send_or_refuse)


class UnprocessableMiddleware:
    """Responds with 422 to an invalid request, on which Gradio would fail with 500.

    Gradio's routes look up names from a request without checking that they exist. If a function of
    the page fails, or its result cannot be shown, the status stays 500.
    """

    ERRORS = (
        *(AttributeError, LookupError, OSError, TypeError, ValueError),
        *(FnIndexInferError, InvalidURL),
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure: list[Message] = []
        faults: list[BaseException] = []
        files.unreadable.set(faults)

        async def send_or_hold(message: Message) -> None:
            if failure or (message["type"] == "http.response.start" and message["status"] == 500):
                failure.append(message)
            else:
                await send(message)

        try:
            await self._app(scope, receive, send_or_hold)
        except self.ERRORS as error:
            if not failure or _is_of_the_page(error):
                for message in failure:
                    await send(message)
                raise
            # Without the path and the error's text, which may repeat what was sent.
            logger.warning("A request is not valid: %s", where(error))
            detail = "The request is not valid. Check the name of the function, and the data."
            await JSONResponse({"detail": detail}, 422)(scope, receive, send)
        except Exception:
            for message in failure:
                await send(message)
            raise
        else:
            for message in failure:
                nonsense = faults and "status" in message
                await send({**message, "status": 422} if nonsense else message)


def _is_of_the_page(error: BaseException) -> bool:
    """Returns whether the error is from a function that a component's JavaScript calls."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    names = [frame.f_code.co_name for frame in frames]
    if "component_server" not in names:
        return False
    modules = {frame.f_globals["__name__"] for frame in frames[names.index("component_server") :]}
    return any(each.split(".")[0] not in PARSING_PACKAGES for each in modules - {files.__name__})


class SecurityHeadersMiddleware:
    """Adds headers: who may frame the page, what it may load, and that proxies must not buffer."""

    def __init__(self, app: ASGIApp, policy: str) -> None:
        self._app = app
        self._headers = {
            "content-security-policy": policy,
            # With `same-origin`, videos from other sites would not play in the page.
            "referrer-policy": "strict-origin-when-cross-origin",
            "x-content-type-options": "nosniff",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                added = self._headers
                if headers.get("content-type", "").startswith("text/event-stream"):
                    added = added | UNBUFFERED
                for name, value in added.items():
                    # A header that your own code set is kept.
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
