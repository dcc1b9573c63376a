"""What every request passes before it reaches the page. `SECURITY.md` says what it promises."""

import asyncio
import re

import gradio as gr
from fastapi import FastAPI
from fastapi.exceptions import HTTPException
from gradio.components import Component
from gradio.route_utils import API_PREFIX, FnIndexInferError
from gradio_client.utils import value_is_file
from httpx import InvalidURL
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..telemetry.logs import logger, where
from .hosts import OwnSite
from .login import Login, read_credentials
from .settings import HttpSettings

RETRY_SECONDS = 5
QUEUE_IS_FULL = "Too many requests are waiting. Try again in a few seconds."
BODY_SECONDS = 15.0
UPLOADS = re.compile(r"\bupload\b")
"""What the JavaScript of a gr.HTML calls to upload a file."""


def guard(web: FastAPI, settings: HttpSettings) -> None:
    """Puts the guards before the page; the last one added meets a request first.

    Raises:
        LoginError: a login is asked for, and the environment holds no password.
    """
    # With no origin allowed; Gradio itself would allow all of them.
    web.add_middleware(CORSMiddleware)
    web.add_middleware(BodyLimit, limit_bytes=settings.limits.request_bytes)
    if settings.login_user is not None:
        web.add_middleware(Login, credentials=read_credentials(settings.login_user))
    web.add_middleware(OwnSite, hosts=settings.hosts)
    web.add_middleware(SecurityHeaders, embedded_in=settings.embedded_in)


def explain_refusals(web: FastAPI) -> None:
    """Has the page that was mounted last say why it refuses; other routes answer as they do."""
    mounted = web.router.routes[-1]
    if not isinstance(mounted, Mount):
        raise TypeError(f"{mounted} is no mounted application")
    mounted.app = QueueLimit(Unprocessable(mounted.app))


def refuse_files(web: FastAPI, page: gr.Blocks) -> None:
    """Answers 404 to a recording, and to an upload where no component of the page takes one.

    Gradio would keep what anybody sends, as long as the process runs. Where it can save no
    recording of the screen, the browser saves the one that it has.
    """
    refused = {f"{API_PREFIX}/process_recording": "This page takes no recordings."}
    if not _takes_files(page):
        refused[f"{API_PREFIX}/upload"] = "This page takes no files."
    for path, detail in refused.items():
        web.router.routes.append(Route(path, JSONResponse({"detail": detail}, 404)))


def _takes_files(page: gr.Blocks) -> bool:
    # What gr.render makes is not there yet.
    if any(function.renderable is not None for function in page.fns.values()):
        return True
    for block in page.blocks.values():
        if isinstance(block, gr.HTML) and UPLOADS.search(block.js_on_load or ""):
            return True
        is_input = isinstance(block, Component) and not block.skip_api
        if is_input and value_is_file(block.api_info()):
            return True
    return False


class BodyLimit:
    """Refuses bodies over the limit with 413, those of unknown length while they arrive.

    Who leaves off in the middle of a body gets 408 after `BODY_SECONDS`.
    """

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self._app = app
        self._limit = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = f"A request may have {self._limit:,} bytes. Send less."
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._limit:
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
                    # Who waits for the client to leave is not the one who read the body.
                    if not complete:
                        reason = "The rest of the request did not come."
                        raise HTTPException(408, reason) from None
            received += len(message.get("body", b""))
            complete = complete or not message.get("more_body", False)
            if received > self._limit:
                raise HTTPException(413, refusal)
            return message

        await self._app(scope, receive_up_to_the_limit, send)


class QueueLimit:
    """Says with 429 that Gradio's queue is full, and when to come back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = False

        async def send_or_refuse(message: Message) -> None:
            nonlocal refused
            # Gradio answers 503 only where its queue takes no more.
            if message["type"] == "http.response.start" and message["status"] == 503:
                refused = True
                headers = {"retry-after": str(RETRY_SECONDS)}
                refusal = JSONResponse({"detail": QUEUE_IS_FULL}, 429, headers)
                await refusal(scope, receive, send)
            elif not refused:
                await send(message)

        await self._app(scope, receive, send_or_refuse)


class Unprocessable:
    """Says with 422 that a request makes no sense, where Gradio fails over it with 500.

    Its routes look up what a request names without asking whether it is there. Of a direct
    call that fails, Gradio does not tell whether the input or the function is at fault.
    """

    ERRORS = (
        *(AttributeError, LookupError, OSError, TypeError, ValueError),
        *(FnIndexInferError, InvalidURL),
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure: list[Message] = []

        async def send_or_hold(message: Message) -> None:
            if failure or (message["type"] == "http.response.start" and message["status"] == 500):
                failure.append(message)
            else:
                await send(message)

        try:
            await self._app(scope, receive, send_or_hold)
        except self.ERRORS as error:
            if not failure:
                raise
            # Neither the path nor the error's own text, which may repeat what was sent.
            logger.warning("A request makes no sense: %s", where(error))
            detail = "The page has nothing of that name, or cannot read what it was sent."
            await JSONResponse({"detail": detail}, 422)(scope, receive, send)
        except Exception:
            for message in failure:
                await send(message)
            raise
        else:
            for message in failure:
                await send({**message, "status": 422} if "status" in message else message)


class SecurityHeaders:
    def __init__(self, app: ASGIApp, embedded_in: tuple[str, ...]) -> None:
        self._app = app
        ancestors = " ".join(["'self'", *embedded_in])
        self._headers = {
            "content-security-policy": (
                f"frame-ancestors {ancestors}; base-uri 'self'; form-action 'self'; "
                "object-src 'none'"
            ),
            "referrer-policy": "same-origin",
            "x-content-type-options": "nosniff",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    # A header of your own stays.
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
