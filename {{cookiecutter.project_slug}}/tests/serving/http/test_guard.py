"""The checks that a request passes before it reaches the page."""

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from unittest.mock import AsyncMock

import gradio as gr
import pytest
from fastapi import FastAPI, HTTPException, Request
from gradio_client import Client
from httpx2 import Headers
from httpx2 import Response as Answer
from pydantic import ValidationError
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from {{ cookiecutter.__package }}.serving import Launch
from {{ cookiecutter.__package }}.serving.base import LoginError
from {{ cookiecutter.__package }}.serving.http import files as files_module
from {{ cookiecutter.__package }}.serving.http import guard as guard_module
from {{ cookiecutter.__package }}.serving.http.guard import (
    BodyLimitMiddleware,
    explain_refusals,
    guard,
)
from {{ cookiecutter.__package }}.serving.http.login import (
    logged_in,
    read_keys,
)
from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.http.settings import (
    HttpSettings,
    RequestLimits,
)

from ...support.stand_ins import in_thread

HERE = "http://localhost"
PASSWORD = "a wet whale"  # noqa: S105
DEFAULTS = Launch()
SMALL = RequestLimits(request_bytes=3000, file_bytes=5000)


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


def test_without_a_login_everybody_is_let_in() -> None:
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
def test_a_login_refuses_wrong_credentials(login: TestClient, headers: dict[str, str]) -> None:
    answer = login.post("/echo", headers=Headers(headers, encoding="latin-1"))
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic ")


def test_a_login_accepts_right_credentials(login: TestClient) -> None:
    assert login.post("/echo", headers=basic("ada", PASSWORD)).status_code == 200


@pytest.fixture
def _trusts_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    monkeypatch.setenv("PAGE_SECRET", "a secret of thirty-two characters")


def named_to(address: str, headers: list[tuple[str, str]]) -> Answer:
    """Returns the page's answer to a request with these headers from this address."""
    proxies = ["10.0.0.7", "192.168.0.0/24", "fd00::/8"]
    settings = HttpSettings.model_validate({"login_header": "X-User", "proxies": proxies})
    web = FastAPI()

    @web.post("/who")
    async def name(request: Request) -> str | None:
        return logged_in(request)

    guard(web, settings)
    browser = TestClient(web, base_url=HERE, client=(address, 1234))
    return browser.post("/who", headers=Headers(headers, encoding="utf-8"))


@pytest.mark.usefixtures("_trusts_no_header")
@pytest.mark.parametrize("address", ["10.0.0.7", "192.168.0.99", "fd00::1", "::ffff:10.0.0.7"])
def test_a_trusted_proxy_sets_the_user_name(address: str) -> None:
    assert named_to(address, [("x-user", "ada")]).json() == "ada"
    assert named_to(address, [("X-User", " Zoë ")]).json() == "Zoë"


@pytest.mark.usefixtures("_trusts_no_header")
@pytest.mark.parametrize(
    ("address", "headers"),
    [
        ("10.0.0.8", [("x-user", "ada")]),
        ("127.0.0.1", [("x-user", "ada")]),
        ("no address", [("x-user", "ada")]),
        ("10.0.0.8", [("x-user", "ada"), ("x-forwarded-for", "10.0.0.7")]),
        ("10.0.0.7", []),
        ("10.0.0.7", [("x-user", "")]),
        ("10.0.0.7", [("x-user", "eve"), ("x-user", "ada")]),
        ("10.0.0.7", [("x-user", "a" * 257)]),
        ("10.0.0.7", [("authorization", "Basic YWRhOg==")]),
    ],
)
def test_other_requests_cannot_set_the_user_name(
    address: str, headers: list[tuple[str, str]]
) -> None:
    assert named_to(address, headers).status_code == 401


@pytest.mark.usefixtures("_trusts_no_header")
def test_the_start_refuses_an_unprotected_user_header(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = HttpSettings.model_validate({"login_header": "X-User", "proxies": ["10.0.0.7"]})
    [check] = settings.start_checks()
    check()
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(LoginError, match="RAY_SERVE_ENABLE_HA_PROXY cannot be set"):
        check()
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    monkeypatch.delenv("FORWARDED_ALLOW_IPS")
    with pytest.raises(LoginError, match="export FORWARDED_ALLOW_IPS="):
        check()
    monkeypatch.delenv("PAGE_SECRET")
    with pytest.raises(LoginError, match="login_header needs PAGE_SECRET"):
        guard(FastAPI(), settings)


def who(request: gr.Request) -> str:
    return str(request.username)


@pytest.mark.parametrize("kind", ["form", "header", "keyword"])
def test_a_function_gets_the_name_of_the_user(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("PAGE_PASSWORD", PASSWORD)
    with gr.Blocks() as blocks:
        name = gr.Textbox()
        gr.Button().click(who, outputs=name)
        gr.Button().click(who, outputs=name, queue=False, api_name="at_once")
    options: dict[str, dict[str, object]] = {
        "form": {"auth": ("ada", PASSWORD)},
        "header": {"headers": {**basic("ada", PASSWORD), "page.user": "bob", "x-user": "bob"}},
        "keyword": {"httpx_kwargs": {"auth": ("ada", PASSWORD)}},
    }
    with in_thread(mount(blocks, HttpSettings(login_user="ada"))) as url:
        client = Client(url, verbose=False, **options[kind])
        assert client.predict(api_name="/who") == "ada"
        assert client.predict(api_name="/at_once") == "ada"
        for wrong in (("ada", "wrong"), ("bob", PASSWORD), ("", "")):
            with pytest.raises(Exception, match="Could not login"):
                Client(url, verbose=False, auth=wrong)
    with in_thread(mount(blocks, HttpSettings())) as url:
        assert Client(url, verbose=False).predict(api_name="/who") == "None"


def whose_tools(page: TestClient, path: str, headers: dict[str, str]) -> object:
    answer = page.get(path, headers=headers)
    return answer.json() if answer.status_code == 200 else answer.status_code


@pytest.mark.parametrize("root", ["", "/chat"])
def test_with_a_login_tools_accept_only_keys_and_keys_open_only_tools(
    monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.setenv("PAGE_PASSWORD", PASSWORD)
    monkeypatch.setenv("API_KEYS", "bob:whale,bob:second-whale")
    web = FastAPI()

    @web.get("/{path:path}")
    async def tell(request: Request) -> str | None:
        return logged_in(request)

    guard(web, HttpSettings(login_user="ada"), offers_tools=True)
    page = TestClient(web, base_url=HERE, root_path=root)
    keys = [{"authorization": f"Bearer {key}"} for key in ("whale", "second-whale")]
    tools = (f"{root}{path}" for path in ("/mcp", "/gradio_api/mcp", "/gradio_api/mcp/http/"))
    for path in tools:
        assert [whose_tools(page, path, key) for key in keys] == ["bob", "bob"]
        for headers in ({}, basic("ada", PASSWORD), {"authorization": "Bearer whal"}):
            assert whose_tools(page, path, headers) == 401
    for path in ("/", "/mcp/x", "/gradio_api/mcp/schema", "/mcpx", "/v1/models", "/login"):
        assert whose_tools(page, f"{root}{path}", keys[0]) == 401
        assert whose_tools(page, f"{root}{path}", basic("ada", PASSWORD)) == "ada"


def test_with_a_login_but_no_keys_tools_are_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PAGE_PASSWORD", PASSWORD)
    monkeypatch.delenv("API_KEYS", raising=False)
    with pytest.raises(LoginError, match="mcp needs API keys, but there are none"):
        guard(FastAPI(), HttpSettings(login_user="ada"), offers_tools=True)
    _, check = HttpSettings(login_user="ada", mcp=True).start_checks()
    with pytest.raises(LoginError, match="mcp needs API keys"):
        check()
    assert len(HttpSettings(login_user="ada").start_checks()) == 1


def test_a_file_of_keys_is_read_again_when_it_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    monkeypatch.delenv("API_KEYS", raising=False)
    monkeypatch.setenv("API_KEYS_FILE", str(file))
    with pytest.raises(LoginError, match="file in API_KEYS_FILE cannot be read: No such file"):
        read_keys("the test asks for keys")
    file.write_text("ada:one\nbob:two\n", "utf-8")
    keys = read_keys("the test asks for keys")
    assert (keys.name_of("Bearer one"), keys.name_of("bearer two")) == ("ada", "bob")
    # Like Kubernetes, which replaces the old file with a new one.
    new = tmp_path / "new"
    new.write_text("bob:two, cleo:three", "utf-8")
    new.replace(file)
    found = [keys.name_of(f"Bearer {key}") for key in ("one", "two", "three")]
    assert found == [None, "bob", "cleo"]
    caplog.set_level("WARNING", "ray.serve")
    for broken in ("bob", "\x00:", None):
        file.write_text(broken, "utf-8") if broken else file.unlink()
        assert keys.name_of("Bearer two") == "bob"
    assert caplog.text.count("the old ones stay valid") == 3
    file.write_text("", "utf-8")
    assert keys.name_of("Bearer two") is None


def test_keys_are_neither_stored_nor_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "ada:secret-whale")
    assert "secret" not in str(vars(read_keys("the test asks for keys")))
    monkeypatch.setenv("API_KEYS_FILE", "/keys")
    with pytest.raises(LoginError, match="are both set"):
        read_keys("the test asks for keys")


@pytest.mark.parametrize("root", ["", "/chat"])
def test_a_form_login_works_at_the_path_of_the_page(login: TestClient, root: str) -> None:
    page = TestClient(login.app, base_url=HERE, root_path=root)
    form = {"username": "ada", "password": PASSWORD}
    for url in ("https://localhost", "http://localhost"):
        page.cookies.clear()
        answer = page.post(f"{url}{root}/login", data=form)
        assert answer.json() == {"success": True}
        cookie = answer.headers["set-cookie"]
        assert f"; Path={root or '/'};" in cookie
        assert "HttpOnly" in cookie
        assert ("Secure" in cookie) == url.startswith("https")
        assert PASSWORD not in cookie
    assert page.post(f"{root}/echo").status_code == 200
    page.cookies.clear()
    for cookie in ("", "x", "ada", "\xff" * 64):
        headers = [(b"cookie", f"page-login={cookie}".encode("latin-1"))]
        assert page.post(f"{root}/echo", headers=headers).status_code == 401
    for path in ("/login/x", "//login", "/x/login"):
        assert page.post(f"{root}{path}", data=form).status_code == 401
    assert page.post(f"{root}/login", data=form | {"x": "y" * 10_000}).status_code == 413


def test_a_login_without_a_password_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PAGE_PASSWORD", raising=False)
    with pytest.raises(LoginError, match="PAGE_PASSWORD is not set"):
        guard(FastAPI(), HttpSettings(login_user="ada"))


@pytest.mark.parametrize("sender", ["cross-site", "same-site"])
def test_another_site_cannot_send_requests(sender: str) -> None:
    page = page_behind(HttpSettings())
    files = {"files": ("a.txt", b"abc")}
    assert page.post("/echo", files=files, headers={"sec-fetch-site": sender}).status_code == 403
    assert page.post("/echo", headers={"sec-fetch-site": "same-origin"}).status_code == 200


def status_of_upload(
    blocks: gr.Blocks, path: str = "upload", name: str = "files", launch: Launch = DEFAULTS
) -> int:
    with TestClient(mount(blocks, HttpSettings(), launch), base_url=HERE) as page:
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
        (page_with(lambda: gr.File(visible=False)), 200),
    ],
    ids=[
        *("text", "html", "file", "multimodal", "html that uploads", "render", "render in a tab"),
        "hidden",
    ],
)
def test_a_page_accepts_files_only_if_it_has_a_component_for_them(
    blocks: gr.Blocks, status: int
) -> None:
    assert status_of_upload(blocks) == status


def test_a_page_with_a_script_may_accept_files_too() -> None:
    script = "() => fetch('/gradio_api/upload', {method: 'POST', body: new FormData(form)})"
    for launch in (Launch(js=script), Launch(head=f"<script>({script})()</script>")):
        assert status_of_upload(page_with(gr.Textbox), launch=launch) == 200
    assert status_of_upload(page_with(gr.Textbox), launch=Launch(js=True)) == 404


def many(number: int, size: int) -> list[tuple[str, tuple[str | None, bytes]]]:
    return [("files", (f"{each}.bin", bytes(size))) for each in range(number)]


@pytest.mark.parametrize("announced", [True, False])
def test_files_have_their_own_size_limit(
    announced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    web = mount(page_with(gr.File), HttpSettings(limits=SMALL))
    with TestClient(web, base_url=HERE) as page:

        def upload(files: list[tuple[str, tuple[str | None, bytes]]]) -> Answer:
            request = page.build_request("POST", "/gradio_api/upload", files=files)
            if announced:
                return page.send(request)
            parts = iter([request.read()])
            kind = {"content-type": request.headers["content-type"]}
            return page.post(request.url, content=parts, headers=kind)

        assert upload(many(1, 5000)).status_code == 200
        # Larger than the limit of a request without files.
        assert upload(many(8, 5000)).status_code == 200
        there = kept_in(tmp_path)
        for files in (many(1, 5001), many(11, 5000), [*many(10, 5000), ("a", (None, b"b" * 9999))]):
            answer = upload(files)
            assert answer.status_code == 413
            assert "5,000" in answer.text or "5000" in answer.text
        assert kept_in(tmp_path) == there
        # A request without files stays limited, even at the URLs for files.
        call = {"data": ["x" * 3000], "fn_index": 0, "session_hash": "me"}
        for path in ("queue/join", "upload", "component_server"):
            assert page.post(f"/gradio_api/{path}", json=call).status_code == 413


def test_the_file_limit_does_not_apply_to_a_page_without_files() -> None:
    with TestClient(mount(page_with(gr.Textbox), HttpSettings(limits=SMALL)), HERE) as page:
        for path in ("upload", "component_server"):
            answer = page.post(f"/gradio_api/{path}", files=many(1, 4000))
            assert answer.status_code == 413


def test_text_fields_beside_a_file_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MAX_FIELD_BYTES", 100)
    with TestClient(mount(page_with(gr.File), HttpSettings()), base_url=HERE) as page:
        for query in ("", "?upload_id=1"):
            address = f"/gradio_api/upload{query}"
            file = ("files", ("a.txt", b"abc"))
            assert page.post(address, files=[file, ("text", (None, b"x" * 100))]).status_code == 200
            assert page.post(address, files=[("text", (None, b"x" * 101)), file]).status_code == 413


def kept_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


async def test_an_interrupted_upload_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(guard_module, "BODY_SECONDS", 0.1)
    web = mount(page_with(gr.File), HttpSettings())
    begun = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a"\r\n\r\nabc'
    headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
        "path": "/gradio_api/upload",
        "query_string": b"",
        "headers": headers,
    }
    for ending in ("pause", "disconnect"):
        there = list[int]()
        parts = iter([{"type": "http.request", "body": begun, "more_body": True}])

        async def receive(
            parts: Iterator[Message] = parts, there: list[int] = there, ending: str = ending
        ) -> Message:
            if part := next(parts, None):
                return part
            there.append(len(kept_in(tmp_path)))
            if ending == "disconnect":
                return {"type": "http.disconnect"}
            await asyncio.sleep(60)
            raise AssertionError

        with suppress(Exception):
            await asyncio.wait_for(web(scope, receive, AsyncMock()), 10)
        assert there[0] == 1
        assert kept_in(tmp_path) == set()


async def test_a_slow_client_may_upload_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "BODY_SECONDS", 0.5)

    async def receive() -> Message:
        await asyncio.sleep(0.1)
        parts.append(b"a")
        return {"type": "http.request", "body": b"a", "more_body": len(parts) < 10}

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        assert await Request(scope, receive, send).body() == b"a" * 10

    parts = list[bytes]()
    limited = BodyLimitMiddleware(echo, SMALL, takes_files=True)
    await limited({"type": "http", "path": "/", "headers": []}, receive, AsyncMock())
    assert len(parts) == 10


@pytest.mark.parametrize("component", [gr.Textbox, gr.File])
def test_uploads_of_recordings_are_refused(component: Callable[[], object]) -> None:
    assert status_of_upload(page_with(component), "process_recording", "video") == 404


def in_parts(number: int) -> Iterator[bytes]:
    """A body without a Content-Length header."""
    for _ in range(number):
        yield bytes(1000)


def test_a_body_over_the_limit_is_refused_with_or_without_a_length() -> None:
    page = page_behind(HttpSettings(limits=SMALL))
    assert page.post("/echo", content=in_parts(3)).json() == 3000
    assert page.post("/echo", content=bytes(3000)).json() == 3000
    for body in (in_parts(4), bytes(3001)):
        answer = page.post("/echo", content=body)
        assert answer.status_code == 413
        assert "3,000 bytes" in answer.json()["detail"]


async def test_an_interrupted_body_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
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

    scope = {"type": "http", "path": "/", "headers": []}
    limited = BodyLimitMiddleware(echo, SMALL, takes_files=False)
    await asyncio.wait_for(limited(scope, receive, AsyncMock()), 10)


async def test_a_client_that_stays_connected_after_its_body_is_served(
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

    scope = {"type": "http", "path": "/", "headers": []}
    limited = BodyLimitMiddleware(stream, SMALL, takes_files=False)
    await asyncio.wait_for(limited(scope, messages.get, AsyncMock()), 10)


def test_a_full_queue_says_when_to_retry() -> None:
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
    """A page with functions that divide, choose or fail."""
    with gr.Blocks() as blocks:
        number = gr.Number()
        gr.Button("Divide").click(lambda number: 1 / number, number, number, api_name="divide")
        gr.Button("Refuse").click(refuse, api_name="refuse")
        choice = gr.Radio(["one", "two"])
        gr.Button("Choose").click(lambda choice: choice, choice, api_name="choose")
        for function in (look_up, steps, later):
            gr.Button().click(function, outputs=number, queue=False)
        gr.Button().click(too_few, outputs=[number, choice], queue=False)
        gr.HTML(server_functions=[look_up, later])
        gr.ImageEditor()
    web = mount(blocks, HttpSettings())
    with TestClient(web, base_url=HERE, raise_server_exceptions=False) as page:
        yield page


def refuse() -> None:
    raise gr.Error("Not on Sundays.")


def look_up(name: str = "bob") -> int:
    return {"ada": 1}[name]


def steps() -> Iterator[int]:
    yield json.loads("no number")


def too_few() -> list[int]:
    return [1]


async def later(name: str = "bob") -> int:
    await asyncio.sleep(0)
    raise ValueError(name)


@pytest.mark.parametrize("function", ["look_up", "steps", "too_few", "later", "refuse"])
def test_a_failing_function_is_not_reported_as_a_bad_request(
    small_page: TestClient, function: str
) -> None:
    assert small_page.post(f"/gradio_api/run/{function}", json={"data": []}).status_code == 500
    assert small_page.post("/gradio_api/run/divide", json={"data": [0]}).status_code == 500
    assert small_page.post("/gradio_api/run/choose", json={"data": ["three"]}).status_code == 422


def test_errors_of_component_functions_are_distinguished_from_bad_requests(
    small_page: TestClient,
) -> None:
    kinds = {each["type"]: each["id"] for each in small_page.get("/config").json()["components"]}
    for function, component, status in (
        ("look_up", kinds["html"], 500),
        ("later", kinds["html"], 500),
        ("nothing", kinds["html"], 404),
        ("look_up", 99_999, 422),
        ("accept_blobs", kinds["imageeditor"], 422),
    ):
        asked = {"data": "bob", "component_id": component, "session_hash": "me"}
        answer = small_page.post("/gradio_api/component_server", json=asked | {"fn_name": function})
        assert answer.status_code == status, function


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("run/nothing", {"data": []}),
        ("call/nothing", {"data": []}),
        ("call/v2/nothing", {}),
        ("run/divide", {"data": []}),
        ("run/choose", {"data": ["three"]}),
        ("run/choose", {"data": [{"a": "choice"}]}),
        ("run/divide", {"data": [1], "fn_index": 99}),
        ("queue/join", {"data": [1], "fn_index": -1, "session_hash": "me"}),
    ],
)
def test_an_invalid_request_is_refused_with_a_reason(
    small_page: TestClient, path: str, body: dict[str, object]
) -> None:
    assert small_page.post(f"/gradio_api/{path}", json=body).status_code == 422
    assert small_page.post("/gradio_api/run/divide", json={"data": [2]}).json()["data"] == [0.5]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("call/secret-whale", {"data": []}),
        ("run/choose", {"data": [{"secret-whale": 1}]}),
        ("run/divide", {"data": "secret-whale"}),
    ],
)
def test_the_log_repeats_nothing_of_an_invalid_request(
    small_page: TestClient, path: str, body: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert small_page.post(f"/gradio_api/{path}", json=body).status_code == 422
    assert "secret-whale" not in caplog.text


def test_errors_of_the_page_are_shown_and_python_errors_are_not(small_page: TestClient) -> None:
    answer = small_page.post("/gradio_api/run/refuse", json={"data": []})
    assert answer.json()["error"] == "Not on Sundays."
    assert "division" not in small_page.post("/gradio_api/run/divide", json={"data": [0]}).text


def test_a_server_error_stays_a_server_error() -> None:
    web, mounted = FastAPI(), FastAPI()

    @mounted.get("/")
    async def fail() -> None:
        raise RuntimeError

    guard(web, HttpSettings())
    web.mount("/", mounted)
    explain_refusals(web)
    assert TestClient(web, base_url=HERE, raise_server_exceptions=False).get("/").status_code == 500


@pytest.mark.parametrize("root_path", ["", "/behind/a/prefix"])
def test_responses_of_custom_routes_and_middleware_are_unchanged(root_path: str) -> None:
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
        # Invalid requests to Gradio's own routes are still refused.
        nothing = page.post(f"{root_path}/gradio_api/call/nothing", json={"data": []})
        assert nothing.status_code == 422


def test_other_sites_can_neither_call_nor_embed_the_page() -> None:
    page = page_behind(HttpSettings())
    answer = page.post("/echo", headers={"origin": "https://elsewhere.example"})
    assert not [name for name in answer.headers if name.startswith("access-control-allow-origin")]
    assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
    preflight = page.options(
        "/echo",
        headers={
            "origin": "https://elsewhere.example",
            "access-control-request-method": "POST",
        },
    )
    assert preflight.status_code == 403


def test_a_site_in_the_settings_may_embed_the_page() -> None:
    page = page_behind(HttpSettings(embedded_in=("https://wiki.example.org",)))
    policy = page.post("/echo").headers["content-security-policy"]
    assert policy == "frame-ancestors 'self' https://wiki.example.org"


def test_the_sources_that_a_page_may_load_are_a_setting() -> None:
    page = page_behind(HttpSettings(content_policy="object-src 'none'"))
    policy = page.post("/echo").headers["content-security-policy"]
    assert policy == "frame-ancestors 'self'; object-src 'none'"
    with pytest.raises(ValidationError, match="content_policy"):
        HttpSettings(content_policy="object-src 'none'\r\nset-cookie: a=b")


def test_a_stream_is_not_buffered() -> None:
    def stream(_: Request) -> Response:
        return Response("data: 1\n\n", media_type="text/event-stream")

    def own(_: Request) -> Response:
        return Response(media_type="text/event-stream", headers={"cache-control": "no-store"})

    web = FastAPI(routes=[Route("/stream", stream), Route("/own", own)])
    guard(web, HttpSettings())
    page = TestClient(web, base_url=HERE)
    headers = page.get("/stream").headers
    assert headers["x-accel-buffering"] == "no"
    assert headers["cache-control"] == "no-cache, no-transform"
    assert page.get("/own").headers["cache-control"] == "no-store"
    assert "x-accel-buffering" not in page.get("/nothing").headers
