"""Closed tabs and Gradio's login, on a page with two replicas."""

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from gradio_client import Client

from ...support.leaving_page import PASSWORD, USER
from ...support.servers import Served

pytestmark = pytest.mark.served

TABS = 4


@pytest.fixture
def logged_in(leaving: str) -> Iterator[list[httpx2.Client]]:
    """Visitors who have logged in, each with a separate session."""
    with ExitStack() as stack:
        visitors = [
            stack.enter_context(httpx2.Client(base_url=leaving, timeout=60)) for _ in range(TABS)
        ]
        for each in visitors:
            form = {"username": USER, "password": PASSWORD}
            each.post("/login", data=form).raise_for_status()
        yield visitors


def remember(visitor: httpx2.Client, session: str) -> tuple[int, str]:
    """Returns the process that answers, and the user that it sees."""
    functions = [each["api_name"] for each in visitor.get("/config").json()["dependencies"]]
    body = {"data": [session], "session_hash": session, "fn_index": functions.index("remember")}
    visitor.post("/gradio_api/queue/join", json=body).raise_for_status()
    answer = visitor.get("/gradio_api/queue/data", params={"session_hash": session}).text
    [done] = [line for line in answer.splitlines() if "process_completed" in line]
    _, process, user = httpx2.Response(200, text=done.removeprefix("data: ")).json()["output"][
        "data"
    ]
    return process, user


def test_each_closed_tab_is_noticed_once(
    logged_in: list[httpx2.Client], leaving_notes: Path
) -> None:
    sessions = [secrets.token_hex(5) for _ in logged_in]
    with ExitStack() as tabs:
        beats = []
        for visitor, session in zip(logged_in, sessions, strict=True):
            tab = tabs.enter_context(visitor.stream("GET", f"/gradio_api/heartbeat/{session}"))
            # Without a held connection, the tab would count as closed.
            beats.append(tab.iter_text())
            assert "ALIVE" in next(beats[-1])
        processes = {
            remember(visitor, session)[0]
            for visitor, session in zip(logged_in, sessions, strict=True)
        }
        assert len(processes) == 2
        time.sleep(3)
        noted = leaving_notes.read_text() if leaving_notes.exists() else ""
        assert [line for line in noted.splitlines() if line.split()[1] in sessions] == []
    expected = Counter(f"{what} {session}" for session in sessions for what in ("left", "forgot"))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        noted = leaving_notes.read_text() if leaving_notes.exists() else ""
        found = Counter(line for line in noted.splitlines() if line.split()[1] in sessions)
        if found >= expected:
            break
        time.sleep(0.5)
    time.sleep(3)
    lines = leaving_notes.read_text().splitlines()
    assert Counter(line for line in lines if line.split()[1] in sessions) == expected


def test_a_gradio_login_is_valid_on_each_replica(logged_in: list[httpx2.Client]) -> None:
    first, *others = logged_in
    answers = {remember(visitor, secrets.token_hex(5)) for visitor in logged_in}
    assert {user for _, user in answers} == {USER}
    assert len({process for process, _ in answers}) == 2
    # The login of one visitor with the session of another.
    logins = {name: value for name, value in first.cookies.items() if name.startswith("access")}
    for visitor in others:
        visitor.cookies.update(logins)
        assert remember(visitor, secrets.token_hex(5))[1] == USER


def test_visitors_without_a_login_are_refused_on_each_replica(leaving: str) -> None:
    for _ in range(TABS):
        body = {"data": ["ada"], "session_hash": "x", "fn_index": 0}
        assert httpx2.post(f"{leaving}/gradio_api/queue/join", json=body).status_code == 401


def test_gradios_client_logs_in_and_stays_on_its_replica(leaving: str) -> None:
    client = Client(leaving, auth=(USER, PASSWORD), verbose=False)
    answers = {client.predict("ada", api_name="/remember") for _ in range(4)}
    assert len(answers) == 1


def test_browser_state_is_the_same_on_each_replica(
    logged_in: list[httpx2.Client],
) -> None:
    kept = set()
    for visitor in logged_in:
        components = visitor.get("/config").json()["components"]
        [state] = [each["props"] for each in components if each["type"] == "browserstate"]
        kept.add((state["storage_key"], state["secret"]))
    assert len(kept) == 1


def test_the_traceback_of_a_failing_function_is_in_serves_log(
    logged_in: list[httpx2.Client], served_pages: Served
) -> None:
    logged_in[0].post("/gradio_api/run/fail", json={"data": []})
    logs = served_pages.logs / "serve"
    deadline = time.monotonic() + 30
    while not any("a whale of an error" in log.read_text() for log in logs.glob("replica_*")):
        assert time.monotonic() < deadline
        time.sleep(0.5)
