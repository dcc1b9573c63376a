"""Metrics and logs of the served application."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from prometheus_client.parser import text_string_to_metric_families

from {{ cookiecutter.__package }}.serving.base import PAGE_DEPLOYMENT
from {{ cookiecutter.__package }}.serving.protocol import (
    BusyError,
    End,
    GenerationOptions,
    PromptError,
)
from {{ cookiecutter.__package }}.serving.telemetry import metrics
from {{ cookiecutter.__package }}.serving.telemetry.metrics import MeteredModel

from ...support.compare_page import MODELS
from ...support.servers import Served
from ...support.stand_ins import StandIn, broken, fast, user

served = pytest.mark.served

REPORT_SECONDS = 60
ANSWERED = {"min_new_tokens": 5, "max_new_tokens": 5}


async def leave(model: MeteredModel) -> None:
    async with aclosing(model.stream(user("The whale"), GenerationOptions())) as pieces:
        await anext(pieces)


async def leave_at_the_end(model: MeteredModel) -> None:
    async with aclosing(model.stream(user("The whale"), GenerationOptions())) as pieces:
        async for piece in pieces:
            if isinstance(piece, End):
                return


async def read(model: MeteredModel) -> None:
    async for _ in model.stream(user("The whale"), GenerationOptions()):
        pass


@pytest.mark.parametrize(
    ("model", "use", "outcome"),
    [
        (fast(), read, "done"),
        (fast(), leave_at_the_end, "done"),
        (fast(), leave, "cancelled"),
        (StandIn("busy", [], failure=BusyError("Later.")), read, "refused"),
        (StandIn("long", [], failure=PromptError("Shorter.")), read, "unreadable"),
        (broken(), read, "failed"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
async def test_every_answer_logs_one_line_with_its_outcome(
    model: StandIn,
    use: Callable[[MeteredModel], Awaitable[None]],
    outcome: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "ray.serve")
    with suppress(BusyError, PromptError, RuntimeError):
        await use(MeteredModel(model, log_prompts=False))
    [line] = [vars(record) for record in caplog.records if record.message == "answer"]
    assert (line["model"], line["outcome"]) == (model.name, outcome)
    assert line["tokens"] == {"done": 3, "cancelled": 1, "failed": 1}.get(outcome, 0)
    assert "messages" not in line


async def test_a_disconnect_before_the_first_text_counts_with_its_waiting_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = MeteredModel(StandIn("stuck", ["late"], pause=60), log_prompts=False)
    observed: list[float] = []
    monkeypatch.setattr(model._first_text, "observe", observed.append)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await read(model)
    [seconds] = observed
    assert 0.4 < seconds < 60


async def test_a_model_reports_its_recent_time_to_first_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = MeteredModel(StandIn("late", ["text"], pause=0.3), log_prompts=False)
    assert model.first_text_seconds() == 0
    await asyncio.gather(read(model), read(model))
    assert 0.3 <= model.first_text_seconds() < 5
    monkeypatch.setattr(metrics, "RECENT_SECONDS", 0)
    assert model.first_text_seconds() == 0


async def test_a_waiting_request_counts_once_it_is_slower_than_the_average() -> None:
    stuck = StandIn("stuck", ["text"])
    model = MeteredModel(stuck, log_prompts=False)
    await read(model)
    before = model.first_text_seconds()
    stuck.pause = 60
    waiting = asyncio.create_task(read(model))
    await asyncio.sleep(0.5)
    assert before < 0.4 < model.first_text_seconds()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_messages_are_logged_if_the_setting_is_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "ray.serve")
    await read(MeteredModel(fast(), log_prompts=True))
    [messages] = [vars(record)["messages"] for record in caplog.records]
    assert messages == [{"role": "user", "content": "The whale"}]


@dataclass(frozen=True)
class Sample:
    name: str
    labels: dict[str, str]
    value: float


def samples(metrics: str) -> Iterator[Sample]:
    for family in text_string_to_metric_families(httpx2.get(metrics).text):
        for sample in family.samples:
            yield Sample(sample.name, sample.labels, sample.value)


def wait_for_sample(metrics: str, name: str, value: float | None = None, **labels: str) -> Sample:
    """Returns a sample, with this value if given. Ray reports every few seconds."""
    deadline = time.monotonic() + REPORT_SECONDS
    while time.monotonic() < deadline:
        for sample in samples(metrics):
            wanted = value is None or sample.value == value
            if wanted and sample.name == name and labels.items() <= sample.labels.items():
                return sample
        time.sleep(1)
    of_value = "" if value is None else f" of {value}"
    raise TimeoutError(f"{metrics} has no {name}{of_value} with {labels}")


def ask(url: str, **options: int) -> str:
    """Sends a request and returns its id."""
    request = uuid4().hex
    client = Client(url, headers={"x-request-id": request}, verbose=False)
    client.predict("The whale", **options, api_name="/generate")
    return request


@served
def test_a_prompt_that_is_too_long_is_counted(words: str, served_pages: Served) -> None:
    with pytest.raises(AppError):
        Client(words, verbose=False).predict("whale " * 300, api_name="/generate")
    sample = wait_for_sample(served_pages.metrics, "ray_model_answers_total", outcome="unreadable")
    assert sample.value


def log_lines(logs: Path, request: str) -> list[dict[str, Any]]:
    """The JSON log lines of this request, once every model has written one."""
    deadline = time.monotonic() + REPORT_SECONDS
    while time.monotonic() < deadline:
        lines = [
            json.loads(line)
            for path in logs.glob("serve/replica_*.log")
            for line in path.read_text(encoding="utf-8").splitlines()
            if request in line
        ]
        if len([line for line in lines if line["message"] == "answer"]) == len(MODELS):
            return lines
        time.sleep(0.2)
    raise TimeoutError(f"{request} is in no log of {logs}")


@served
@pytest.mark.parametrize("model", MODELS)
def test_every_metric_of_a_model_is_exported_by_ray(
    model: str, words: str, served_pages: Served
) -> None:
    ask(words, **ANSWERED)
    metrics = served_pages.metrics
    assert wait_for_sample(metrics, "ray_model_answers_total", model=model, outcome="done").value
    assert wait_for_sample(metrics, "ray_model_tokens_total", model=model).value >= 5
    assert wait_for_sample(metrics, "ray_model_first_text_seconds_count", model=model).value
    for name in ("ray_model_requests_waiting", "ray_model_requests_running"):
        # The current sample may be from the middle of the answer.
        wait_for_sample(metrics, name, 0, model=model)


@served
def test_log_lines_of_a_request_share_its_id_from_page_to_models(
    words: str, served_pages: Served
) -> None:
    lines = log_lines(Path(served_pages.logs), ask(words, **ANSWERED))
    [asked] = [line for line in lines if line["message"] == "asked"]
    answered = [line for line in lines if line["message"] == "answer"]
    assert asked["characters"] == len("The whale")
    assert {line["model"] for line in answered} == set(MODELS)
    for line in answered:
        assert line["outcome"] == "done"
        assert line["tokens"] == ANSWERED["max_new_tokens"]
        assert line["seconds"] >= line["first_text_seconds"] > 0


@served
def test_no_log_contains_a_prompt(words: str, served_pages: Served) -> None:
    log_lines(Path(served_pages.logs), ask(words, **ANSWERED))
    for path in served_pages.logs.glob("serve/*.log"):
        assert "The whale" not in path.read_text(encoding="utf-8"), path


def spans(logs: Path) -> set[str]:
    """The names of Serve's spans."""
    return {
        json.loads(f"{text}}}")["name"]
        for path in logs.glob("serve/spans/*")
        for text in path.read_text(encoding="utf-8").split("\n}\n")[:-1]
    }


@served
def test_a_request_creates_a_span_for_its_replica_and_one_for_its_route(
    words: str, served_pages: Served
) -> None:
    ask(words, **ANSWERED)
    route = "POST /behind/a/prefix/gradio_api/queue/join"
    assert {f"replica_handle_request {PAGE_DEPLOYMENT} __call__", route} <= spans(served_pages.logs)
