"""More users than the limits allow, and idle tabs."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import httpx2
import pytest

from benchmarks.users import Call, ask_at_once, open_page

from .cluster import WORDS, Cluster, applications
from .users import Tab

LIMIT = 40
MANY = 200
REFUSED_SECONDS = 1.0
BACK_TO_NORMAL_SECONDS = 10.0


def test_callers_over_the_limit_are_refused_at_once_and_others_are_served(
    cluster: Cluster, soak: bool
) -> None:
    config = applications(cluster, pages=1, models=1, seconds=4)
    half = LIMIT // 2
    config["applications"][0]["args"] |= {"running_requests": half, "waiting_requests": half}
    cluster.deploy(config)
    call = Call(f"{cluster.url}/{WORDS}", "generate", ["The whale", 1, 1, "1", "1"])
    normal = ask_at_once(call, 1)[0].end
    answers = ask_at_once(call, MANY)
    time.sleep(BACK_TO_NORMAL_SECONDS - 5)
    afterwards = ask_at_once(call, 1)[0].end
    refused = [answer for answer in answers if answer.failure]
    print(
        f"REPORT {len(refused)} of {MANY} refused, the last after {max(each.end for each in refused):.2f}"
        f" s; afterwards {afterwards / normal:.2f} of the time before"
    )
    assert all(each.failure and each.failure.startswith("429") for each in refused)
    assert LIMIT <= MANY - len(refused) <= LIMIT + half
    # On a slow CI machine, it is enough that refused callers do not wait for an answer.
    first_answer = min(each.end for each in answers if not each.failure)
    assert max(each.end for each in refused) < (REFUSED_SECONDS if soak else first_answer)
    assert afterwards < 1.2 * normal


@pytest.mark.long
def test_idle_tabs_do_not_slow_down_other_users(cluster: Cluster) -> None:
    cluster.deploy(applications(cluster, pages=2, models=1, seconds=0.8))
    call = Call(f"{cluster.url}/{WORDS}", "generate", ["The whale", 1, 1, "1", "1"])

    async def compare() -> tuple[float, float]:
        alone = await first_text(call)
        async with idle_tabs(call.url, MANY):
            return alone, await first_text(call)

    alone, among_idle = asyncio.run(compare())
    print(f"REPORT first text after {alone:.2f} s, beside {MANY} tabs after {among_idle:.2f} s")
    assert among_idle < 1.2 * alone


async def first_text(call: Call) -> float:
    """The median time, in seconds, that calls by new visitors take."""
    async with httpx2.AsyncClient(timeout=60) as browser:
        function = await open_page(browser, call)
        tab = Tab(browser, call, 0, function)
        outcomes = [await tab.ask() for _ in range(7)]
    assert not [outcome.failure for outcome in outcomes if outcome.failure]
    return statistics.median(outcome.first_text - outcome.began for outcome in outcomes)


@asynccontextmanager
async def idle_tabs(url: str, tabs: int) -> AsyncIterator[None]:
    """Open pages: each has loaded the page and holds its heartbeat."""
    async with AsyncExitStack() as tabs_open:
        limits = httpx2.Limits(max_connections=None)
        for _ in range(tabs):
            browser = httpx2.AsyncClient(timeout=60, limits=limits)
            await tabs_open.enter_async_context(browser)
            (await browser.get(f"{url}/")).raise_for_status()
            beats = browser.stream("GET", f"{url}/gradio_api/heartbeat/{uuid4().hex}")
            (await tabs_open.enter_async_context(beats)).raise_for_status()
        yield
