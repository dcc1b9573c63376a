"""Many sessions, some in browsers, on several page replicas."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from benchmarks.users import Call

from .cluster import COUNTING, Cluster, applications
from .users import crowd

PAGE_REPLICAS = 3
CALLS = 5
UNEVEN = 0.3
IN_BROWSERS, OTHERS = 20, 40


@pytest.mark.long
def test_sessions_stay_on_one_of_three_replicas_and_are_spread_evenly(
    cluster: Cluster, browser: Browser, tmp_path: Path
) -> None:
    cluster.deploy(applications(cluster, pages=PAGE_REPLICAS, models=1))
    url = f"{cluster.url}/{COUNTING}"
    with pages_in(browser, url, IN_BROWSERS) as pages:
        with crowd(Call(url, "count", [None]), OTHERS, tmp_path) as users:
            click_in_turns(pages)
            outcomes = users.leave()
        replicas = [page.get_by_label("Process").input_value() for page in pages]
    assert not [each.failure for each in outcomes if each.failure]
    answers = defaultdict[int, list[tuple[object, object]]](list)
    for outcome in outcomes:
        answers[outcome.user].append((outcome.answer[1], outcome.answer[2]))
    for session in answers.values():
        assert len(session) >= CALLS
        assert session == list(
            zip(itertools.repeat(session[0][0]), range(1, len(session) + 1), strict=False)
        )
        replicas.append(str(session[0][0]))
    spread = Counter(replicas)
    print(
        f"REPORT {IN_BROWSERS} sessions in Chromium and {OTHERS} others, "
        f"{CALLS * IN_BROWSERS + len(outcomes)} calls; sessions by replica {dict(spread)}"
    )
    assert spread.total() == IN_BROWSERS + OTHERS
    even = spread.total() / PAGE_REPLICAS
    assert len(spread) == PAGE_REPLICAS
    assert all(abs(sessions - even) <= UNEVEN * even for sessions in spread.values())


@contextmanager
def pages_in(browser: Browser, url: str, sessions: int) -> Iterator[list[Page]]:
    with ExitStack() as contexts:
        pages = [contexts.enter_context(browser.new_context()).new_page() for _ in range(sessions)]
        for page in pages:
            page.goto(url)
        yield pages


def click_in_turns(pages: list[Page]) -> None:
    for number, page in itertools.product(range(1, CALLS + 1), pages):
        page.get_by_role("button", name="Count", exact=True).click()
        expect(page.get_by_label("Calls")).to_have_value(f"{number}")
