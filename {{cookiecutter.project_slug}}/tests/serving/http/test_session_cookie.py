"""The cookie that names a page replica. `test_sessions.py` tests that the router honors it."""

import asyncio
import pickle
import re
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from ray.serve._private.common import RequestProtocol
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from {{ cookiecutter.__package }}.serving.base import SESSION_LOST
from {{ cookiecutter.__package }}.serving.http.sessions import (
    FOLLOW_UP_PATH,
    SessionCookieMiddleware,
    SessionRouter,
    session_cookie,
)

from ...support.routers import KnownReplica, request_of, route, router_of

WIKI = "https://wiki.example.org"


async def say_where(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse([scope["root_path"], scope["path"]])(scope, receive, send)


@pytest.mark.parametrize("root", ["", "/chat"])
def test_a_frame_without_cookies_gets_its_session_in_the_urls(
    root: str,
) -> None:
    web = SessionCookieMiddleware(say_where, True, None, (WIKI,), lambda: Replica("first"))
    page = TestClient(web, base_url="https://test", root_path=root)
    found, path = page.get(f"{root}/config", headers={"origin": WIKI}).json()
    assert re.fullmatch(root + r"/~first\.[0-9a-f]{16}", found)
    assert path == f"{found}/config"
    page.cookies.clear()
    joined = f"{found}/gradio_api/queue/join"
    answer = page.post(joined, headers={"origin": WIKI})
    assert answer.json() == [found, joined]
    assert "set-cookie" not in answer.headers
    scope = {"type": "http", "path": joined, "headers": []}
    assert session_cookie(HTTPConnection(scope), "my app") == found.rpartition("~")[2]
    page.cookies.clear()
    # Others still get a cookie.
    for headers in ({}, {"origin": "https://elsewhere.example"}):
        page.cookies.clear()
        assert page.get(f"{root}/config", headers=headers).json() == [root, f"{root}/config"]


@pytest.mark.parametrize(
    "path", ["/~first.1x/a", "/~../a", "/~first.1%00/a", "/a/~first.1/a", "/~", "//~first/1"]
)
def test_a_path_that_names_no_session_is_left_unchanged(path: str) -> None:
    web = SessionCookieMiddleware(say_where, True, None, (WIKI,), lambda: Replica("first"))
    root, _ = TestClient(web, base_url="https://test").get(path).json()
    assert root == ""


async def say_whether_lost(scope: Scope, receive: Receive, send: Send) -> None:
    lost = SESSION_LOST in Request(scope).headers
    await JSONResponse(lost)(scope, receive, send)


@dataclass(frozen=True)
class Replica:
    replica_tag: str
    app_name: str = "my app"


def replica(
    name: str, root_path: str = "", embedded: bool = False, path: str | None = None
) -> TestClient:
    cookie = SessionCookieMiddleware(say_whether_lost, embedded, path, (), lambda: Replica(name))
    return TestClient(cookie, base_url="https://test", root_path=root_path)


def test_a_browser_gets_its_cookie_once() -> None:
    page = replica("first")
    assert re.fullmatch(
        r"replica-my-app=first\.[0-9a-f]{16}; Path=/; HttpOnly; SameSite=Lax",
        page.get("/").headers["set-cookie"],
    )
    again = page.get("/")
    assert "set-cookie" not in again.headers
    assert again.json() is False


def test_the_cookie_of_a_stopped_replica_is_replaced_and_the_page_notified() -> None:
    page = replica("second")
    page.cookies.set("replica-my-app", "first.1")
    answer = page.get("/")
    assert answer.json() is True
    assert "replica-my-app=second." in answer.headers["set-cookie"]


def test_the_cookie_is_for_the_path_of_its_application() -> None:
    assert "; Path=/behind;" in replica("first", "/behind").get("/").headers["set-cookie"]
    for path, visible in (("/chat", "/chat"), ("", "/")):
        cookie = replica("first", "/behind", path=path).get("/").headers["set-cookie"]
        assert f"; Path={visible};" in cookie


def test_the_cookie_is_also_sent_in_a_frame_of_another_site() -> None:
    cookie = replica("first", embedded=True).get("/").headers["set-cookie"]
    assert "SameSite=None; Secure; Partitioned" in cookie


@pytest.mark.parametrize(
    ("headers", "secure"),
    [({}, False), ({"sec-fetch-site": "cross-site"}, True), ({"x-forwarded-proto": "https"}, True)],
)
def test_over_plain_http_a_browser_keeps_the_cookie_too(
    headers: dict[str, str], secure: bool
) -> None:
    cookie = replica("first", embedded=True).get("http://test/", headers=headers)
    assert ("Secure" in cookie.headers["set-cookie"]) == secure
    assert ("SameSite=Lax" in cookie.headers["set-cookie"]) != secure


def test_invalid_cookies_of_other_sites_are_ignored() -> None:
    answer = replica("first").get(
        "/", headers={"cookie": 'a b=c"; =; replica-my-app=first.1; \x7f=1'}
    )
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "value",
    [
        "",
        "first",
        "first.",
        ".1",
        "first.1.1",
        "first.x",
        "first.11111111111111111",
        "../first.1",
        "first.1%0a",
        "f" * 65 + ".1",
        "first." + "1" * 2**20,
    ],
)
def test_a_cookie_that_the_page_never_set_is_ignored(value: str) -> None:
    headers = [(b"cookie", f"replica-my-app={value}".encode())]
    request = HTTPConnection({"type": "http", "path": "/", "headers": headers})
    assert session_cookie(request, "my app") is None
    answer = replica("second").get("/", headers={"cookie": f"replica-my-app={value}"})
    assert answer.json() is False
    assert "replica-my-app=second." in answer.headers["set-cookie"]


@dataclass(frozen=True)
class Sent:
    """A request as Serve's proxy passes it to a router."""

    asgi_scope: Scope


@dataclass(frozen=True)
class Named:
    unique_id: str


@dataclass(frozen=True)
class RunningReplica:
    replica_id: Named


async def test_the_router_ignores_cookies_that_the_page_never_set() -> None:
    router = object.__new__(SessionRouter)
    router.initialize_state()
    router._deployment_id = SimpleNamespace(app_name="my app")
    router._replica_queue_len_cache = dict[Named, int]()
    first = RunningReplica(Named("first"))

    async def choose(cookie: bytes) -> None:
        headers = [(b"cookie", b"replica-my-app=" + cookie)]
        sent = pickle.dumps(Sent({"type": "http", "path": "/", "headers": headers}))
        metadata = SimpleNamespace(is_http_request=True)
        request = SimpleNamespace(metadata=metadata, args=[sent], routing_context=SimpleNamespace())
        assert await router.choose_replicas([first], request) == [[first]]

    for number in range(300):
        await choose(b"%d" % number * 2**16)
        await choose(b"first.%d" % number * 2**16)
    assert router._began == {}
    await choose(b"first.1")
    assert router._began == {"first.1": first}


@pytest.mark.parametrize("root", ["", "/chat"])
async def test_requests_without_a_session_may_use_any_replica_despite_a_cookie(root: str) -> None:
    router = object.__new__(SessionRouter)
    router.initialize_state()
    router._deployment_id = SimpleNamespace(app_name="my app")
    router._replica_queue_len_cache = dict[Named, int]()
    replicas = [RunningReplica(Named("first")), RunningReplica(Named("second"))]

    async def chosen(path: str) -> list[str]:
        scope = {"type": "http", "path": f"{root}{path}", "root_path": root}
        sent = pickle.dumps(Sent({**scope, "headers": [(b"cookie", b"replica-my-app=first.1")]}))
        metadata = SimpleNamespace(is_http_request=True)
        request = SimpleNamespace(metadata=metadata, args=[sent], routing_context=SimpleNamespace())
        [[replica]] = await router.choose_replicas(replicas, request)
        return [replica.replica_id.unique_id]

    for path in ("/v1/chat/completions", "/v1/models"):
        assert sorted(await chosen(path) + await chosen(path)) == ["first", "second"]
    assert router._began == {}
    for path in ("/v1", "/x/v1/models", "/gradio_api/queue/join", "/"):
        assert await chosen(path) + await chosen(path) == ["first", "first"]


@pytest.mark.timeout(60)  # If it fails, the event loop hangs, so an inner timeout would not fire.
async def test_a_request_during_a_replacement_waits_for_the_next_replica() -> None:
    router = router_of(SessionRouter, [KnownReplica("first")])
    router.update_replicas([])
    sent = pickle.dumps(Sent({"type": "http", "path": "/", "headers": []}))
    newcomer = asyncio.create_task(route(router, request_of(sent, protocol=RequestProtocol.HTTP)))
    for _ in range(10):
        await asyncio.sleep(0.01)
    assert not newcomer.done()
    second = KnownReplica("second")
    router.update_replicas([second])
    assert await newcomer == second


@pytest.mark.parametrize("prefix", ["", "/behind/a/prefix"])
@pytest.mark.parametrize(
    ("path", "follows"),
    [
        ("queue/data", True),
        ("cancel", True),
        ("reset", True),
        ("file=/tmp/a.png", True),
        ("stream/whale/1/2/playlist.m3u8", True),
        ("call/generate/0a1b", True),
        ("call/v2/generate/0a1b", True),
        ("call/generate", False),
        ("call/generate/", False),
        ("call/v2/generate", False),
        ("call/v2/generate/", False),
        ("run/generate", False),
        ("queue/join", False),
        ("upload", False),
    ],
)
def test_requests_for_the_result_of_a_call_go_to_its_replica(
    prefix: str, path: str, follows: bool
) -> None:
    assert bool(FOLLOW_UP_PATH.search(f"{prefix}/gradio_api/{path}")) == follows
