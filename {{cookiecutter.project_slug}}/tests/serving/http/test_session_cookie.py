"""The cookie that names a page replica. `test_sessions.py` sees the router honour it."""

import re
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from {{ cookiecutter.__package }}.serving.http.sessions import SessionCookie
from {{ cookiecutter.__package }}.serving.protocol import SESSION_LOST


async def say_whether_lost(scope: Scope, receive: Receive, send: Send) -> None:
    lost = SESSION_LOST in Request(scope).headers
    await JSONResponse(lost)(scope, receive, send)


@dataclass(frozen=True)
class Replica:
    replica_tag: str
    app_name: str = "my app"


def replica(name: str, root_path: str = "", embedded: bool = False) -> TestClient:
    cookie = SessionCookie(say_whether_lost, embedded, lambda: Replica(name))
    return TestClient(cookie, base_url="https://test", root_path=root_path)


def test_a_browser_gets_a_cookie_once() -> None:
    page = replica("first")
    assert re.fullmatch(
        r"replica-my-app=first\.[0-9a-f]{16}; Path=/; HttpOnly; SameSite=Lax",
        page.get("/").headers["set-cookie"],
    )
    again = page.get("/")
    assert "set-cookie" not in again.headers
    assert again.json() is False


def test_the_cookie_of_a_replica_that_is_gone_is_replaced_and_the_page_told() -> None:
    page = replica("second")
    page.cookies.set("replica-my-app", "first.1")
    answer = page.get("/")
    assert answer.json() is True
    assert "replica-my-app=second." in answer.headers["set-cookie"]


def test_the_cookie_is_for_the_path_of_its_application() -> None:
    assert "; Path=/behind;" in replica("first", "/behind").get("/").headers["set-cookie"]


def test_in_a_frame_of_another_site_the_cookie_is_sent_as_well() -> None:
    cookie = replica("first", embedded=True).get("/").headers["set-cookie"]
    assert "SameSite=None; Secure; Partitioned" in cookie


def test_broken_cookies_of_others_are_passed_over() -> None:
    answer = replica("first").get(
        "/", headers={"cookie": 'a b=c"; =; replica-my-app=first.1; \x7f=1'}
    )
    assert "set-cookie" not in answer.headers
