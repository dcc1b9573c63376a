"""The hostnames that the page answers to, and the sites that may call it."""

import pytest
from fastapi import FastAPI, Request, WebSocket
from pydantic import ValidationError
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from {{ cookiecutter.__package }}.serving.http.guard import guard
from {{ cookiecutter.__package }}.serving.http.hosts import PublicUrlMiddleware
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
def test_the_page_answers_only_to_its_own_hostnames(method: str, host: str, status: int) -> None:
    headers = [(b"host", host.encode("latin-1")), (b"sec-fetch-site", b"same-origin")]
    answer = page(*NAMED).request(method, "/mcp", headers=headers)
    assert answer.status_code == status
    if status == 421:
        assert "add it to `hosts`" in answer.json()["detail"]


def test_without_configured_hostnames_only_localhost_is_accepted() -> None:
    assert page().get("http://page.example.org/mcp").status_code == 421
    assert page().get("http://localhost/mcp").status_code == 200
    assert page().get("http://192.0.2.1/mcp").status_code == 200


def test_hostnames_from_the_environment_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGE_HOSTS", "staging.example.org, *.test.example.org")
    client = page(*NAMED)
    for host in ("page.example.org", "staging.example.org", "a.test.example.org"):
        assert client.get(f"http://{host}/mcp").status_code == 200
    assert client.get("http://evil.example/mcp").status_code == 421


def test_if_a_request_has_two_hostnames_both_must_be_valid() -> None:
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
        # Proxies that send their own hostname, or no port.
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
def test_another_site_cannot_send_requests(host: str, origin: str, status: int) -> None:
    headers = {"host": host, "origin": origin}
    for method in ("POST", "PUT", "OPTIONS"):
        assert page(*NAMED).request(method, "/mcp", headers=headers).status_code == status
    # frame-ancestors decides what may embed the page, and no CORS header allows reading.
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
def test_the_origin_header_decides_if_present(sender: str, origin: str | None, status: int) -> None:
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
def test_a_hostname_forwarded_by_a_proxy_is_accepted(
    method: str, forwarded: str, status: int
) -> None:
    headers = {"host": "127.0.0.1:8000", "x-forwarded-host": forwarded}
    assert page(*NAMED).request(method, "/mcp", headers=headers).status_code == status


Seen = tuple[str, str]


def seen(
    headers: dict[str, str], path: str = "/x", root_path: str = "", public_url: str | None = None
) -> Seen:
    """The URL of a request as the page sees it, and its root path."""
    web = FastAPI()

    @web.get("/{rest:path}")
    async def answer(request: Request) -> Seen:
        return str(request.url), request.scope["root_path"]

    guard(web, HttpSettings(hosts=NAMED, public_url=public_url))
    client = TestClient(web, base_url="http://localhost:8000", root_path=root_path)
    url, root = client.get(root_path + path, headers=headers).raise_for_status().json()
    return url, root


async def test_invalid_bytes_in_a_query_are_percent_encoded() -> None:
    asked: list[str] = []

    async def page(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append(str(Request(scope, receive, send).url))

    scope: Scope = {
        "type": "http",
        "scheme": "http",
        "path": "/x",
        "query_string": b"a=\xff%41&b=\xc3\xa9 [1]",
        "headers": [(b"host", b"localhost")],
    }

    async def receive() -> Message:
        raise AssertionError("nobody reads")

    async def send(message: Message) -> None:
        raise AssertionError(message)

    await PublicUrlMiddleware(page, None)(scope, receive, send)
    assert asked == ["http://localhost/x?a=%FF%41&b=%C3%A9 [1]"]


@pytest.mark.parametrize(
    ("headers", "origin"),
    [
        ({}, "http://localhost:8000"),
        ({"x-forwarded-host": "page.example.org:8080"}, "http://page.example.org:8080"),
        ({"x-forwarded-proto": "https"}, "https://localhost:8000"),
        ({"x-forwarded-proto": "https,http"}, "https://localhost:8000"),
        ({"x-forwarded-proto": "javascript"}, "http://localhost:8000"),
        ({"host": "page.example.org", "x-forwarded-port": "8443"}, "http://page.example.org:8443"),
        ({"host": "page.example.org", "x-forwarded-port": "80"}, "http://page.example.org"),
        ({"host": "page.example.org", "x-forwarded-port": "8/@a"}, "http://page.example.org"),
        ({"x-forwarded-port": "1"}, "http://localhost:8000"),
        ({"x-gradio-server": "https://evil.example"}, "http://localhost:8000"),
        (
            {
                "x-forwarded-host": "page.example.org, inner.example",
                "x-forwarded-proto": "https",
                "x-forwarded-port": "443",
            },
            "https://page.example.org",
        ),
        (
            {
                "x-forwarded-host": "page.example.org",
                "x-forwarded-proto": "https",
                "x-forwarded-port": "8443",
            },
            "https://page.example.org:8443",
        ),
    ],
)
@pytest.mark.parametrize("root_path", ["", "/chat"])
def test_a_request_has_the_url_that_proxies_forward(
    headers: dict[str, str], origin: str, root_path: str
) -> None:
    assert seen(headers, root_path=root_path) == (f"{origin}{root_path}/x", root_path)


@pytest.mark.parametrize("root_path", ["", "/inner", "/chat"])
@pytest.mark.parametrize(
    "headers", [{}, {"x-forwarded-host": "10.1.2.3:9", "x-forwarded-proto": "http"}]
)
def test_the_public_url_in_the_settings_overrides_forwarded_headers(
    headers: dict[str, str], root_path: str
) -> None:
    for public_url in ("https://b.example.org/chat", "https://b.example.org/chat/"):
        assert seen(headers, "/x", root_path, public_url) == (
            "https://b.example.org/chat/x",
            "/chat",
        )
    at_the_root = ("https://b.example.org/x", "")
    assert seen(headers, "/x", root_path, "https://b.example.org") == at_the_root
    url, root = seen(headers, "/x", root_path, "/chat")
    assert url == f"http://{headers.get('x-forwarded-host', 'localhost:8000')}/chat/x"
    assert root == "/chat"


@pytest.mark.parametrize(
    "path", ["//evil.example/x", "/..//x", "/%2e%2e/%2f%2fevil.example", "/chat/x", "/chatty"]
)
def test_no_path_changes_the_host_or_prefix_of_the_url(path: str) -> None:
    url, root = seen({}, path, public_url="https://b.example.org/chat")
    assert url.startswith("https://b.example.org/chat/")
    assert root == "/chat"


def test_the_host_of_the_public_url_is_accepted_without_further_settings() -> None:
    web = FastAPI()
    web.post("/x")(lambda: 1)
    guard(web, HttpSettings(public_url="https://b.example.org:8443/chat"))
    client = TestClient(web, base_url="http://127.0.0.1:8000")
    for origin, status in (
        ("https://b.example.org:8443", 200),
        ("https://b.example.org", 403),
        ("https://c.example.org:8443", 403),
    ):
        assert client.post("/x", headers={"origin": origin}).status_code == status


@pytest.mark.parametrize(
    "url",
    [
        *("", "chat", "//evil.example", "/a/../b", "/a//b", "/a?b", "/a#b", "/a b", "/\\evil"),
        *("ftp://b.example.org", "https://", "https:///chat", "https://a@b.example.org/chat"),
    ],
)
def test_an_invalid_public_url_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="public_url"):
        HttpSettings(public_url=url)


WIKI = "https://wiki.example.org"


def test_only_sites_in_the_settings_may_call_the_page() -> None:
    web = FastAPI()
    web.post("/x")(lambda: 1)
    guard(web, HttpSettings(origins=(WIKI,)))
    client = TestClient(web, base_url="http://localhost")
    preflight = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,authorization",
    }
    for origin, status in (
        (WIKI, 200),
        ("http://wiki.example.org", 403),
        ("https://a.wiki.example.org", 403),
        ("https://wiki.example.org.evil.example", 403),
        ("null", 403),
    ):
        headers = {"origin": origin, "sec-fetch-site": "cross-site"}
        answer = client.post("/x", headers=headers)
        asked = client.options("/x", headers=headers | preflight)
        assert (answer.status_code, asked.status_code) == (status, status)
        allowed = {WIKI} if origin == WIKI else {None}
        found = {each.headers.get("access-control-allow-origin") for each in (answer, asked)}
        assert found == allowed


def test_an_allowed_site_must_log_in_and_can_read_the_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PAGE_PASSWORD", "a wet whale")
    web = FastAPI()
    guard(web, HttpSettings(origins=(WIKI,), login_user="ada"))
    client = TestClient(web, base_url="http://localhost")
    answer = client.post("/x", headers={"origin": WIKI})
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == WIKI
    asked = {"origin": WIKI, "access-control-request-method": "POST"}
    assert client.options("/x", headers=asked).status_code == 200


@pytest.mark.parametrize("origin", ["*", "null", "wiki.example.org", "https://a.org/", "file://a"])
def test_an_invalid_origin_is_refused_in_the_settings(origin: str) -> None:
    with pytest.raises(ValidationError, match="origins"):
        HttpSettings(origins=(origin,))


@pytest.mark.parametrize("port", [80, 443])
@pytest.mark.parametrize("name", ["usual.example.org", "*.example.org"])
def test_default_ports_are_optional(name: str, port: int) -> None:
    client = page(f"{name}:{port}")
    for host, status in (
        ("usual.example.org", 200),
        (f"usual.example.org:{port}", 200),
        ("usual.example.org:8443", 421),
    ):
        assert client.get("/mcp", headers={"host": host}).status_code == status, host
    headers = {"host": "10.1.2.3", "origin": "https://usual.example.org"}
    assert client.post("/mcp", headers=headers).status_code == 200


def test_only_the_page_itself_may_open_a_websocket() -> None:
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
def test_an_invalid_hostname_is_refused_in_the_settings(host: str) -> None:
    with pytest.raises(ValidationError, match="hosts"):
        HttpSettings(hosts=(host,))
