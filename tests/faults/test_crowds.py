"""More users than the limits admit, tabs that idle, and readers who leave."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import httpx2
import psutil
import pytest

from benchmarks.contenders import Served
from benchmarks.contenders import project as serve_project
from benchmarks.users import Call, ask_at_once, open_page

from ..generated.project import Project
from .cluster import WORDS, Cluster, applications
from .users import ask, crowd

LIMIT = 40
MANY = 200
REFUSED_SECONDS = 1.0
BACK_TO_NORMAL_SECONDS = 10.0
READERS = 100
LEFT_SECONDS = 1.0


def test_who_is_over_the_limits_is_told_at_once_and_the_others_are_answered(
    cluster: Cluster,
) -> None:
    config = applications(cluster, pages=1, models=1)
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
        f"{len(refused)} of {MANY} refused, the last after {max(each.end for each in refused):.2f}"
        f" s; afterwards {afterwards / normal:.2f} of the time before"
    )
    assert all(each.failure and each.failure.startswith("429") for each in refused)
    assert LIMIT <= MANY - len(refused) <= LIMIT + half
    assert max(each.end for each in refused) < REFUSED_SECONDS
    assert afterwards < 1.2 * normal


def test_idle_tabs_make_nobody_wait(cluster: Cluster) -> None:
    cluster.deploy(applications(cluster, pages=2, models=1, seconds=0.8))
    call = Call(f"{cluster.url}/{WORDS}", "generate", ["The whale", 1, 1, "1", "1"])

    async def compare() -> tuple[float, float]:
        alone = await first_text(call)
        async with idle_tabs(call.url, MANY):
            return alone, await first_text(call)

    alone, among_idle = asyncio.run(compare())
    print(f"first text after {alone:.2f} s, beside {MANY} tabs after {among_idle:.2f} s")
    assert among_idle < 1.2 * alone


async def first_text(call: Call) -> float:
    """Median seconds of a newcomer's calls."""
    async with httpx2.AsyncClient(timeout=60) as browser:
        function = await open_page(browser, call)
        outcomes = [await ask(browser, call, function, 0, uuid4().hex) for _ in range(7)]
    assert not [outcome.failure for outcome in outcomes if outcome.failure]
    return statistics.median(outcome.first_text - outcome.began for outcome in outcomes)


@asynccontextmanager
async def idle_tabs(url: str, tabs: int) -> AsyncIterator[None]:
    """Pages that are open: each has loaded the page and holds its heartbeat."""
    async with AsyncExitStack() as tabs_open:
        limits = httpx2.Limits(max_connections=None)
        for _ in range(tabs):
            browser = httpx2.AsyncClient(timeout=60, limits=limits)
            await tabs_open.enter_async_context(browser)
            (await browser.get(f"{url}/")).raise_for_status()
            beats = browser.stream("GET", f"{url}/gradio_api/heartbeat/{uuid4().hex}")
            (await tabs_open.enter_async_context(beats)).raise_for_status()
        yield


@pytest.fixture(scope="module")
def default_project(project: Project) -> Iterator[Served]:
    """The default project as its first command serves it, with real weights."""
    with serve_project(project, "auto") as served:
        yield served


def test_when_the_readers_leave_the_models_stop(default_project: Served, tmp_path: Path) -> None:
    call = replace(default_project.call, data=["Tell a long story.", 400, 400, "1", "0.9"])
    models = [
        process
        for process in default_project.process.children(recursive=True)
        if process.name().startswith("ray::ServeRepl") and "smollm2" in process.cmdline()[0]
    ]
    assert len(models) == 2
    with crowd(call, READERS, tmp_path) as readers:
        wait_until_busy(models)
        readers.process.kill()
        readers.process.wait()
        time.sleep(LEFT_SECONDS)
        before = cpu_seconds(models)
        time.sleep(1)
        spent = cpu_seconds(models) - before
        assert not readers.outcomes()
    print(f"the models computed {spent:.2f} s in the second after")
    assert spent < 0.2
    [answer] = ask_at_once(replace(call, data=["Hello.", 4, 4, "1", "0.9"]), 1)
    assert answer.failure is None


def wait_until_busy(processes: list[psutil.Process]) -> None:
    """Until they have computed for some seconds."""
    began = cpu_seconds(processes)
    deadline = time.monotonic() + 60
    while cpu_seconds(processes) - began < 5:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def cpu_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


LONG_MINUTES, SHORT_MINUTES = 15.0, 1.0
WARM_PART = 0.2
"""Of the time, after which the memory should stay: three minutes of fifteen."""


def test_memory_stays_while_users_come_again_and_again(
    default_project: Served, tmp_path: Path, soak: bool
) -> None:
    seconds = 60 * (LONG_MINUTES if soak else SHORT_MINUTES)
    call = replace(default_project.call, data=["Why is the sky blue?", 1, 16, "1", "0.9"])
    with crowd(call, 20, tmp_path) as users:
        time.sleep(WARM_PART * seconds)
        before = memory(default_project)
        time.sleep((1 - WARM_PART) * seconds)
        after = memory(default_project)
        outcomes = users.leave()
    grown = {
        process: after[process] / before[process] for process in before if process in after
    }
    for process, ratio in sorted(grown.items(), key=lambda item: item[1]):
        print(f"REPORT {process}: {before[process] / 1e6:.0f} MB, {ratio:.3f}")
    print(f"REPORT {len(outcomes)} calls in {seconds / 60:.0f} minutes")
    assert not [each.failure for each in outcomes if each.failure]
    # In a minute the caches still fill.
    assert max(grown.values()) < (1.05 if soak else 1.25)


def memory(served: Served) -> dict[str, int]:
    """Bytes of each process that are its own."""
    processes = [served.process, *served.process.children(recursive=True)]
    return {
        f"{process.pid} {process.name()}": process.memory_full_info().uss for process in processes
    }
