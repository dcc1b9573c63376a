"""What a request passes before the page, before a page of a few lines."""

import asyncio
import base64
import threading
from collections.abc import Callable, Iterator
from unittest.mock import AsyncMock

import gradio as gr
import pytest
from fastapi import FastAPI, HTTPException, Request
from httpx2 import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from {{ cookiecutter.__package }}.serving.base import LoginError
from {{ cookiecutter.__package }}.serving.http import guard as guard_module
from {{ cookiecutter.__package }}.serving.http.guard import (
    BodyLimit,
    explain_refusals,
    guard,
)
from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.http.settings import (
    HttpSettings,
    RequestLimits,
)

HERE = "http://localhost"
PASSWORD = "a wet whale"  # noqa: S105


def page_behind(settings: HttpSettings) -> TestClient:
    web = FastAPI()

    @web.post("/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    guard(web, settings)
    return TestClient(web, base_url=HERE)


def basic(user: str, password: str) -> dict[str, str]:
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"authorization": f"Basic {token}"}


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("PAGE_PASSWORD", PASSWORD)
    return page_behind(HttpSettings(login_user="ada"))


def test_without_a_login_everybody_may_come() -> None:
    assert page_behind(HttpSettings()).post("/echo", content=b"abc").json() == 3


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("ada", "wrong"),
        basic("bob", PASSWORD),
        basic("", ""),
        {"authorization": "Basic"},
        {"authorization": "Basic \xff"},
        {"authorization": basic("ada", PASSWORD)["authorization"].replace("Basic", "Bearer")},
    ],
)
def test_a_login_keeps_out_who_does_not_know_it(login: TestClient, headers: dict[str, str]) -> None:
    answer = login.post("/echo", headers=Headers(headers, encoding="latin-1"))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic ")


def test_a_login_lets_in_who_knows_it(login: TestClient) -> None:
    assert login.post("/echo", headers=basic("ada", PASSWORD)).status_code == 200


def test_a_login_without_a_password_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PAGE_PASSWORD", raising=False)
    with pytest.raises(LoginError, match="PAGE_PASSWORD is not set"):
        guard(FastAPI(), HttpSettings(login_user="ada"))


@pytest.mark.parametrize("sender", ["cross-site", "same-site"])
def test_another_site_can_send_nothing(sender: str) -> None:
    page = page_behind(HttpSettings())
    files = {"files": ("a.txt", b"abc")}
    assert page.post("/echo", files=files, headers={"sec-fetch-site": sender}).status_code == 403
    assert page.post("/echo", headers={"sec-fetch-site": "same-origin"}).status_code == 200


def status_of_upload(blocks: gr.Blocks, path: str = "upload", name: str = "files") -> int:
    with TestClient(mount(blocks, HttpSettings()), base_url=HERE) as page:
        return page.post(f"/gradio_api/{path}", files={name: ("a.txt", b"abc")}).status_code


def page_with(component: Callable[[], object]) -> gr.Blocks:
    with gr.Blocks() as blocks:
        component()
        gr.Button()
        gr.State()
    return blocks


def rendering() -> gr.Blocks:
    with gr.Blocks() as blocks:
        kind = gr.Radio(["text", "file"], value="text")

        @gr.render(inputs=kind)
        def show(kind: str) -> None:
            gr.File() if kind == "file" else gr.Textbox()

    return blocks


UPLOADING = "element.onchange = async () => { props.value = (await upload(element.file)).url }"


@pytest.mark.parametrize(
    ("blocks", "status"),
    [
        (page_with(gr.Textbox), 404),
        (page_with(gr.HTML), 404),
        (page_with(gr.File), 200),
        (page_with(gr.MultimodalTextbox), 200),
        (page_with(lambda: gr.HTML("<input type=file>", js_on_load=UPLOADING)), 200),
        (rendering(), 200),
        (gr.TabbedInterface([rendering(), page_with(gr.Textbox)], ["one", "two"]), 200),
    ],
    ids=["text", "html", "file", "multimodal", "html that uploads", "render", "render in a tab"],
)
def test_a_page_takes_files_only_where_it_has_a_place_for_them(
    blocks: gr.Blocks, status: int
) -> None:
    assert status_of_upload(blocks) == status


@pytest.mark.parametrize("component", [gr.Textbox, gr.File])
def test_a_page_takes_no_recording(component: Callable[[], object]) -> None:
    assert status_of_upload(page_with(component), "process_recording", "video") == 404


def in_parts(number: int) -> Iterator[bytes]:
    """A body whose length is not announced."""
    for _ in range(number):
        yield bytes(1000)


def test_a_body_over_the_limit_is_refused_however_it_comes() -> None:
    page = page_behind(HttpSettings(limits=RequestLimits(request_bytes=3000)))
    assert page.post("/echo", content=in_parts(3)).json() == 3000
    assert page.post("/echo", content=bytes(3000)).json() == 3000
    for body in (in_parts(4), bytes(3001)):
        answer = page.post("/echo", content=body)
        assert answer.status_code == 413
        assert "3,000 bytes" in answer.json()["detail"]


async def test_a_body_that_breaks_off_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "BODY_SECONDS", 0.1)
    parts = iter([{"type": "http.request", "body": b"ab", "more_body": True}])

    async def receive() -> Message:
        if part := next(parts, None):
            return part
        await asyncio.sleep(60)
        raise AssertionError

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(HTTPException, match="408"):
            await Request(scope, receive, send).body()

    scope = {"type": "http", "headers": []}
    await asyncio.wait_for(BodyLimit(echo, 3000)(scope, receive, AsyncMock()), 10)


async def test_a_client_that_stays_after_its_body_is_not_taken_for_one_that_broke_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard_module, "BODY_SECONDS", 0.1)
    messages = asyncio.Queue[Message]()

    async def stream(_scope: Scope, receive: Receive, _send: Send) -> None:
        watcher = asyncio.ensure_future(receive())
        reader = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        await asyncio.sleep(0.3)
        messages.put_nowait({"type": "http.disconnect"})
        heard = await asyncio.gather(watcher, reader)
        assert [message["type"] for message in heard] == ["http.request", "http.disconnect"]

    scope = {"type": "http", "headers": []}
    await asyncio.wait_for(BodyLimit(stream, 3000)(scope, messages.get, AsyncMock()), 10)


def test_a_full_queue_says_when_to_come_back() -> None:
    refused = threading.Event()
    with gr.Blocks() as blocks:
        gr.Button("Wait").click(lambda: refused.wait(60), api_name="wait")
    web = mount(blocks.queue(max_size=1), HttpSettings())
    with TestClient(web, base_url=HERE) as page:
        call = {"data": [], "fn_index": 0, "session_hash": "me"}
        answers = [page.post("/gradio_api/queue/join", json=call) for _ in range(4)]
        refused.set()
    assert answers[0].status_code == 200
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) > 0
    assert "Try again" in answers[-1].json()["detail"]


@pytest.fixture
def small_page() -> Iterator[TestClient]:
    """A page with a function that divides, and one that fails."""
    with gr.Blocks() as blocks:
        number = gr.Number()
        gr.Button("Divide").click(lambda number: 1 / number, number, number, api_name="divide")
        gr.Button("Refuse").click(refuse, api_name="refuse")
    web = mount(blocks, HttpSettings())
    with TestClient(web, base_url=HERE, raise_server_exceptions=False) as page:
        yield page


def refuse() -> None:
    raise gr.Error("Not on Sundays.")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("run/nothing", {"data": []}),
        ("call/nothing", {"data": []}),
        ("call/v2/nothing", {}),
        ("run/divide", {"data": []}),
        ("run/divide", {"data": [{"a": "number"}]}),
        ("run/divide", {"data": [1], "fn_index": 99}),
        ("queue/join", {"data": [1], "fn_index": -1, "session_hash": "me"}),
    ],
)
def test_a_request_that_makes_no_sense_is_told_so(
    small_page: TestClient, path: str, body: dict[str, object]
) -> None:
    assert small_page.post(f"/gradio_api/{path}", json=body).status_code == 422
    assert small_page.post("/gradio_api/run/divide", json={"data": [2]}).json()["data"] == [0.5]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("call/secret-whale", {"data": []}),
        ("run/divide", {"data": [{"secret-whale": 1}]}),
        ("run/divide", {"data": "secret-whale"}),
    ],
)
def test_the_log_repeats_nothing_of_a_request_that_makes_no_sense(
    small_page: TestClient, path: str, body: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert small_page.post(f"/gradio_api/{path}", json=body).status_code == 422
    assert "secret-whale" not in caplog.text


def test_a_reason_of_the_page_is_told_and_one_of_python_is_not(small_page: TestClient) -> None:
    answer = small_page.post("/gradio_api/run/refuse", json={"data": []})
    assert answer.json()["error"] == "Not on Sundays."
    assert "division" not in small_page.post("/gradio_api/run/divide", json={"data": [0]}).text


def test_an_error_of_the_server_stays_one() -> None:
    web, mounted = FastAPI(), FastAPI()

    @mounted.get("/")
    async def fail() -> None:
        raise RuntimeError

    guard(web, HttpSettings())
    web.mount("/", mounted)
    explain_refusals(web)
    assert TestClient(web, base_url=HERE, raise_server_exceptions=False).get("/").status_code == 500


@pytest.mark.parametrize("root_path", ["", "/behind/a/prefix"])
def test_a_route_and_a_middleware_of_your_own_answer_as_they_do(root_path: str) -> None:
    def broken(_: Request) -> Response:
        raise LookupError

    def closed(app: ASGIApp) -> ASGIApp:
        async def close(scope: Scope, receive: Receive, send: Send) -> None:
            shut = scope["type"] == "http" and "closed" in Headers(scope["headers"])
            await (PlainTextResponse("closed", 503) if shut else app)(scope, receive, send)

        return close

    def busy(_: Request) -> Response:
        return PlainTextResponse("not ready", 503, {"retry-after": "60"})

    def failed(_: Request) -> Response:
        return PlainTextResponse("own", 500)

    routes = [Route("/busy", busy), Route("/failed", failed), Route("/broken", broken)]
    blocks = page_with(gr.Textbox)
    web = mount(blocks, HttpSettings(), routes=routes, middleware=[Middleware(closed)])
    client = TestClient(web, HERE, raise_server_exceptions=False, root_path=root_path)
    with client as page:
        answer = page.get(f"{root_path}/busy")
        assert (answer.status_code, answer.text) == (503, "not ready")
        assert answer.headers["retry-after"] == "60"
        answer = page.get(f"{root_path}/failed")
        assert (answer.status_code, answer.text) == (500, "own")
        assert page.get(f"{root_path}/broken").status_code == 500
        answer = page.get(f"{root_path}/config", headers={"closed": "yes"})
        assert (answer.status_code, answer.text) == (503, "closed")
        # Of Gradio's, what makes no sense is still told so.
        nothing = page.post(f"{root_path}/gradio_api/call/nothing", json={"data": []})
        assert nothing.status_code == 422


def test_other_sites_may_neither_call_the_page_nor_frame_it() -> None:
    page = page_behind(HttpSettings())
    answer = page.post("/echo", headers={"origin": "https://elsewhere.example"})
    assert not [name for name in answer.headers if name.startswith("access-control-allow-origin")]
    assert "frame-ancestors 'self';" in answer.headers["content-security-policy"]
    preflight = page.options(
        "/echo",
        headers={
            "origin": "https://elsewhere.example",
            "access-control-request-method": "POST",
        },
    )
    assert preflight.status_code == 403


def test_a_site_that_the_settings_name_may_frame_the_page() -> None:
    page = page_behind(HttpSettings(embedded_in=("https://wiki.example.org",)))
    policy = page.post("/echo").headers["content-security-policy"]
    assert "frame-ancestors 'self' https://wiki.example.org;" in policy
