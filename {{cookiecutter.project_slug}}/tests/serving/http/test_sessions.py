"""Several page replicas: a session stays on its replica, and survives its loss."""

import base64
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx2
import psutil
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, HttpCredentials, expect

from {{ cookiecutter.__package }}.serving.pages.compare import (
    SESSION_LOST_WARNING,
)

from ...support.compare_page import BUTTON, PROMPT_LABEL
from ...support.counting_page import MISSING_FILE, PAGE_REPLICAS, PASSWORD, USER

pytestmark = pytest.mark.served

SESSIONS = 12
CALLS = 5


@dataclass(frozen=True)
class Count:
    """The process that answered, and the number of the call in its session."""

    process: int
    number: int


def count(session: Client) -> Count:
    process, number = session.predict(api_name="/count")
    return Count(process, number)


def open_session(url: str) -> Client:
    """Logs in too; the login is valid on every replica."""
    token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    return Client(url, headers={"Authorization": f"Basic {token}"}, verbose=False)


def test_sessions_stay_on_one_replica_each_and_are_spread_evenly(counting: str) -> None:
    # A few at a time, like visitors: a busier replica gets fewer sessions.
    with ThreadPoolExecutor(PAGE_REPLICAS) as arrivals:
        sessions = list(arrivals.map(open_session, [counting] * SESSIONS))
    with ThreadPoolExecutor(SESSIONS) as users:
        answers = defaultdict[Client, list[Count]](list)
        for _ in range(CALLS):
            for session, answer in zip(sessions, users.map(count, sessions), strict=True):
                answers[session].append(answer)
    for of_session in answers.values():
        assert [answer.number for answer in of_session] == list(range(1, CALLS + 1))
        assert len({answer.process for answer in of_session}) == 1
    spread = Counter(of_session[0].process for of_session in answers.values())
    even = SESSIONS / PAGE_REPLICAS
    assert len(spread) == PAGE_REPLICAS
    assert max(spread.values()) - even <= 0.3 * even, spread
    assert even - min(spread.values()) <= 0.3 * even, spread


def test_only_the_sessions_of_a_killed_replica_move(
    counting: str,
) -> None:
    sessions = [open_session(counting) for _ in range(2 * PAGE_REPLICAS)]
    before = [count(session) for session in sessions]
    victim = before[0].process
    psutil.Process(victim).kill()
    for session, first in zip(sessions, before, strict=True):
        second = count(session)
        if first.process == victim:
            assert second.process != victim
            assert second.number == 1
            # It has its own replica again.
            assert count(session) == Count(second.process, 2)
        else:
            assert second == Count(first.process, 2)


def test_the_login_requires_the_password(counting: str, browser: Browser) -> None:
    for path in ("", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/queue/data"):
        assert httpx2.get(f"{counting}{path}").status_code == 401
    refused = httpx2.post(f"{counting}/gradio_api/run/count", json={"data": []}, auth=(USER, "x"))
    assert refused.status_code == 401
    credentials: HttpCredentials = {"username": USER, "password": PASSWORD}
    with browser.new_context(http_credentials=credentials) as context:
        page = context.new_page()
        page.goto(counting)
        page.get_by_role("button", name="Count", exact=True).click()
        expect(page.get_by_label("Calls")).to_have_value("1", timeout=30_000)


def test_an_error_of_the_page_contains_no_path(counting: str) -> None:
    with pytest.raises(AppError) as error:
        open_session(counting).predict(api_name="/fail")
    assert MISSING_FILE not in str(error.value)


def test_in_the_browser_a_moved_session_continues_and_reports_its_lost_history(
    words: str, browser: Browser
) -> None:
    with browser.new_page() as page:
        page.goto(words)
        page.get_by_label(PROMPT_LABEL).fill("The whale")
        # Requests to the root, such as the favicon, belong to another page.
        [cookie] = [each for each in page.context.cookies(words) if each.get("path") != "/"]
        page.context.add_cookies(
            [
                {
                    "name": cookie["name"],
                    "value": "gone.1",
                    "domain": cookie["domain"],
                    "path": cookie["path"],
                }
            ]
        )
        page.get_by_role("button", name=BUTTON, exact=True).click()
        expect(page.get_by_text(SESSION_LOST_WARNING)).to_be_visible(timeout=30_000)
        expect(page.locator("[id^=pane-] textarea").first).not_to_have_value("", timeout=30_000)
        expect(page.get_by_label(PROMPT_LABEL)).to_have_value("The whale")
