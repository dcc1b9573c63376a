"""Streams whose readers leave, in the middle of this or that."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
from ray.exceptions import RayActorError
from starlette.background import BackgroundTasks
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from {{ cookiecutter.__package }}.serving.http.disconnects import (
    LeftStreams,
    ProxyLoss,
)

SCOPE = {
    "type": "http",
    "method": "GET",
    "path": "/gradio_api/queue/data",
    "asgi": {"spec_version": "2.3"},
}
DISCONNECT: Message = {"type": "http.disconnect"}


class Reader:
    """Receives what an app sends, and leaves when it is told to."""

    def __init__(self) -> None:
        self.received: list[Message] = []
        self.leaves = asyncio.Event()
        self.takes = asyncio.Event()
        self.takes.set()

    async def receive(self) -> Message:
        await self.leaves.wait()
        return DISCONNECT

    async def send(self, message: Message) -> None:
        await self.takes.wait()
        self.received.append(message)

    async def read(
        self, app: Callable[[Receive, Send], Awaitable[None]], scope: Scope = SCOPE
    ) -> None:
        async def with_scope(scope: Scope, receive: Receive, send: Send) -> None:
            assert scope["asgi"]["spec_version"] == "2.4"
            await app(receive, send)

        await asyncio.wait_for(LeftStreams(with_scope)(scope, self.receive, self.send), 10)


async def test_a_stream_that_is_read_to_its_end_is_whole() -> None:
    reader = Reader()

    async def app(_receive: Receive, send: Send) -> None:
        for number in range(3):
            await send({"type": "http.response.body", "body": b"%d" % number})

    await reader.read(app)
    assert [message["body"] for message in reader.received] == [b"0", b"1", b"2"]


async def test_a_request_with_a_body_is_left_alone() -> None:
    async def app(scope: Scope, receive: Receive, _send: Send) -> None:
        assert scope == call
        assert await receive() == {"type": "http.request", "body": b"{}"}

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}"}

    call = {**SCOPE, "method": "POST", "path": "/gradio_api/call/v2/generate"}
    await asyncio.wait_for(LeftStreams(app)(call, receive, Reader().send), 10)


async def test_a_stream_that_fails_fails_its_request() -> None:
    async def app(_receive: Receive, _send: Send) -> None:
        raise ValueError("of this kind")

    with pytest.raises(ValueError, match="of this kind"):
        await Reader().read(app)


async def test_a_stream_that_waits_is_cancelled_once_and_cleans_up_in_peace() -> None:
    reader = Reader()
    cleaned = asyncio.Event()

    async def app(_receive: Receive, _send: Send) -> None:
        try:
            reader.leaves.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            cleaned.set()
            raise

    await reader.read(app)
    await asyncio.wait_for(cleaned.wait(), 10)


async def test_a_stream_that_sends_is_not_cancelled_and_then_finds_its_reader_gone() -> None:
    reader = Reader()
    heard = asyncio.get_running_loop().create_future()

    async def app(receive: Receive, send: Send) -> None:
        reader.takes.clear()
        reader.leaves.set()
        await send({"type": "http.response.body"})
        heard.set_result(await receive())

    await reader.read(app)
    reader.takes.set()
    assert await asyncio.wait_for(heard, 10) == DISCONNECT


async def test_a_request_that_is_cancelled_ends_as_one_whose_reader_left() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def app(_receive: Receive, _send: Send) -> None:
        try:
            began.set()
            await asyncio.sleep(60)
        finally:
            ended.set()

    request = asyncio.create_task(Reader().read(app))
    await began.wait()
    request.cancel()
    await asyncio.wait_for(ended.wait(), 10)


TAB = {**SCOPE, "path": "/behind/gradio_api/heartbeat/whale"}


class Tab:
    """What Gradio streams to an open tab: it runs a function when the stream is cancelled."""

    def __init__(self) -> None:
        self.closed = 0
        self.waits = asyncio.Event()

    async def __call__(self, receive: Receive, send: Send) -> None:
        background = BackgroundTasks()

        async def beats() -> AsyncGenerator[str, None]:
            while True:
                try:
                    yield "ALIVE"
                    self.waits.set()
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    background.add_task(self.close)
                    return

        scope = {**TAB, "asgi": {"spec_version": "2.4"}}
        await StreamingResponse(beats(), background=background)(scope, receive, send)

    async def close(self) -> None:
        await asyncio.sleep(0.01)
        self.closed += 1


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_tab_that_is_closed_while_it_waits_is_noticed_once(cancelled: bool) -> None:
    tab, reader = Tab(), Reader()
    request = asyncio.create_task(reader.read(tab, TAB))
    await tab.waits.wait()
    reader.leaves.set()
    if cancelled:
        # Serve may do both.
        request.cancel()
    await asyncio.wait([request])
    await asyncio.sleep(0.1)
    assert tab.closed == 1


async def test_a_tab_that_is_closed_while_it_is_sent_to_is_noticed_once() -> None:
    tab, reader = Tab(), Reader()
    request = asyncio.create_task(reader.read(tab, TAB))
    reader.takes.clear()
    reader.leaves.set()
    await request
    assert not tab.waits.is_set()
    reader.takes.set()
    await asyncio.sleep(0.1)
    assert tab.closed == 1


async def test_a_request_of_a_dead_proxy_ends_as_if_its_client_had_left() -> None:
    heard: list[Message] = []
    sent: list[Message] = []

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start"})
        heard.append(await receive())
        await send({"type": "http.response.body"})

    async def receive() -> Message:
        raise RayActorError

    async def send(message: Message) -> None:
        sent.append(message)

    loss: ASGIApp = ProxyLoss(app)
    await loss(SCOPE, receive, send)
    assert heard == [DISCONNECT]
    assert sent == [{"type": "http.response.start"}]
