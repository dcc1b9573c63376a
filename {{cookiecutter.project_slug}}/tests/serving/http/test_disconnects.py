"""Streams whose readers disconnect at different moments."""

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

import gradio as gr
import httpx2
import pytest
from playwright.sync_api import Browser, expect
from ray.exceptions import RayActorError
from starlette.background import BackgroundTasks
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from {{ cookiecutter.__package }}.serving.http.disconnects import (
    CONFIG,
    CONTINUED,
    RECONNECT_SCRIPT,
    RECONNECT_SECONDS,
    STREAM,
    ClosingMiddleware,
    DisconnectMiddleware,
    ProxyLossMiddleware,
)
from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.http.settings import (
    HttpSettings,
)

from ...support.stand_ins import in_thread

SCOPE = {
    "type": "http",
    "method": "GET",
    "path": "/gradio_api/queue/data",
    "asgi": {"spec_version": "2.3"},
}
DISCONNECT: Message = {"type": "http.disconnect"}


class Reader:
    """Receives what an app sends, and disconnects on demand."""

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

        await asyncio.wait_for(DisconnectMiddleware(with_scope)(scope, self.receive, self.send), 10)


async def test_a_stream_read_to_its_end_is_complete() -> None:
    reader = Reader()

    async def app(_receive: Receive, send: Send) -> None:
        for number in range(3):
            await send({"type": "http.response.body", "body": b"%d" % number})

    await reader.read(app)
    assert [message["body"] for message in reader.received] == [b"0", b"1", b"2"]


async def test_a_request_with_a_body_is_left_unchanged() -> None:
    async def app(scope: Scope, receive: Receive, _send: Send) -> None:
        assert scope == call
        assert await receive() == {"type": "http.request", "body": b"{}"}

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}"}

    call = {**SCOPE, "method": "POST", "path": "/gradio_api/call/v2/generate"}
    await asyncio.wait_for(DisconnectMiddleware(app)(call, receive, Reader().send), 10)


async def test_a_stream_that_fails_fails_its_request() -> None:
    async def app(_receive: Receive, _send: Send) -> None:
        raise ValueError("of this kind")

    with pytest.raises(ValueError, match="of this kind"):
        await Reader().read(app)


async def test_a_waiting_stream_is_cancelled_once_and_may_clean_up() -> None:
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


async def test_a_sending_stream_is_not_cancelled_and_then_sees_the_disconnect() -> None:
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


async def test_a_cancelled_request_ends_like_one_whose_reader_disconnected() -> None:
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
    """Gradio's heartbeat of an open tab, which runs a function when it is cancelled."""

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
async def test_a_tab_closed_while_it_waits_is_noticed_once(cancelled: bool) -> None:
    tab, reader = Tab(), Reader()
    request = asyncio.create_task(reader.read(tab, TAB))
    await tab.waits.wait()
    reader.leaves.set()
    if cancelled:
        # Serve may do either.
        request.cancel()
    await asyncio.wait([request])
    await asyncio.sleep(0.1)
    assert tab.closed == 1


async def test_a_tab_closed_while_it_receives_is_noticed_once() -> None:
    tab, reader = Tab(), Reader()
    request = asyncio.create_task(reader.read(tab, TAB))
    reader.takes.clear()
    reader.leaves.set()
    await request
    assert not tab.waits.is_set()
    reader.takes.set()
    await asyncio.sleep(0.1)
    assert tab.closed == 1


async def test_a_request_of_a_dead_proxy_ends_like_a_disconnect() -> None:
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

    loss: ASGIApp = ProxyLossMiddleware(app)
    await loss(SCOPE, receive, send)
    assert heard == [DISCONNECT]
    assert sent == [{"type": "http.response.start"}]


# Requests of limited length, whose readers reconnect.

NEW = [(STREAM.encode(), b"new")]
EVENTS = [(b"content-type", b"text/event-stream"), (b"set-cookie", b"replica=a; Path=/")]


class Numbers:
    """Streams numbers after a pause, or when its reader waits."""

    def __init__(self, count: int, pause: float = 0.03) -> None:
        self.streams = self.cancelled = self.left = 0
        self._count = count
        self._pause = pause

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        self.streams += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
            for number in range(self._count):
                await asyncio.sleep(self._pause)
                body = b"data: %d\n\n" % number
                await send({"type": "http.response.body", "body": body, "more_body": True})
            if self._count == 1:
                self.left += await receive() == DISCONNECT
            await send({"type": "http.response.body"})
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def asked(app: ASGIApp, reader: Reader, name: str, scope: Scope = SCOPE) -> str | None:
    """Reads until the request ends, and returns the position to reconnect at, if any."""
    before = len(reader.received)
    headers = [(STREAM.encode(), name.encode())]
    async with asyncio.timeout(10):
        await app({**scope, "headers": headers}, reader.receive, reader.send)
    start, *_, last = reader.received[before:]
    assert start["type"] == "http.response.start"
    assert not last.get("more_body", False)
    return Headers(scope=start).get(STREAM) if last.get("body") == CONTINUED else None


def numbers_in(reader: Reader) -> list[int]:
    bodies = b"".join(each.get("body", b"") for each in reader.received)
    events = bodies.replace(CONTINUED, b"").split(b"\n\n")[:-1]
    return [int(event.removeprefix(b"data: ")) for event in events]


async def test_a_reader_who_reconnects_misses_nothing_and_gets_nothing_twice() -> None:
    numbers, reader = Numbers(20), Reader()
    app = DisconnectMiddleware(numbers, seconds=0.1)
    name: str | None = "new"
    names = set[str]()
    while name is not None:
        names.add(name)
        # Between two requests it produces one number.
        await asyncio.sleep(0.04)
        name = await asked(app, reader, name)
    assert numbers_in(reader) == list(range(20))
    assert len(names) > 4
    assert numbers.streams == 1
    assert not numbers.cancelled
    starts = [Headers(scope=each) for each in reader.received if "status" in each]
    assert [bool(each.get("set-cookie")) for each in starts] == [True] + [False] * (len(names) - 1)


async def test_a_request_ends_only_after_the_current_message() -> None:
    numbers, reader = Numbers(2, pause=0), Reader()
    app = DisconnectMiddleware(numbers, seconds=0.05)
    reader.takes.clear()
    request = asyncio.create_task(asked(app, reader, "new"))
    await asyncio.sleep(0.1)
    assert not request.done()
    reader.takes.set()
    name = await request
    assert name
    assert await asked(app, reader, name) is None
    assert numbers_in(reader) == [0, 1]


@pytest.mark.parametrize(("headers", "seconds"), [([], 0.05), (NEW, None)])
async def test_clients_without_the_header_read_a_stream_in_one_request(
    headers: list[tuple[bytes, bytes]], seconds: float | None
) -> None:
    numbers, reader = Numbers(6), Reader()
    await DisconnectMiddleware(numbers, seconds)(
        {**SCOPE, "headers": headers}, reader.receive, reader.send
    )
    assert numbers_in(reader) == list(range(6))
    assert [Headers(scope=each).get(STREAM) for each in reader.received[:1]] == [None]
    assert len(reader.received) == 8


@pytest.mark.parametrize("pause", [0.03, 60])
async def test_a_reader_who_does_not_reconnect_counts_as_disconnected(pause: float) -> None:
    """The stream waits for its reader, or for data."""
    numbers, reader = Numbers(1, pause), Reader()
    app = DisconnectMiddleware(numbers, seconds=0.01, reconnect_seconds=0.1)
    name = await asked(app, reader, "new")
    assert name
    await asyncio.sleep(0.05)
    assert (numbers.cancelled, numbers.left) == (0, 0)
    await asyncio.sleep(0.1)
    assert (numbers.cancelled, numbers.left) == ((0, 1) if pause < 1 else (1, 0))
    assert await asked(app, reader, name) is None
    assert reader.received[-2]["status"] == 410
    assert numbers.streams == 1


async def test_a_reader_who_disconnects_while_reading_is_not_waited_for() -> None:
    numbers, reader = Numbers(1, 60), Reader()
    app = DisconnectMiddleware(numbers, seconds=0.05)
    name = await asked(app, reader, "new")
    scope = {**SCOPE, "headers": [(STREAM.encode(), (name or "").encode())]}
    request = asyncio.create_task(app(scope, reader.receive, reader.send))
    await asyncio.sleep(0.01)
    reader.leaves.set()
    await asyncio.wait_for(request, 10)
    await asyncio.sleep(0.01)
    assert numbers.cancelled == 1
    assert reader.received[-1]["type"] == "http.response.start"


async def test_a_stream_that_fails_between_requests_fails_the_next_one() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        await asyncio.sleep(0.1)
        raise ValueError("of this kind")

    reader = Reader()
    streams = DisconnectMiddleware(app, seconds=0.05)
    name = await asked(streams, reader, "new")
    await asyncio.sleep(0.1)
    with pytest.raises(ValueError, match="of this kind"):
        await asked(streams, reader, name or "")


@pytest.mark.parametrize("beats", [0.03, 60])
async def test_a_tab_that_does_not_reconnect_is_closed_once(beats: float) -> None:
    closed = 0

    async def tab(_scope: Scope, receive: Receive, send: Send) -> None:
        background = BackgroundTasks()

        async def close() -> None:
            nonlocal closed
            await asyncio.sleep(0.01)
            closed += 1

        async def events() -> AsyncGenerator[str, None]:
            while True:
                try:
                    yield "ALIVE"
                    await asyncio.sleep(beats)
                except asyncio.CancelledError:
                    background.add_task(close)
                    return

        stream = StreamingResponse(events(), media_type="text/event-stream", background=background)
        await stream({**TAB, "asgi": {"spec_version": "2.4"}}, receive, send)

    reader = Reader()
    app = DisconnectMiddleware(tab, seconds=0.05, reconnect_seconds=0.1)
    name = await asked(app, reader, "new", TAB)
    await asyncio.sleep(0.05)
    name = await asked(app, reader, name or "", TAB)
    assert closed == 0
    await asyncio.sleep(0.2)
    assert closed == 1
    # For example, of a stopped replica: the tab continues with this one.
    assert await asked(app, reader, name or "", TAB)


@pytest.mark.parametrize("seconds", [None, 25.0])
async def test_the_page_reconnects_only_if_the_setting_is_on(seconds: float | None) -> None:
    page = b"<title>Whales</title>" + CONFIG + b" = {}</script>"
    reader = Reader()
    scope = {**SCOPE, "path": "/", "headers": []}
    await DisconnectMiddleware(HTMLResponse(page), seconds)(scope, reader.receive, reader.send)
    start, sent = reader.received
    assert sent["body"] == (page.replace(CONFIG, RECONNECT_SCRIPT + CONFIG) if seconds else page)
    assert Headers(scope=start)["content-length"] == str(len(sent["body"]))


class Sessions:
    """Streams messages to each session, and refuses unknown users."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.told = asyncio.Queue[bytes]()

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        is_known = (b"cookie", b"ada") in scope["headers"]
        media_type = b"text/event-stream" if is_known else b"application/json"
        start = {"status": 200 if is_known else 401, "headers": [(b"content-type", media_type)]}
        await send({"type": "http.response.start", **start})
        if not is_known:
            await send({"type": "http.response.body"})
            return
        asked = f"{scope['path']} {scope['query_string'].decode()}"
        self.begun.append(asked)
        try:
            while body := await self.told.get():
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body"})
        except asyncio.CancelledError:
            self.ended.append(asked)
            raise


STREAMS = [
    {**SCOPE, "query_string": b"session_hash=whale"},
    {**SCOPE, "path": "/gradio_api/call/speak/whale", "query_string": b""},
    {**TAB, "query_string": b""},
]


@pytest.mark.parametrize("scope", STREAMS)
@pytest.mark.parametrize("seconds", [None, 0.05])
async def test_a_second_request_takes_over_a_running_stream(
    scope: Scope, seconds: float | None
) -> None:
    sessions, old, new = Sessions(), Reader(), Reader()
    app = DisconnectMiddleware(sessions, seconds)
    known = {**scope, "headers": [(b"cookie", b"ada"), (b"x-stream", b"new")]}
    before = asyncio.create_task(app(known, old.receive, old.send))
    sessions.told.put_nowait(b"old")
    await asyncio.sleep(0.1)
    # From another network, before the old connection is known to be closed.
    again = {**known, "headers": known["headers"][:1]}
    after = asyncio.create_task(app(again, new.receive, new.send))
    await asyncio.wait_for(before, 10)
    old.leaves.set()
    sessions.told.put_nowait(b"new")
    await asyncio.sleep(0.1)
    assert not sessions.ended
    assert len(sessions.begun) == 1
    assert [each["body"] for each in old.received[1:] if each.get("body")][:1] == [b"old"]
    assert new.received[0]["status"] == 200
    assert Headers(scope=new.received[0]).get("content-type") == "text/event-stream"
    assert [each["body"] for each in new.received[1:]] == [b"new"]
    # The stream ends with its current reader.
    new.leaves.set()
    await asyncio.wait_for(after, 10)
    await asyncio.sleep(0.01)
    assert len(sessions.ended) == 1


@pytest.mark.parametrize("scope", STREAMS)
async def test_a_stream_is_taken_over_only_by_its_own_logged_in_session(scope: Scope) -> None:
    sessions, ada, stranger = Sessions(), Reader(), Reader()
    app = DisconnectMiddleware(sessions)
    known = {**scope, "headers": [(b"cookie", b"ada")]}
    request = asyncio.create_task(app(known, ada.receive, ada.send))
    await asyncio.sleep(0.01)
    await asyncio.wait_for(app({**scope, "headers": []}, stranger.receive, stranger.send), 10)
    assert [each.get("status") for each in stranger.received] == [401, None]
    renamed = {
        "path": scope["path"].replace("whale", "other"),
        "query_string": scope["query_string"].replace(b"whale", b"other"),
    }
    other = asyncio.create_task(app({**known, **renamed}, Reader().receive, Reader().send))
    await asyncio.sleep(0.01)
    assert len(sessions.begun) == 2
    assert not sessions.ended
    for each in (request, other):
        each.cancel()
    await asyncio.wait({request, other})


async def test_a_reconnecting_reader_waits_a_bounded_time_for_a_silent_page() -> None:
    sessions = Sessions()

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        if b"whale" not in scope["query_string"]:
            await asyncio.Event().wait()
        await sessions(scope, receive, send)

    app = DisconnectMiddleware(page, reconnect_seconds=0.05)
    known = {**STREAMS[0], "headers": [(b"cookie", b"ada")]}
    before = asyncio.create_task(app(known, Reader().receive, Reader().send))
    await asyncio.sleep(0.01)
    after = asyncio.create_task(app(known, Reader().receive, Reader().send))
    await asyncio.sleep(0.5)
    assert len(sessions.begun) == 2
    for each in (before, after):
        each.cancel()
    await asyncio.wait({before, after})


def test_a_client_that_reconnects_before_its_old_stream_ends_gets_its_answers() -> None:
    ends = threading.Event()
    with gr.Blocks() as blocks:
        asked = gr.Textbox()
        gr.Button().click(lambda text: f"said {text}", asked, gr.Textbox(), api_name="say")
        gr.Button().click(lambda: ends.wait(30), concurrency_limit=2, api_name="wait")
    web = mount(blocks, HttpSettings())
    numbers = {function.api_name: number for number, function in blocks.fns.items()}

    with (
        in_thread(DisconnectMiddleware(web)) as url,
        httpx2.Client(base_url=f"{url}/gradio_api/", timeout=10) as client,
    ):

        def join(name: str, *values: str) -> str:
            body = {"data": values, "fn_index": numbers[name], "session_hash": "whale"}
            event: str = client.post("queue/join", json=body).json()["event_id"]
            return event

        def answer(lines: Iterator[str], event: str) -> list[str]:
            messages = (json.loads(line.removeprefix("data: ")) for line in lines if line)
            of_event = (each for each in messages if each.get("event_id") == event)
            done = next(each for each in of_event if each["msg"] == "process_completed")
            values: list[str] = done["output"]["data"]
            return values

        data = "queue/data?session_hash=whale"
        join("wait")
        with client.stream("GET", data) as lost:
            heard = lost.iter_lines()
            next(heard)
            with client.stream("GET", data) as stream:
                lines = stream.iter_lines()
                assert answer(lines, join("say", "one")) == ["said one"]
                lost.close()
                time.sleep(0.5)
                assert answer(lines, join("say", "two")) == ["said two"]
        ends.set()


class Platform:
    """Ends each request after some seconds, as some platforms do, and counts requests."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds
        self.ended: list[str] = []
        self.streams: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        kind = next((each for each in ("heartbeat", "queue/data") if each in scope["path"]), "")
        self.streams += [kind] if kind else []
        try:
            async with asyncio.timeout(self._seconds):
                await self._app(scope, receive, send)
        except TimeoutError:
            self.ended.append(scope["path"])
            raise


PIECES = 12
PAUSE = 0.4


def page_that_takes_its_time(closed: list[int], stopped: list[float]) -> gr.Blocks:
    def speak(asked: int) -> Iterator[tuple[int, str]]:
        text = ""
        try:
            for number in range(PIECES):
                time.sleep(PAUSE)
                text += f"{number} "
                yield asked + 1, f"{asked + 1}: {text}"
        finally:
            stopped.append(time.monotonic())

    with gr.Blocks() as blocks:
        asked = gr.State(0)
        answer = gr.Textbox(label="Answer")
        gr.Button("Speak").click(speak, asked, [asked, answer])
        gr.Button("Say").click(lambda: "said", None, gr.Textbox(label="Said"))
        blocks.unload(lambda: closed.append(1))
    return blocks


def test_a_program_may_reconnect_too() -> None:
    stopped: list[float] = []
    web = mount(page_that_takes_its_time([], stopped), HttpSettings())
    streams = DisconnectMiddleware(web, seconds=0.8, reconnect_seconds=0.5)
    with in_thread(streams) as url, httpx2.Client(base_url=f"{url}/gradio_api/") as client:
        event = client.post("call/speak", json={"data": [0]}).json()["event_id"]
        name, requests, text = "new", 0, ""
        while requests == 0 or text.endswith(CONTINUED.decode()):
            answer = client.get(f"call/speak/{event}", headers={STREAM: name})
            name = answer.headers[STREAM]
            text += answer.text
            requests += 1
        assert requests >= 4
        values = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
        texts = [" ".join(map(str, range(count + 1))) for count in range(PIECES)]
        assert values == [[None, f"1: {each} "] for each in [*texts, texts[-1]]]
        assert "event: complete" in text
        # Without reconnecting, the call is cancelled.
        stopped.clear()
        event = client.post("call/speak", json={"data": [0]}).json()["event_id"]
        begun = time.monotonic()
        client.get(f"call/speak/{event}", headers={STREAM: "new"})
        while not stopped and time.monotonic() < begun + 10:
            time.sleep(0.1)
        assert stopped[0] - begun < PIECES * PAUSE - 1


@pytest.mark.parametrize("path", ["queue/data?session_hash=whale", "heartbeat/whale"])
@pytest.mark.parametrize("name", ["new", "0" * 32])
def test_the_reconnect_header_gives_no_stream_without_a_login(
    path: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGE_PASSWORD", "whales")
    web = mount(page_that_takes_its_time([], []), HttpSettings(login_user="ada"))
    with in_thread(DisconnectMiddleware(web, seconds=0.8)) as url:
        answer = httpx2.get(f"{url}/gradio_api/{path}", headers={STREAM: name})
        assert answer.status_code in (401, 410)
        assert STREAM not in answer.headers


def test_in_the_browser_an_answer_may_outlast_the_request_limit_of_the_platform(
    browser: Browser,
) -> None:
    closed: list[int] = []
    web = mount(page_that_takes_its_time(closed, []), HttpSettings())
    # On a busy machine a client reconnects much later than after 0.8 seconds.
    platform = Platform(DisconnectMiddleware(web, seconds=0.8), seconds=PIECES * PAUSE - 0.5)
    with in_thread(platform) as url:
        with browser.new_page() as page:
            faults: list[str] = []
            page.on(
                "console",
                lambda message: faults.append(message.text) if message.type == "error" else None,
            )
            page.goto(url)
            for number in (1, 2):
                page.get_by_role("button", name="Speak").click()
                expect(page.get_by_label("Answer")).to_have_value(re.compile(f"^{number}: 0 1 "))
                page.get_by_role("button", name="Say").click()
                expect(page.get_by_label("Said")).to_have_value("said")
                whole = f"{number}: {' '.join(map(str, range(PIECES)))} "
                expect(page.get_by_label("Answer")).to_have_value(whole)
            assert not platform.ended
            assert platform.streams.count("queue/data") >= 8
            assert platform.streams.count("heartbeat") >= 8
            assert not closed
            assert not faults
        # A tab that closes between two requests is given up after the time to reconnect.
        deadline = time.monotonic() + RECONNECT_SECONDS + 10
        while not closed and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        assert closed == [1]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/gradio_api/queue/join", 503),
        ("POST", "/gradio_api/call/answer", 503),
        ("POST", "/v1/chat/completions", 503),
        ("POST", "/gradio_api/cancel", 200),
        ("GET", "/gradio_api/queue/data", 200),
        ("GET", "/gradio_api/call/answer/0123", 200),
        ("GET", "/", 200),
    ],
)
def test_a_closing_page_refuses_new_calls_and_continues_running_ones(
    method: str, path: str, status: int
) -> None:
    closing = ClosingMiddleware(PlainTextResponse("done"))
    with in_thread(closing) as url:
        assert httpx2.request(method, f"{url}{path}").status_code == 200
        closing.close()
        answer = httpx2.request(method, f"{url}{path}")
    assert answer.status_code == status
    assert ("retry-after" in answer.headers) is (status == 503)


@pytest.mark.parametrize(
    ("method", "path", "runs", "may_continue"),
    [
        ("GET", "/gradio_api/queue/data", True, True),
        ("POST", "/v1/chat/completions", True, True),
        ("GET", "/", True, False),
        ("GET", "/gradio_api/heartbeat/whale", False, False),
    ],
)
async def test_a_closing_page_tells_whether_answers_run_or_may_continue(
    method: str, path: str, runs: bool, may_continue: bool
) -> None:
    answered = asyncio.Event()

    async def web(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
        await answered.wait()

    closing = ClosingMiddleware(web)
    scope = {**SCOPE, "method": method, "path": path}
    asking = asyncio.ensure_future(closing(scope, wait_forever, ignore))
    await asyncio.sleep(0)
    assert closing.close() is runs
    answered.set()
    await asking
    assert closing.close() is may_continue


async def wait_forever() -> Message:
    await asyncio.Event().wait()
    return {"type": "http.disconnect"}


async def ignore(_: Message) -> None:
    pass
