"""Which names the page answers to, and which sites may send it something."""

import pytest
from fastapi import FastAPI, Request, WebSocket
from pydantic import ValidationError
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from {{ cookiecutter.__package }}.serving.http.guard import guard
from {{ cookiecutter.__package }}.serving.http.settings import HttpSettings

NAMED = ("page.example.org", "*.lab.example.org", "port.example.org:8443")


def page(*hosts: str) -> TestClient:
    web = FastAPI()

    @web.api_route("/mcp", methods=["GET", "POST", "PUT", "OPTIONS"])
    async def answer(request: Request) -> int:
        return len(await request.body())

    @web.websocket("/talk")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()

    guard(web, HttpSettings(hosts=hosts))
    return TestClient(web, base_url="http://localhost")


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("LOCALHOST.", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("10.1.2.3", 200),
        ("[fd00::1]", 200),
        ("page.example.org", 200),
        ("Page.Example.Org.:8000", 200),
        ("b.lab.example.org", 200),
        ("a.b.lab.example.org:1", 200),
        ("port.example.org:8443", 200),
        ("evil.example:8000", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("other.example.org", 421),
        ("lab.example.org", 421),
        ("evillab.example.org", 421),
        ("port.example.org", 421),
        ("127.1", 421),
        ("", 400),
        ("localhost/", 400),
        ("a@localhost", 400),
        ("localhost:", 400),
        ("[::1", 400),
        ("l\xf6calhost", 400),
    ],
)
def test_the_page_answers_to_its_own_names_alone(method: str, host: str, status: int) -> None:
    headers = [(b"host", host.encode("latin-1")), (b"sec-fetch-site", b"same-origin")]
    answer = page(*NAMED).request(method, "/mcp", headers=headers)
    assert answer.status_code == status
    if status == 421:
        assert "add it to `hosts`" in answer.json()["detail"]


def test_without_a_name_in_the_settings_every_name_but_localhost_is_wrong() -> None:
    assert page().get("http://page.example.org/mcp").status_code == 421
    assert page().get("http://localhost/mcp").status_code == 200
    assert page().get("http://192.0.2.1/mcp").status_code == 200


def test_of_two_names_in_a_request_both_have_to_be_right() -> None:
    headers = [(b"host", b"localhost"), (b"host", b"evil.example")]
    assert page().get("/mcp", headers=headers).status_code == 421


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:8000", "http://localhost:8000", 200),
        ("127.0.0.1:8000", "http://127.0.0.1:8000", 200),
        ("[::1]:8000", "http://[::1]:8000", 200),
        ("10.1.2.3", "http://10.1.2.3", 200),
        ("page.example.org", "https://page.example.org", 200),
        ("page.example.org:443", "https://page.example.org", 200),
        # Proxies that send a name of their own, or no port.
        ("10.1.2.3:8000", "https://page.example.org", 200),
        ("page.example.org", "https://page.example.org:8443", 200),
        ("localhost:8000", "http://evil.example", 403),
        ("localhost:8000", "http://localhost:3000", 403),
        ("localhost:8000", "http://127.0.0.1:8000", 403),
        ("10.1.2.3", "http://10.1.2.4", 403),
        ("localhost", "http://localhost.evil.example", 403),
        ("localhost", "null", 403),
        ("localhost", "file://", 403),
        ("localhost", "http://evil.example/http://localhost", 403),
        ("localhost", "http://localhost http://evil.example", 403),
    ],
)
def test_another_site_can_send_nothing(host: str, origin: str, status: int) -> None:
    headers = {"host": host, "origin": origin}
    for method in ("POST", "PUT", "OPTIONS"):
        assert page(*NAMED).request(method, "/mcp", headers=headers).status_code == status
    # What another site may show is in frame-ancestors, and no CORS header lets it read.
    assert page(*NAMED).get("/mcp", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("sender", "origin", "status"),
    [
        ("same-site", "https://b.lab.example.org", 200),
        ("cross-site", "https://b.lab.example.org", 200),
        ("same-site", "https://other.example.org", 403),
        ("same-site", "http://localhost:3000", 403),
        ("same-origin", "https://other.example.org", 403),
        ("same-origin", "https://page.example.org", 200),
        ("same-site", None, 403),
        ("cross-site", None, 403),
        ("same-origin", None, 200),
        ("none", None, 200),
    ],
)
def test_the_origin_decides_where_there_is_one(
    sender: str, origin: str | None, status: int
) -> None:
    headers = {"host": "page.example.org", "sec-fetch-site": sender}
    headers |= {"origin": origin} if origin else {}
    assert page(*NAMED).post("/mcp", headers=headers).status_code == status


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("forwarded", "status"),
    [
        ("page.example.org", 200),
        ("page.example.org:8443", 200),
        ("localhost:8000", 200),
        ("10.1.2.3", 200),
        ("page.example.org, internal.example", 200),
        ("", 200),
        ("evil.example", 421),
        ("evil.example, page.example.org", 421),
        ("evil.example/page.example.org", 400),
        ("page.example.org@evil.example", 400),
        ("https://page.example.org", 400),
        ("http://127.0.0.1/evil", 400),
    ],
)
def test_the_name_that_a_proxy_forwards_is_one_of_the_page(
    method: str, forwarded: str, status: int
) -> None:
    headers = {"host": "127.0.0.1:8000", "x-forwarded-host": forwarded}
    assert page(*NAMED).request(method, "/mcp", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("server", "status"),
    [
        ("https://page.example.org/behind/a/prefix", 200),
        ("http://127.0.0.1:8000?page.example.org", 200),
        ("https://evil.example", 421),
        ("https://evil.example/page.example.org", 421),
        ("https://page.example.org@evil.example/", 400),
        ("javascript:alert(1)", 400),
        ("//evil.example", 400),
        ("https:///evil.example", 400),
    ],
)
def test_the_server_that_a_proxy_of_gradio_names_is_the_page(server: str, status: int) -> None:
    headers = {"host": "127.0.0.1:8000", "x-gradio-server": server}
    assert page(*NAMED).get("/mcp", headers=headers).status_code == status


@pytest.mark.parametrize("port", [80, 443])
@pytest.mark.parametrize("name", ["usual.example.org", "*.example.org"])
def test_a_browser_leaves_out_a_usual_port(name: str, port: int) -> None:
    client = page(f"{name}:{port}")
    for host, status in (
        ("usual.example.org", 200),
        (f"usual.example.org:{port}", 200),
        ("usual.example.org:8443", 421),
    ):
        assert client.get("/mcp", headers={"host": host}).status_code == status, host
    headers = {"host": "10.1.2.3", "origin": "https://usual.example.org"}
    assert client.post("/mcp", headers=headers).status_code == 200


def test_a_websocket_is_opened_by_the_page_itself_alone() -> None:
    client = page()
    with client.websocket_connect("ws://localhost/talk", headers={"origin": "http://localhost"}):
        pass
    for host, origin in (("localhost", "http://evil.example"), ("evil.example", "")):
        headers = {"host": host, "origin": origin or f"http://{host}"}
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect("ws://localhost/talk", headers=headers),
        ):
            pass


@pytest.mark.parametrize("host", ["http://a.org", "a.org/", "*", "a.*.org", "", ".org", "a b"])
def test_what_is_no_name_of_a_host_is_refused_in_the_settings(host: str) -> None:
    with pytest.raises(ValidationError, match="hosts"):
        HttpSettings(hosts=(host,))
