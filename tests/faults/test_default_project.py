"""The default project with its real models: disconnects and many calls."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import psutil
import pytest

from benchmarks.contenders import Served
from benchmarks.contenders import project as serve_project
from benchmarks.users import ask_at_once

from ..generated.project import Project
from .users import crowd

READERS, RUNNING = 100, 32
LEFT_SECONDS, LEFT_SECONDS_IN_CI = 1.0, 15.0
"""A slow machine takes longer to stop so many answers, which would otherwise run for minutes."""
SAMPLE_SECONDS = 0.25
IDLE = 0.2
"""A share of one core."""
REPLICAS = 3
"""A page and two models."""
LONG_MINUTES, SHORT_MINUTES = 15.0, 0.5
WARM_PART = 0.2
"""The share of the time after which memory should stay constant: three of fifteen minutes."""
FEW_BYTES = 4e6
"""Growth up to this is ignored: Ray's smallest processes, of 20 to 30 MB, settle that much."""


@pytest.fixture(scope="module")
def default_project(project: Project) -> Iterator[Served]:
    """The default project with real weights, served by its first command."""
    with serve_project(project, "auto") as served:
        yield served


def test_models_stop_when_their_readers_disconnect(
    default_project: Served, tmp_path: Path, soak: bool
) -> None:
    call = replace(default_project.call, data=["Tell a long story.", 400, 400, "1", "0.9"])
    models = [
        process
        for process in default_project.process.children(recursive=True)
        if process.name().startswith("ray::ServeRepl") and "smollm2" in process.cmdline()[0]
    ]
    assert len(models) == 2
    with crowd(call, READERS, tmp_path) as readers:
        wait_for(READERS - RUNNING, call.url)
        readers.process.kill()
        readers.process.wait()
        stopped = seconds_until_idle(models)
        assert not readers.outcomes()
    print(f"REPORT the models were idle {stopped:.1f} s after")
    assert stopped < (LEFT_SECONDS if soak else LEFT_SECONDS_IN_CI)
    [answer] = ask_at_once(replace(call, data=["Hello.", 4, 4, "1", "0.9"]), 1)
    assert answer.failure is None


def wait_for(readers: int, url: str) -> None:
    """Waits until this many requests are waiting."""
    deadline = time.monotonic() + 60
    while httpx2.get(f"{url}/gradio_api/queue/status").json()["queue_size"] < readers:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # The last one still has to open its stream.
    time.sleep(2)


def seconds_until_idle(processes: list[psutil.Process]) -> float:
    began = time.monotonic()
    while (window := time.monotonic()) - began < LEFT_SECONDS_IN_CI:
        before = cpu_seconds(processes)
        time.sleep(SAMPLE_SECONDS)
        if cpu_seconds(processes) - before < IDLE * SAMPLE_SECONDS:
            return window - began
    raise TimeoutError(f"{processes} still compute")


def cpu_seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


@pytest.mark.timeout(60 * (LONG_MINUTES + 5))
def test_memory_stays_constant_over_many_calls(
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
    grown = {pid: after[pid] / size for pid, size in before.items() if pid in after}
    names = {pid: name_of(pid) for pid in grown}
    for pid, ratio in sorted(grown.items(), key=lambda item: item[1]):
        print(f"REPORT {names[pid]}: {before[pid] / 1e6:.0f} MB, {ratio:.3f}")
    print(f"REPORT {len(outcomes)} calls in {seconds / 60:.0f} minutes")
    assert not [each.failure for each in outcomes if each.failure]
    assert len([name for name in names.values() if "ServeReplica" in name]) == REPLICAS
    # The caches are still filling in the first minute.
    bound = 1.05 if soak else 1.25
    over = {pid for pid, ratio in grown.items() if ratio > bound}
    assert not [names[pid] for pid in over if after[pid] - before[pid] > FEW_BYTES]


def memory(served: Served) -> dict[int, int]:
    """Returns the private bytes of each process, by its id."""
    processes = [served.process, *served.process.children(recursive=True)]
    return {process.pid: process.memory_full_info().uss for process in processes}


def name_of(pid: int) -> str:
    """Returns its name in Ray, without the current method."""
    return f"{psutil.Process(pid).name().partition('.')[0]} {pid}"
