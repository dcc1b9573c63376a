"""What ends when a reader is gone, or the HTTP proxy between."""

import asyncio
import re

from ray.exceptions import RayActorError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..telemetry.logs import logger, where

ANSWER_STREAM = re.compile("/gradio_api/(queue/data|call/.+/.+)$")
OPEN_TAB = re.compile("/gradio_api/heartbeat/.+$")


class LeftStreams:
    """ASGI middleware that ends a stream in order when its reader leaves, or closes the tab.

    Gradio stops the calls of a reader whose stream is cancelled while it waits for news. One
    that is cancelled while it sends, or a second time while it cleans up, leaves its calls
    running to their end, and a task for ever. The functions that a page runs when a tab is closed
    are run in the same way, by the stream that lives as long as the tab does.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._ending = set[asyncio.Task[None]]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streams = scope["type"] == "http" and scope["method"] == "GET"
        tab = streams and OPEN_TAB.search(scope["path"])
        if not tab and not (streams and ANSWER_STREAM.search(scope["path"])):
            await self._app(scope, receive, send)
            return
        sending = left = False

        async def receive_when_left() -> Message:
            if not left:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send_unless_left(message: Message) -> None:
            nonlocal sending
            if not left:
                sending = True
                await send(message)
                sending = False
                if left and tab:
                    # It never asks whether its reader is there. By then it waits for its next beat.
                    asyncio.get_running_loop().call_soon(stream.cancel)

        # From this version on Starlette streams in this task, not in one that it cancels itself.
        asgi = {**scope["asgi"], "spec_version": "2.4"}
        stream = asyncio.ensure_future(
            self._app({**scope, "asgi": asgi}, receive_when_left, send_unless_left)
        )
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({stream, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not stream.done():
                left = True
                self._ending.add(stream)
                stream.add_done_callback(self._ended)
                if not sending:
                    stream.cancel()
        if not left:
            stream.result()

    def _ended(self, stream: asyncio.Task[None]) -> None:
        self._ending.remove(stream)
        if not stream.cancelled() and (error := stream.exception()):
            logger.warning("The stream of a reader who left ended: %s", where(error))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class ProxyLoss:
    """ASGI middleware that ends a request whose HTTP proxy died as if its client had left.

    Ray blocks the replica for a second for each answer that it owes to a dead process, an
    error among them: with many tabs open, nobody would be answered for as many seconds.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lost = False

        async def receive_or_disconnect() -> Message:
            nonlocal lost
            try:
                return await receive()
            except RayActorError:
                lost = True
                return {"type": "http.disconnect"}

        async def send_unless_lost(message: Message) -> None:
            if not lost:
                await send(message)

        await self._app(scope, receive_or_disconnect, send_unless_lost)
