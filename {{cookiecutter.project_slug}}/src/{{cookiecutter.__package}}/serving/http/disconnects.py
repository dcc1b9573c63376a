"""Middleware for clients that disconnect or reconnect, lost HTTP proxies, and shutdown."""

import asyncio
import re
import time
from secrets import token_hex
from urllib.parse import urlencode

from ray.exceptions import RayActorError
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..telemetry.logs import logger, where

ANSWER_STREAM = re.compile("/gradio_api/(queue/data|call/.+/.+)$")
OPEN_TAB = re.compile("/gradio_api/heartbeat/.+$")
RECONNECT_SECONDS = 30.0
"""How long a paused stream waits for its client to reconnect."""
STREAM = "x-stream"
"""The header with a stream's name, in both directions. A client that can reconnect sends `new`
first."""
NEW = "new"
OF_A_CALL = re.compile(
    "/gradio_api/(queue/data|cancel|reset|stream/|call/(v2/[^/]+|(?!v2/)[^/]+)/.)"
)
"""Paths that read the result of a call that is running, or stop it."""
CLOSING = "The page is shutting down. Try again in a minute."
CLOSING_SECONDS = 60
QUIET_SECONDS = 2.0
"""How long a client may take to ask for the result of its call, or for the rest of a stream."""
EVENTS = "text/event-stream"
CONTINUED = b":again\n\n"
"""The end of a response whose stream goes on in the next one. In a stream, it is a comment."""
CONFIG = b"<script>window.gradio_config"
"""The start of the page. The script goes here, because Gradio opens a stream before it adds
`head`."""
RECONNECT_SCRIPT = b"""<script>(() => {
    const ask = window.fetch
    window.fetch = async (input, init) => {
        const path = input instanceof Request ? new URL(input.url).pathname : ""
        if (!/\\/gradio_api\\/(queue\\/data|heartbeat\\/.+)$/.test(path)) return ask(input, init)
        const read = name => {
            const request = new Request(input, init)
            request.headers.set("x-stream", name)
            return ask(request)
        }
        const answer = await read("new")
        let name = answer.headers.get("x-stream")
        if (!name) return answer
        let reader = answer.body.getReader()
        let end = ""
        const resume = async tries => {
            const next = await read(name).catch(() => null)
            if (next?.ok) return next
            if (!tries || next?.status === 410 || input.signal.aborted) {
                throw new Error("The stream is lost.")
            }
            await new Promise(done => setTimeout(done, 1000))
            return resume(tries - 1)
        }
        const pull = async stream => {
            const {done, value} = await reader.read()
            if (!done) {
                end = (end + String.fromCharCode(...value.slice(-8))).slice(-8)
                return stream.enqueue(value)
            }
            if (end !== ":again\\n\\n") return stream.close()
            const next = await resume(5)
            name = next.headers.get("x-stream")
            reader = next.body.getReader()
            end = ""
            return pull(stream)
        }
        const body = new ReadableStream({pull, cancel: reason => reader.cancel(reason)})
        return new Response(body, answer)
    }
})()</script>"""


class DisconnectMiddleware:
    """ASGI middleware that ends a stream cleanly when its client disconnects or closes the tab.

    Gradio stops a client's calls if their stream is cancelled while it waits for messages. If it is
    cancelled while it sends, or again during its cleanup, the calls run to their end and one task
    never ends. The stream that lives as long as the tab has the same problem. It runs the page's
    `unload` functions.

    A request for a stream that is still running takes that stream over, because a client whose
    connection broke may be back before the server notices. With two streams for one session, Gradio
    would send each message to only one of them, and the end of the old stream would remove the
    calls that the client has made since.

    Args:
        seconds: how long a request for a stream may take. Then it ends, and the client reconnects.
            The stream itself goes on, and holds back its messages until then. This applies only to
            clients that send the header, such as the page's script. Others keep their stream.
        reconnect_seconds: how long a stream waits for its client to reconnect.
    """

    def __init__(
        self,
        app: ASGIApp,
        seconds: float | None = None,
        reconnect_seconds: float = RECONNECT_SECONDS,
    ) -> None:
        self._app = app
        self._seconds = seconds
        self._return_seconds = reconnect_seconds
        self._waiting: dict[str, _Stream] = {}
        self._begun: dict[tuple[str, str], _Stream] = {}
        self._ending = set[asyncio.Task[None]]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gets = scope["type"] == "http" and scope["method"] == "GET"
        tab = gets and OPEN_TAB.search(scope["path"]) is not None
        if not tab and not (gets and ANSWER_STREAM.search(scope["path"])):
            can_reconnect = gets and self._seconds is not None
            await self._app(scope, receive, _with_script(send) if can_reconnect else send)
            return
        name = None if self._seconds is None else Headers(scope=scope).get(STREAM)
        stream = self._waiting.pop(name or NEW, None)
        if stream is None and not tab and name not in (None, NEW):
            detail = "This stream has ended. Reload the page."
            await JSONResponse({"detail": detail}, 410)(scope, receive, send)
            return
        can_reconnect = name is not None
        stream = stream or await self._taken_over(scope, can_reconnect=can_reconnect)
        leaving = asyncio.create_task(_disconnected(receive))
        begun = stream is not None
        if stream is None:
            stream = _Stream(self._app, scope, send, tab=tab, can_reconnect=can_reconnect)
            self._keep(stream, _session(scope))
        turn = stream.next_turn()
        waits = False
        try:
            if begun:
                await stream.resume(send)
            ends = {stream.task, leaving, turn}
            while not waits:
                ended, _ = await asyncio.wait(
                    ends, timeout=self._seconds, return_when="FIRST_COMPLETED"
                )
                if ended:
                    break
                waits = await stream.pause(leaving)
            if waits:
                # Registered first, because the client may reconnect as soon as it gets the end.
                self._waiting[stream.name] = stream
                loop = asyncio.get_running_loop()
                loop.call_later(self._return_seconds, self._give_up, stream.name)
                await send({"type": "http.response.body", "body": CONTINUED})
            elif turn.done():
                await send({"type": "http.response.body"})
        finally:
            leaving.cancel()
            if not waits and not turn.done() and not stream.task.done():
                self._leave(stream)
        if not waits and not turn.done() and stream.task.done():
            stream.task.result()

    def _keep(self, stream: "_Stream", session: tuple[str, str]) -> None:
        self._begun[session] = stream

        def forget(_: asyncio.Task[None]) -> None:
            if self._begun.get(session) is stream:
                del self._begun[session]

        stream.task.add_done_callback(forget)

    async def _taken_over(self, scope: Scope, *, can_reconnect: bool) -> "_Stream | None":
        """Returns the session's running stream, if there is one and the page admits the client."""
        session = _session(scope)
        if session not in self._begun or not await self._lets_in(scope):
            return None
        # The stream may have ended in the meantime.
        stream = self._begun.get(session)
        if stream is None or not stream.may_be_taken_over:
            return None
        self._waiting.pop(stream.name, None)
        stream.can_reconnect = can_reconnect
        return stream

    async def _lets_in(self, scope: Scope) -> bool:
        """Returns whether the page admits the client, by a test request with an unused session."""
        _, session = _session(scope)
        if session:
            query = QueryParams(scope["query_string"])
            nobody = urlencode({**query, "session_hash": token_hex(16)})
            asked = {**scope, "query_string": nobody.encode()}
        else:
            asked = {**scope, "path": f"{scope['path'].rpartition('/')[0]}/{token_hex(16)}"}
        lets_in: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def wait_for_ever() -> Message:
            await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        def say(it_does: bool) -> None:
            if not lets_in.done():
                lets_in.set_result(it_does)

        async def hear(message: Message) -> None:
            say(_is_of(message, EVENTS))
            await wait_for_ever()

        asking = asyncio.ensure_future(self._app(_in_one_task(asked), wait_for_ever, hear))
        asking.add_done_callback(lambda _: say(False))
        try:
            async with asyncio.timeout(self._return_seconds):
                return await lets_in
        except TimeoutError:
            return False
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    def _give_up(self, name: str) -> None:
        if stream := self._waiting.pop(name, None):
            self._leave(stream)

    def _leave(self, stream: "_Stream") -> None:
        self._ending.add(stream.task)
        stream.task.add_done_callback(self._ended)
        stream.leave()

    def _ended(self, stream: asyncio.Task[None]) -> None:
        self._ending.remove(stream)
        if not stream.cancelled() and (error := stream.exception()):
            logger.warning("A stream failed after its client disconnected: %s", where(error))


class _Stream:
    """A stream of the page, in its own task. Several requests may read it, one after another."""

    def __init__(
        self, app: ASGIApp, scope: Scope, send: Send, *, tab: bool, can_reconnect: bool
    ) -> None:
        self.name = token_hex(16)
        self._send = send
        self._tab = tab
        self.can_reconnect = can_reconnect
        self._turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._start: Message | None = None
        self._left = self._sending = False
        self._is_read = asyncio.Event()
        self._is_read.set()
        self._has_sent = asyncio.Event()
        self._has_sent.set()
        self.task = asyncio.ensure_future(
            app(_in_one_task(scope), self._receive_when_left, self._send_unless_left)
        )

    @property
    def may_be_taken_over(self) -> bool:
        return self._start is not None and not self._left and not self.task.done()

    def next_turn(self) -> asyncio.Future[None]:
        """Ends the current request's turn. Returns the next one, which the next call ends."""
        if not self._turn.done():
            self._turn.set_result(None)
        self._turn = asyncio.get_running_loop().create_future()
        return self._turn

    async def pause(self, leaving: asyncio.Task[None]) -> bool:
        """Holds back new messages. Returns whether the client has received all earlier ones.

        If the client cannot reconnect, it does nothing and returns False.
        """
        if self._start is None or not self.can_reconnect:
            return False
        self._is_read.clear()
        sent = asyncio.create_task(self._has_sent.wait())
        try:
            await asyncio.wait({sent, self.task, leaving}, return_when="FIRST_COMPLETED")
        finally:
            sent.cancel()
        return self._has_sent.is_set() and not self.task.done() and not leaving.done()

    async def resume(self, send: Send) -> None:
        """Continues the stream in the request of a client that reconnected."""
        self.name = token_hex(16)
        await send(self._named(self._start or {}))
        self._send = send
        self._is_read.set()

    def leave(self) -> None:
        self._left = True
        self._is_read.set()
        if not self._sending:
            self.task.cancel()

    async def _receive_when_left(self) -> Message:
        if not self._left:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def _send_unless_left(self, message: Message) -> None:
        if self._left:
            return
        self._sending = True
        await self._is_read.wait()
        if not self._left:
            if _is_of(message, EVENTS):
                kept = [each for each in message["headers"] if each[0] != b"set-cookie"]
                self._start = {**message, "headers": kept}
                message = self._named(message)
            self._has_sent.clear()
            await self._send(message)
            self._has_sent.set()
        self._sending = False
        if self._left and self._tab:
            # A heartbeat stream does not check for a disconnect. When the cancellation comes, it
            # waits for its next beat.
            asyncio.get_running_loop().call_soon(self.task.cancel)

    def _named(self, start: Message) -> Message:
        if not self.can_reconnect:
            return start
        return {**start, "headers": [*start["headers"], (STREAM.encode(), self.name.encode())]}


def _session(scope: Scope) -> tuple[str, str]:
    """Returns the path and the session, which identify a stream."""
    path = scope["path"]
    query = QueryParams(scope.get("query_string", b""))
    return path[path.index("/gradio_api/") :], query.get("session_hash", "")


def _in_one_task(scope: Scope) -> Scope:
    """Sets the ASGI version from which Starlette streams in the same task, not in its own."""
    return {**scope, "asgi": {**scope["asgi"], "spec_version": "2.4"}}


def _is_of(message: Message, media_type: str) -> bool:
    if message["type"] != "http.response.start":
        return False
    return Headers(scope=message).get("content-type", "").startswith(media_type)


def _with_script(send: Send) -> Send:
    """Adds the script that reconnects streams to the page."""
    start: Message | None = None

    async def send_with_script(message: Message) -> None:
        nonlocal start
        if _is_of(message, "text/html"):
            start = message
            return
        if start is not None:
            body = message.get("body", b"").replace(CONFIG, RECONNECT_SCRIPT + CONFIG, 1)
            headers = MutableHeaders(scope=start)
            if "content-length" in headers:
                added = len(body) - len(message.get("body", b""))
                headers["content-length"] = str(int(headers["content-length"]) + added)
            await send(start)
            start = None
            message = {**message, "body": body}
        await send(message)

    return send_with_script


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class ProxyLossMiddleware:
    """ASGI middleware that treats a request whose HTTP proxy died as disconnected.

    Ray blocks the replica for a second for each response to a dead process, even for an error. With
    100 open tabs, nobody would get an answer for 100 seconds.
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


class ClosingMiddleware:
    """ASGI middleware that counts running answers, and refuses new calls once it is closed.

    The request of an open tab doesn't count, because it lasts as long as the tab.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._closed = False
        self._running = 0
        self._last_call = -QUIET_SECONDS

    def close(self) -> bool:
        """Refuses new calls from now on. Returns whether answers are still running."""
        self._closed = True
        return self._running > 0 or time.monotonic() - self._last_call < QUIET_SECONDS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or OPEN_TAB.search(scope["path"]):
            await self._app(scope, receive, send)
            return
        reads = scope["method"] in ("GET", "HEAD", "OPTIONS")
        of_a_call = OF_A_CALL.search(scope["path"]) is not None
        if self._closed and not reads and not of_a_call:
            headers = {"retry-after": str(CLOSING_SECONDS)}
            await JSONResponse({"detail": CLOSING}, 503, headers)(scope, receive, send)
            return
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1
            # Nothing follows requests that only read the page, such as health checks.
            if of_a_call or not reads:
                self._last_call = time.monotonic()
