"""Logs and metrics of function calls, for each kind of request."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import gradio as gr
import httpx2
import pytest

from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.http.settings import HttpSettings
from {{ cookiecutter.__package }}.serving.telemetry.calls import endpoint_of

from ...support.stand_ins import in_thread, until

SENT = "a wet whale"


class Gate:
    """Blocks a function until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()


def page_of(gate: Gate) -> gr.Blocks:
    def greet(name: str) -> str:
        return f"Hello {name}"

    def fail(name: str) -> str:
        raise ValueError(f"no {name}")

    def say_no(name: str) -> str:
        raise gr.Error(f"not {name}")

    async def count(name: str) -> AsyncGenerator[str, None]:
        for number in range(3):
            yield f"{name} {number}"

    async def fail_half_way(name: str) -> AsyncGenerator[str, None]:
        yield name
        raise ValueError

    def wait(name: str) -> str:
        gate.reached.set()
        gate.opened.wait(60)
        return name

    def check(_name: str) -> Any:
        return gr.validate(False, "never")

    def greet_all(names: list[str]) -> list[list[str]]:
        return [[f"Hello {name}" for name in names]]

    @gr.cache
    def remember(name: str) -> str:
        return name

    with gr.Blocks() as page:
        name, timer = gr.Textbox(), gr.Timer(1000)
        for function in (greet, fail, say_no, count, fail_half_way, wait, remember):
            gr.Button().click(function, name, name)
        gr.Button().click(greet, name, name, api_name="direct", queue=False)
        gr.Button().click(greet, name, name, api_name="checked", validator=check)
        gr.Button().click(greet_all, name, name, batch=True)
        gr.Button().click(lambda name: name, name, name, api_visibility="private")
        gr.Button().click(greet, gr.Dropdown(["a"]), name, api_name="choose")
        timer.tick(greet, name, name, api_name="ticked")
        timer.tick(fail, name, name, api_name="failed_tick")
        page.load(greet, name, name, api_name="loaded")

        @gr.render(inputs=name)
        def draw(shown: str) -> None:
            for number in range(3):
                button = gr.Button(f"{shown} {number}")
                button.click(greet, name, name, api_name=f"{shown}_{number}")

    return page.queue(max_size=1)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def page(gate: Gate) -> Iterator[httpx2.Client]:
    with in_thread(mount(page_of(gate), HttpSettings())) as url:
        headers = {"x-request-id": "whale-1"}
        with httpx2.Client(base_url=f"{url}/gradio_api/", timeout=60, headers=headers) as client:
            yield client
            gate.opened.set()


def run(page: httpx2.Client, function: str) -> None:
    page.post(f"run/{function}", json={"data": [SENT]})


def join(page: httpx2.Client, function: str | int) -> httpx2.Response:
    if isinstance(function, str):
        config = page.get("../config").json()
        names = {each["api_name"]: each["id"] for each in config["dependencies"]}
        function = names[function]
    body = {"data": [SENT], "fn_index": function, "session_hash": "whales"}
    return page.post("queue/join", json=body)


def queue(page: httpx2.Client, function: str | int) -> str:
    answer = join(page, function)
    return page.get("queue/data", params={"session_hash": "whales"}).text if answer else ""


def call(page: httpx2.Client, function: str) -> None:
    event = page.post(f"call/{function}", json={"data": [SENT]}).json()["event_id"]
    page.get(f"call/{function}/{event}")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """Returns a function that returns the log lines of all calls so far."""
    caplog.set_level("INFO", "ray.serve")
    return lambda: [vars(record) for record in caplog.records if record.message == "call"]


Lines = Callable[[], list[dict[str, Any]]]
Ask = Callable[[httpx2.Client, str], object]


@pytest.mark.parametrize("ask", [run, queue, call])
@pytest.mark.parametrize(
    ("endpoint", "outcome"),
    [
        *(("greet", "done"), ("count", "done"), ("fail", "failed"), ("say_no", "invalid")),
        *(("choose", "invalid"), ("greet_all", "done"), ("remember", "done")),
        *(("lambda", "done"), ("direct", "done"), ("failed_tick", "failed")),
    ],
)
async def test_a_call_logs_one_line_with_its_outcome(
    endpoint: str, outcome: str, ask: Ask, page: httpx2.Client, lines: Lines
) -> None:
    ask(page, endpoint)
    await until(lambda: bool(lines()))
    [line] = lines()
    assert (line["endpoint"], line["outcome"]) == (endpoint, outcome)
    assert line["request"] == "whale-1"
    assert line["seconds"] >= 0
    assert (line["levelno"] == logging.ERROR) == (outcome == "failed")
    assert ("ValueError at " in line.get("error", "")) == (outcome == "failed")
    assert SENT not in str(line)


@pytest.mark.parametrize(("ask", "outcome"), [(queue, "failed"), (call, "failed"), (run, "done")])
async def test_a_generator_counts_as_one_call(
    ask: Ask, outcome: str, page: httpx2.Client, lines: Lines
) -> None:
    # A direct call returns only the first value.
    ask(page, "fail_half_way")
    await until(lambda: bool(lines()))
    assert [line["outcome"] for line in lines()] == [outcome]


async def test_input_refused_by_a_validator_counts_as_invalid(
    page: httpx2.Client, lines: Lines
) -> None:
    assert join(page, "checked").status_code == 422
    assert [(line["endpoint"], line["outcome"]) for line in lines()] == [("checked", "invalid")]


async def test_a_wrong_number_of_inputs_counts_as_invalid(
    page: httpx2.Client, lines: Lines
) -> None:
    page.post("run/greet", json={"data": []})
    assert [line["outcome"] for line in lines()] == ["invalid"]


async def test_a_call_answered_from_a_cache_counts_as_done(
    page: httpx2.Client, lines: Lines
) -> None:
    for number in (1, 2):
        queue(page, "remember")
        await until(lambda number=number: len(lines()) == number)  # type: ignore[misc]
    assert [line["outcome"] for line in lines()] == ["done", "done"]


async def test_a_call_rejected_by_a_full_queue_counts_as_refused(
    gate: Gate, page: httpx2.Client, lines: Lines
) -> None:
    join(page, "wait")
    await asyncio.to_thread(gate.reached.wait)
    assert join(page, "wait").is_success
    assert join(page, "greet").status_code == 429
    [line] = lines()
    assert (line["endpoint"], line["outcome"], line["waited_seconds"]) == ("greet", "refused", None)


async def test_a_disconnect_cancels_running_and_waiting_calls(
    gate: Gate, page: httpx2.Client, lines: Lines
) -> None:
    join(page, "wait")
    await asyncio.to_thread(gate.reached.wait)
    join(page, "wait")
    with page.stream("GET", "queue/data", params={"session_hash": "whales"}) as news:
        next(news.iter_raw())
    await until(lambda: len(lines()) == 1)
    [waited] = lines()
    assert (waited["outcome"], waited["seconds"]) == ("cancelled", None)
    assert waited["waited_seconds"] > 0
    gate.opened.set()
    await until(lambda: len(lines()) == 2)
    assert lines()[1]["outcome"] == "cancelled"


async def test_timers_and_load_events_log_only_their_failures(
    page: httpx2.Client, lines: Lines
) -> None:
    for function in ("ticked", "loaded", "failed_tick"):
        queue(page, function)
    await until(lambda: bool(lines()))
    assert [line["endpoint"] for line in lines()] == ["failed_tick"]


async def test_rendered_functions_are_logged_without_user_input(
    page: httpx2.Client, lines: Lines
) -> None:
    drawn = page_of(Gate())
    [draw] = [each for each in drawn.fns.values() if each.renderable]
    assert endpoint_of(draw) == "draw"
    rendered = [
        json.loads(line.removeprefix("data: "))
        for line in queue(page, draw._id).splitlines()
        if '"process_completed"' in line
    ]
    [made] = [each["output"]["render_config"]["dependencies"] for each in rendered]
    assert {each["api_name"] for each in made} == {f"{SENT}_{number}" for number in range(3)}
    for function in made:
        queue(page, function["id"])
    await until(lambda: len(lines()) == len(made))
    assert {line["endpoint"] for line in lines()} == {"greet"}
