"""The measurements, one function for each question."""

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tests.generated.project import Project

from .contenders import (
    MODELS,
    NEW_TOKENS,
    Served,
    StandIn,
    as_rendered,
    empty_application,
    project,
    short_calls_launched,
    short_calls_on_two_replicas,
    stand_ins,
    with_variables,
)
from .users import Answer, Call, ask_at_once

COMMAND_SECONDS = 600
ALONE_LEAD_SECONDS = 30.0
SHORT_TOKENS = 8
WAY_USERS, WAY_CALLS = 2, 4
"""As many as an engine can serve without longer pauses than for one user."""
WAY_PROCESSES = ("ray::ProxyActor", ":GradioServer")
PATH_USERS, PATH_CALLS = 8, 4
PATH_PROCESSES = {
    "the page's replica": ":GradioServer",
    "Serve's proxy": "ray::ProxyActor",
    # The application has the same name as its deployment.
    "the model's replica": ":stand-in:stand-in",
}
PAGE_WAY, API_WAY = "the page", "`/v1`"
CROWD_USERS = 100
IDLE_SECONDS = 10


@dataclass(frozen=True)
class Load:
    """The results of a contender with that many users."""

    contender: str
    users: int
    tokens_per_second: float
    first_text: float
    """Median, in seconds."""
    whole_answer: float
    """Median, in seconds."""
    failures: int


def under_load(
    contender: str, start: AbstractContextManager[Served], users: Iterable[int]
) -> list[Load]:
    with start as served:
        ask_at_once(served.call, 1)
        return [load_of(contender, number, ask_at_once(served.call, number)) for number in users]


def load_of(contender: str, users: int, answers: list[Answer]) -> Load:
    """Raises RuntimeError with the reasons if all calls failed."""
    whole = [answer for answer in answers if answer.failure is None]
    if not whole:
        raise RuntimeError(f"{contender}: {', '.join({str(answer.failure) for answer in answers})}")
    tokens = len(whole) * len(MODELS) * NEW_TOKENS
    return Load(
        contender,
        users,
        tokens_per_second=tokens / max(answer.end for answer in answers),
        first_text=statistics.median(answer.first_text for answer in whole),
        whole_answer=statistics.median(answer.end for answer in whole),
        failures=len(answers) - len(whole),
    )


def median_load(loads: list[Load]) -> Load:
    """Returns the median of each figure over the rounds."""
    return replace(
        loads[0],
        tokens_per_second=statistics.median(load.tokens_per_second for load in loads),
        first_text=statistics.median(load.first_text for load in loads),
        whole_answer=statistics.median(load.whole_answer for load in loads),
        failures=sum(load.failures for load in loads),
    )


@dataclass(frozen=True)
class Alone:
    engine: float
    """Tokens per second of all engines together."""
    generate: float | None


def engines_alone(
    rendered: Project, model: Path, dtype: str, *, processes: int, rounds: int
) -> Alone:
    """Runs eight requests in each engine, with one thread per process, as in the deployments."""
    requests = 8
    rendered = with_variables(rendered, model, dtype, OMP_NUM_THREADS="1")
    begin = time.time() + ALONE_LEAD_SECONDS
    started = [
        subprocess.Popen(
            [
                *(str(rendered.environment / "bin" / "python"), "-m"),
                *("benchmarks.rivals.engine_alone", f"{begin}", f"{requests}", f"{rounds}"),
                "alone" if processes > 1 else "with-generate",
            ],
            env=rendered.env(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=COMMAND_SECONDS)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    seconds = [json.loads(output.splitlines()[-1]) for output in outputs]
    tokens = requests * NEW_TOKENS
    generate = [
        tokens / statistics.median(each["generate"]) for each in seconds if each["generate"]
    ]
    return Alone(
        engine=sum(tokens / statistics.median(each["engine"]) for each in seconds),
        generate=generate[0] if generate else None,
    )


@dataclass(frozen=True)
class Scale:
    replicas: int
    answers_per_second: float


def scale(rendered: Project, replicas: Iterable[int]) -> list[Scale]:
    """Returns answers per second of a 4-second model, with twice the users that fit at once."""
    results = []
    for number in replicas:
        model = StandIn("stand-in", seconds=4, replicas=number, at_once=4)
        with stand_ins(rendered, model) as served:
            users = 2 * number * model.at_once
            # A warm-up run, while the last replicas are still starting.
            ask_at_once(served.call, users)
            answers = ask_at_once(served.call, users)
        check(answers)
        results.append(Scale(number, users / max(answer.end for answer in answers)))
    return results


def scale_of_the_page(rendered: Project, replicas: Iterable[int]) -> list[Scale]:
    """Returns answers per second of 100 users with a model that never queues."""
    model = StandIn("stand-in", seconds=4, replicas=1, at_once=1000)
    results = []
    for number in replicas:
        with stand_ins(rendered, model, page_replicas=number) as served:
            ask_at_once(served.call, 100)
            answers = ask_at_once(served.call, 100)
        check(answers)
        results.append(Scale(number, len(answers) / max(answer.end for answer in answers)))
    return results


@dataclass(frozen=True)
class Cost:
    users: int
    delay: float
    """Median seconds in addition to the model's time."""
    cpu_seconds: float
    """CPU seconds of all processes of the application, per user."""


def cost_of_users(rendered: Project, users: Iterable[int]) -> list[Cost]:
    model = StandIn("stand-in", seconds=4, replicas=2, at_once=100)
    results = []
    with stand_ins(rendered, model) as served:
        ask_at_once(served.call, 1)
        for number in users:
            before = cpu_seconds(served)
            answers = ask_at_once(served.call, number)
            spent = cpu_seconds(served) - before
            check(answers)
            delay = statistics.median(answer.end for answer in answers) - model.seconds
            results.append(Cost(number, delay, spent / number))
    return results


@dataclass(frozen=True)
class WayCost:
    """CPU seconds of Serve's proxy and the page replica for a 100-token answer."""

    cpu_seconds: float
    """Median."""
    rounds: list[float]


def cost_of_ways(rendered: Project, rounds: int) -> tuple[WayCost, WayCost]:
    """Measures the page and `/v1` in alternation, without their idle cost."""
    model = StandIn("stand-in", seconds=4, replicas=1, at_once=100)
    with stand_ins(rendered, model) as served:
        ways = (served.call, replace(served.call, model=model.name))
        for call in ways:
            check(ask_at_once(call, WAY_USERS))
        idle = []
        taken: tuple[list[Taken], list[Taken]] = ([], [])
        for _ in range(rounds):
            idle.append(taken_by(served, lambda: time.sleep(IDLE_SECONDS)))
            for call, of_way in zip(ways, taken, strict=True):
                of_way.append(taken_by(served, partial(ask_again_and_again, call, model)))
    each_second = statistics.median(each.in_a_second for each in idle)
    page, v1 = (
        [
            (each.cpu_seconds - each_second * each.seconds) / (WAY_USERS * WAY_CALLS)
            for each in of_way
        ]
        for of_way in taken
    )
    return WayCost(statistics.median(page), page), WayCost(statistics.median(v1), v1)


@dataclass(frozen=True)
class PathCost:
    """CPU seconds for a 100-token answer, from its model to its reader."""

    way: str
    by_process: dict[str, float]
    """Medians, without the model itself: it only waits."""
    rounds: list[float]
    """Total of all three."""

    @property
    def cpu_seconds(self) -> float:
        return statistics.median(self.rounds)


@dataclass(frozen=True)
class PathTimes:
    """Share of a model's speed that reaches simultaneous users, one number per round."""

    shares: list[float]
    first_texts: list[float]
    """Median seconds."""
    crowd_answers_per_second: list[float]
    """Of `CROWD_USERS`."""


def delivery(rendered: Project, rounds: int) -> tuple[list[PathCost], PathTimes]:
    """Measures the page and `/v1` in alternation, without their idle cost."""
    model = StandIn("stand-in", seconds=4, replicas=1, at_once=1000)
    times = PathTimes([], [], [])
    with stand_ins(rendered, model) as served:
        ways = {PAGE_WAY: served.call, API_WAY: replace(served.call, model=model.name)}
        for call in ways.values():
            check(ask_at_once(call, PATH_USERS))
        costs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            idle = by_process_in(served, lambda: time.sleep(IDLE_SECONDS))
            for way, call in ways.items():
                busy = by_process_in(served, partial(ask_by_turns, call, model))
                costs[way].append(
                    {
                        name: (taken.cpu_seconds - idle[name].in_a_second * taken.seconds)
                        / (PATH_USERS * PATH_CALLS)
                        for name, taken in busy.items()
                    }
                )
            answers = ask_at_once(served.call, PATH_USERS)
            check(answers)
            times.shares.append(model.seconds / max(answer.end for answer in answers))
            times.first_texts.append(statistics.median(answer.first_text for answer in answers))
            crowd = ask_at_once(served.call, CROWD_USERS)
            check(crowd)
            times.crowd_answers_per_second.append(len(crowd) / max(each.end for each in crowd))
    medians = [
        PathCost(
            way,
            {name: statistics.median(each[name] for each in of_way) for name in PATH_PROCESSES},
            [sum(each.values()) for each in of_way],
        )
        for way, of_way in costs.items()
    ]
    return medians, times


def by_process_in(served: Served, work: Callable[[], object]) -> dict[str, "Taken"]:
    before, began = by_process(served), time.monotonic()
    work()
    after, seconds = by_process(served), time.monotonic() - began
    return {name: Taken(after[name] - before[name], seconds) for name in after}


def by_process(served: Served) -> dict[str, float]:
    return {name: cpu_seconds(served, (part,)) for name, part in PATH_PROCESSES.items()}


def ask_by_turns(call: Call, model: StandIn) -> None:
    check(ask_at_once(call, PATH_USERS, PATH_CALLS, model.seconds + 0.5))


@dataclass(frozen=True)
class Taken:
    cpu_seconds: float
    seconds: float

    @property
    def in_a_second(self) -> float:
        return self.cpu_seconds / self.seconds


def taken_by(served: Served, work: Callable[[], object]) -> Taken:
    before, began = cpu_seconds(served, WAY_PROCESSES), time.monotonic()
    work()
    return Taken(cpu_seconds(served, WAY_PROCESSES) - before, time.monotonic() - began)


def ask_again_and_again(call: Call, model: StandIn) -> None:
    check(ask_at_once(call, WAY_USERS, WAY_CALLS, model.seconds + 0.5))


def cpu_seconds(served: Served, names: tuple[str, ...] = ("",)) -> float:
    """Returns the CPU seconds of its processes whose names in Ray contain one of these parts."""
    processes = [served.process, *served.process.children(recursive=True)]
    times = [
        process.cpu_times()
        for process in processes
        if any(name in " ".join(process.cmdline()[:1]) for name in names)
    ]
    return sum(each.user + each.system for each in times)


def first_text_beside_a_slow_pane(rendered: Project) -> tuple[float, float]:
    """Returns the seconds to the fast pane's first text: alone, and next to a slow one."""
    fast = StandIn("fast", seconds=1, replicas=1, at_once=8)
    slow = StandIn("slow", seconds=10, replicas=1, at_once=8)
    medians = []
    for models in ([fast], [fast, slow]):
        with stand_ins(rendered, *models) as served:
            ask_at_once(served.call, 1)
            answers = [ask_at_once(served.call, 1)[0] for _ in range(3)]
        check(answers)
        medians.append(statistics.median(answer.first_text for answer in answers))
    return medians[0], medians[1]


@dataclass(frozen=True)
class Memory:
    """GB of all processes of the default application."""

    after_100: float
    after_1000: float
    failures_of_100_at_once: int


def memory(rendered: Project) -> Memory:
    with project(rendered, "auto") as served:
        data = [*served.call.data]
        data[1:3] = [1, SHORT_TOKENS]
        call = replace(served.call, data=data)
        failures = [answer.failure for answer in ask_at_once(call, 100) if answer.failure]
        after_100 = served.memory()
        for _ in range(9):
            check(ask_at_once(call, 100))
        return Memory(after_100, served.memory(), len(failures))


@dataclass(frozen=True)
class Start:
    """Seconds from the command to the page, and their parts."""

    page_ready: float
    imports: float
    """Imports of the command, the page process and a model process, in sequence."""
    ray: float
    """Start of Ray and Serve without an application."""


def second_start(rendered: Project, rounds: int) -> Start:
    ready = []
    for _ in range(rounds):
        began = time.perf_counter()
        with project(rendered, "auto"):
            ready.append(time.perf_counter() - began)
    package = rendered.package
    imports = (
        f"{package}.__main__, {package}.app",
        f"{package}.app",
        f"{package}.serving.deployments.deployment, {package}.serving.engine.engine",
    )
    ray = "from ray import serve", "serve.start()"
    return Start(
        statistics.median(ready),
        sum(python_seconds(rendered, "", f"import {each}", rounds) for each in imports),
        python_seconds(rendered, *ray, rounds),
    )


@dataclass(frozen=True)
class OwnStart:
    """Seconds from a command to the first answer."""

    project: float
    empty: float
    """Start of an application that imports nothing."""


def starts_of_an_own_page(rendered: Project, rounds: int) -> OwnStart:
    project: list[float] = []
    empty: list[float] = []
    for _ in range(rounds):
        for start, seconds in ((as_rendered, project), (empty_application, empty)):
            began = time.perf_counter()
            with start(rendered):
                seconds.append(time.perf_counter() - began)
    return OwnStart(statistics.median(project), statistics.median(empty))


@dataclass(frozen=True)
class ShortCall:
    """Median seconds of a call that runs for ten milliseconds."""

    users: int
    pause: float | None
    """Seconds between calls of a user; None means that all users call at once."""
    launched: float
    on_two_replicas: float


def short_calls(rendered: Project, calls: int) -> list[ShortCall]:
    """Measures one user and eight with one call per second each, and eight that call at once."""
    loads = [(1, 1.0), (8, 1.0), (8, None)]
    medians: list[list[float]] = []
    for start in (short_calls_launched, short_calls_on_two_replicas):
        medians.append([])
        with start(rendered) as served:
            for _ in range(2):
                ask_at_once(served.call, 8)
            for users, pause in loads:
                if pause is None:
                    answers = [x for _ in range(calls) for x in ask_at_once(served.call, users)]
                else:
                    answers = ask_at_once(served.call, users, calls, pause)
                check(answers)
                medians[-1].append(statistics.median(answer.end for answer in answers))
    return [
        ShortCall(users, pause, plain, ours)
        for (users, pause), plain, ours in zip(loads, *medians, strict=True)
    ]


def python_seconds(rendered: Project, before: str, code: str, rounds: int) -> float:
    """Returns the seconds that the code takes in a new process, after its setup."""
    timed = f"import time; {before}\nbegan = time.perf_counter(); {code}\n"
    command = [
        str(rendered.environment / "bin" / "python"),
        "-c",
        f"{timed}print(time.perf_counter() - began)",
    ]
    outputs = [
        subprocess.run(
            command,
            env=rendered.env(),
            stdout=subprocess.PIPE,
            text=True,
            timeout=COMMAND_SECONDS,
            check=True,
        ).stdout
        for _ in range(rounds)
    ]
    return statistics.median(float(output.splitlines()[-1]) for output in outputs)


def check(answers: list[Answer]) -> None:
    failures = [answer.failure for answer in answers if answer.failure]
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(answers)} users failed: {failures[0]}")
