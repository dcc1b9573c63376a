"""An answer's spans, as a collector receives them."""

import asyncio
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
import httpx2
import pytest
from ray import serve

from {{ cookiecutter.__package }}.serving import (
    Limits,
    Model,
    ModelSettings,
    PageOfModels,
    PageSettings,
    PromptError,
    StartError,
    deployments_of,
)
from {{ cookiecutter.__package }}.serving.deployments.handles import RemoteModel
from {{ cookiecutter.__package }}.serving.http.ingress import (
    add_outer_middleware,
)
from {{ cookiecutter.__package }}.serving.http.mount import mount
from {{ cookiecutter.__package }}.serving.telemetry import otlp, traces
from {{ cookiecutter.__package }}.serving.telemetry.metrics import MeteredModel
from {{ cookiecutter.__package }}.serving.telemetry.traces import (
    TracedRequestId,
    Traces,
    check_traces,
    stop_traces,
)

from ...support.collector import Collector, collecting
from ...support.compare_page import KEY, LAUNCH, build_page
from ...support.servers import free_port
from ...support.stand_ins import StandIn, broken, fast, in_thread, slow, until

SENT = "The whale sings."
SERVER, CLIENT, INTERNAL = 2, 3, 1
ANSWER: dict[str, Any] = {"batch queue": {}, "prefill": {}, "decode": {}}
OPTIONS = {"max_tokens": 8, "seed": 7}
A_BUSY_MACHINE = 10
"""Generous limit in seconds for steps that take no time."""
EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector
        stop_traces()


def settings_of(endpoint: str, ratio: float = 1, **more: Any) -> PageSettings:
    return PageSettings(
        title="Words",
        description="",
        openai_api="without-keys",
        traces=Traces(endpoint=endpoint, sampling_ratio=ratio),
        **{"models": (ModelSettings(name="unused", source="unused"),), **more},
    )


@contextmanager
def page_of(settings: PageSettings, *models: Model) -> Iterator[httpx2.Client]:
    builder = PageOfModels(settings, build_page)
    web = mount(builder._built(models), settings, LAUNCH)
    add_outer_middleware(web, builder, settings)
    with in_thread(web) as url, httpx2.Client(base_url=url, timeout=60) as client:
        yield client


@contextmanager
def standing_in(
    collector: Collector, *models: StandIn, ratio: float = 1
) -> Iterator[httpx2.Client]:
    metered = [MeteredModel(model, log_prompts=False) for model in models]
    with page_of(settings_of(collector.url, ratio), *metered) as page:
        yield page


def generate(page: httpx2.Client, headers: dict[str, str] | None = None) -> None:
    """Calls like Gradio's clients: one request starts the call, another reads the result."""
    event = call(page, headers)
    assert "event: complete" in page.get(f"/gradio_api/call/generate/{event}").text


def call(page: httpx2.Client, headers: dict[str, str] | None = None) -> str:
    body = {"prompt": SENT, "max_new_tokens": OPTIONS["max_tokens"]}
    path = "/gradio_api/call/v2/generate"
    return str(page.post(path, json=body, headers=headers).json()["event_id"])


def complete(page: httpx2.Client, model: str, headers: Any = None) -> httpx2.Response:
    messages = [{"role": "user", "content": SENT}]
    body = {"model": model, "messages": messages, **OPTIONS}
    return page.post("/v1/chat/completions", json=body, headers=headers)


def above(flags: str = "01") -> tuple[str, str, dict[str, str]]:
    """Returns a client's trace id, span id, and trace header."""
    trace, span = uuid4().hex, uuid4().hex[:16]
    return trace, span, {"traceparent": f"00-{trace}-{span}-{flags}"}


@contextmanager
def deployed(collector: Collector, source: Path) -> Iterator[httpx2.Client]:
    """A page that calls a deployment, in Serve's local testing mode."""
    model = ModelSettings(name="tiny", source=str(source))
    settings = settings_of(collector.url, models=(model,), limits=Limits(update_seconds=0))
    [application] = deployments_of(settings)
    handle = serve.run(application, name="tiny", _local_testing_mode=True)
    with page_of(settings, RemoteModel("tiny", handle)) as page:
        yield page
    handle.shutdown()


async def test_an_answer_is_one_trace_from_the_request_to_the_batch(
    collector: Collector, tiny_decoder: Path
) -> None:
    trace, client, header = above()
    with deployed(collector, tiny_decoder) as page:
        generate(page, {**header, "x-request-id": "whale-1"})
    stop_traces()
    assert collector.tree() == {
        "POST /gradio_api/call": {
            "queue": {},
            "call generate": {"handle tiny": {"chat tiny": ANSWER}},
        }
    }
    asked = collector.one("POST /gradio_api/call")
    assert (asked.trace, asked.parent, asked.kind) == (trace, client, SERVER)
    assert asked.attributes["http.request.header.x-request-id"] == ["whale-1"]
    assert asked.attributes["http.response.status_code"] == 200
    assert {span.trace for span in collector.spans} == {trace}
    assert {span.attributes["outcome"] for span in collector.spans} == {"done"}
    names = ("queue", "call generate", "handle tiny", "chat tiny", *ANSWER)
    steps = [collector.one(name) for name in names]
    assert [step.began for step in steps] == sorted(step.began for step in steps)
    queue, call, *_, waited, read, written = steps
    assert queue.ended <= call.began + 10**8
    assert waited.ended == read.began
    assert read.ended == written.began <= written.ended <= call.ended


async def test_the_openai_api_creates_the_same_spans_below_its_request(
    collector: Collector, tiny_decoder: Path
) -> None:
    with deployed(collector, tiny_decoder) as page:
        usage = complete(page, "tiny").json()["usage"]
    stop_traces()
    assert collector.tree() == {"POST /v1/chat/completions": {"handle tiny": {"chat tiny": ANSWER}}}
    answered = collector.one("chat tiny")
    assert answered.kind == INTERNAL
    assert collector.one("handle tiny").kind == CLIENT
    said = answered.attributes
    assert said["gen_ai.request.model"] == "tiny"
    assert said["gen_ai.request.max_tokens"] == OPTIONS["max_tokens"]
    assert said["gen_ai.request.seed"] == OPTIONS["seed"]
    assert said["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert said["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert said["gen_ai.response.finish_reasons"] == ["length"]
    assert 0 < said["gen_ai.response.time_to_first_chunk"] < 60


async def test_spans_contain_no_text_and_no_header_of_a_request(
    collector: Collector, tiny_decoder: Path
) -> None:
    secret = {"authorization": "Bearer a-wet-whale", "cookie": "page-login=a-wet-whale"}
    with deployed(collector, tiny_decoder) as page:
        generate(page, secret)
        complete(page, "tiny", secret)
        page.post(f"/gradio_api/call/{SENT}", json={"data": [SENT]})
    stop_traces()
    assert len(collector.spans) > 10
    for secret_text in (SENT, "whale", "%20"):
        assert secret_text.encode() not in collector.bodies


@pytest.mark.parametrize(
    ("model", "outcome", "kind"),
    [
        (broken(), "failed", "RuntimeError"),
        (StandIn("long", [], failure=PromptError(SENT)), "unreadable", "PromptError"),
    ],
    ids=["failed", "unreadable"],
)
async def test_a_failure_is_recorded_with_its_type_but_not_its_text(
    model: StandIn, outcome: str, kind: str, collector: Collector
) -> None:
    with standing_in(collector, model) as page:
        complete(page, model.name)
    stop_traces()
    answered = collector.one(f"chat {model.name}")
    assert answered.failed
    assert (answered.attributes["outcome"], answered.attributes["error.type"]) == (outcome, kind)
    status = {"failed": 500, "unreadable": 400}[outcome]
    asked = collector.one("POST /v1/chat/completions")
    assert (asked.attributes["http.response.status_code"], asked.failed) == (status, status == 500)
    assert b"secret" not in collector.bodies
    assert SENT.encode() not in collector.bodies


async def test_a_failing_function_is_recorded_as_an_error(collector: Collector) -> None:
    def fail(text: str) -> str:
        raise ValueError(text)

    with gr.Blocks() as blocks:
        gr.Button().click(fail, gr.Textbox(), gr.Textbox(), api_name="fail")
    settings = settings_of(collector.url)
    web = mount(blocks, settings)
    add_outer_middleware(web, None, settings)
    with in_thread(web) as url, httpx2.Client(base_url=url, timeout=60) as page:
        event = page.post("/gradio_api/call/fail", json={"data": [SENT]}).json()["event_id"]
        page.get(f"/gradio_api/call/fail/{event}")
    stop_traces()
    called = collector.one("call fail")
    assert called.failed
    assert (called.attributes["outcome"], called.attributes["error.type"]) == (
        "failed",
        "ValueError",
    )
    assert SENT.encode() not in collector.bodies


async def test_a_disconnect_marks_every_span_as_cancelled(collector: Collector) -> None:
    model = slow()
    with standing_in(collector, model) as page:
        messages = [{"role": "user", "content": SENT}]
        body = {"model": "slow", "messages": messages, "stream": True}
        with page.stream("POST", "/v1/chat/completions", json=body) as answer:
            next(answer.iter_raw())
        await until(lambda: model.left == 1)
        event = call(page)
        with page.stream("GET", f"/gradio_api/call/generate/{event}") as answer:
            next(answer.iter_raw())
        await until(lambda: model.left == 2)
    stop_traces()
    outcomes = {(span.name, span.attributes["outcome"]) for span in collector.spans}
    assert outcomes == {
        ("POST /v1/chat/completions", "cancelled"),
        ("POST /gradio_api/call", "done"),
        ("queue", "done"),
        ("call generate", "cancelled"),
        ("chat slow", "cancelled"),
    }
    assert not any(span.failed for span in collector.spans)


def sessions_of(blocks: gr.Blocks) -> set[str]:
    """Returns the sessions that wait in the queue, or still listen to a running call."""
    events = blocks._queue.event_ids_to_events.values()
    return {event.session_hash for event in events if event.alive}


async def test_a_disconnect_in_the_queue_marks_its_span_as_cancelled(collector: Collector) -> None:
    opened = threading.Event()

    def wait(text: str) -> str:
        opened.wait(60)
        return text

    with gr.Blocks() as blocks:
        gr.Button().click(wait, gr.Textbox(), gr.Textbox(), api_name="wait")
    settings = settings_of(collector.url)
    web = mount(blocks.queue(default_concurrency_limit=1), settings)
    add_outer_middleware(web, None, settings)
    with in_thread(web) as url, httpx2.Client(base_url=url, timeout=60) as page:
        body = {"data": [SENT], "fn_index": 0, "session_hash": "first"}
        page.post("/gradio_api/queue/join", json=body)
        page.post("/gradio_api/queue/join", json={**body, "session_hash": "second"})
        for session in ("second", "first"):
            parameters = {"session_hash": session}
            with page.stream("GET", "/gradio_api/queue/data", params=parameters) as news:
                next(news.iter_raw())
            await until(lambda left=session: left not in sessions_of(blocks))  # type: ignore[misc]
        opened.set()
        await until(lambda: not blocks._queue.event_ids_to_events)
    stop_traces()
    waited = [span.attributes["outcome"] for span in collector.spans if span.name == "queue"]
    assert sorted(waited) == ["cancelled", "done"]
    assert collector.one("call wait").attributes["outcome"] == "cancelled"


async def test_load_events_and_timers_are_not_traced(collector: Collector) -> None:
    with gr.Blocks() as blocks:
        text = gr.Textbox()
        blocks.load(lambda: "whale", None, text, api_name="loaded")
        gr.Timer(1000).tick(lambda: "whale", None, text, api_name="ticked")
        gr.Button().click(lambda: "whale", None, text, api_name="clicked")
    settings = settings_of(collector.url)
    web = mount(blocks, settings)
    add_outer_middleware(web, None, settings)
    with in_thread(web) as url, httpx2.Client(base_url=url, timeout=60) as page:
        for name in ("loaded", "ticked", "clicked"):
            event = page.post(f"/gradio_api/call/{name}", json={"data": []}).json()["event_id"]
            page.get(f"/gradio_api/call/{name}/{event}")
        page.get("/config")
    stop_traces()
    assert collector.tree() == {"POST /gradio_api/call": {"queue": {}, "call clicked": {}}}
    assert len(collector.spans) == 3


@pytest.mark.parametrize("flags", ["00", "01"])
async def test_a_client_cannot_decide_whether_it_is_traced(
    flags: str, collector: Collector
) -> None:
    trace, _, header = above(flags)
    with standing_in(collector, fast()) as page:
        complete(page, "fast", header)
    stop_traces()
    assert {span.trace for span in collector.spans} == {trace}
    with standing_in(collector, fast(), ratio=0) as page:
        complete(page, "fast", above(flags)[2])
    stop_traces()
    assert {span.trace for span in collector.spans} == {trace}


@pytest.mark.parametrize(
    "given",
    [
        [("traceparent", "whales")],
        [("traceparent", f"00-{'0' * 32}-{'1' * 16}-01")],
        [("traceparent", f"00-{'a' * 30_000}-{'1' * 16}-01")],
        [("traceparent", f"00-{'a' * 32}-{'1' * 16}-01")] * 2,
    ],
    ids=["nonsense", "no trace", "too long", "two"],
)
async def test_an_invalid_trace_header_starts_a_new_trace(
    given: list[tuple[str, str]], collector: Collector
) -> None:
    with standing_in(collector, fast()) as page:
        assert complete(page, "fast", given).is_success
    stop_traces()
    assert collector.tree() == {"POST /v1/chat/completions": {"chat fast": {}}}
    assert collector.one("POST /v1/chat/completions").parent == ""


async def test_trace_state_and_baggage_are_not_passed_on(collector: Collector) -> None:
    _, _, header = above()
    with standing_in(collector, fast()) as page:
        complete(page, "fast", {**header, "tracestate": "ours=seal", "baggage": "name=seal"})
    stop_traces()
    assert collector.spans
    assert b"seal" not in collector.bodies


async def test_an_unreachable_collector_logs_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    endpoint = f"http://127.0.0.1:{free_port()}/v1/traces"
    with page_of(settings_of(endpoint), MeteredModel(fast(), log_prompts=False)) as page:
        for _ in range(3):
            assert complete(page, "fast").is_success
        await until(lambda: endpoint in caplog.text)
        complete(page, "fast")
        began = time.monotonic()
    stop_traces()
    assert time.monotonic() - began < 30
    said = [record for record in caplog.records if "trace" in record.getMessage().lower()]
    assert [record.levelname for record in said] == ["WARNING"]
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_a_collector_that_hangs_delays_neither_answers_nor_shutdown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces"
        with page_of(settings_of(endpoint), MeteredModel(fast(), log_prompts=False)) as page:
            assert complete(page, "fast").is_success
            # Spans are being sent now.
            connection, _ = await asyncio.to_thread(silent.accept)
            began = time.monotonic()
            for _ in range(3):
                assert complete(page, "fast").is_success
            answered = time.monotonic()
        stop_traces()
        connection.close()
    # Each of the three would take this long if it waited for its spans to be sent.
    assert answered - began < 3 * otlp.SEND_SECONDS
    # One batch times out, another starts before the deadline, and none after it.
    bound = otlp.STOP_SECONDS + 2 * otlp.SEND_SECONDS
    assert time.monotonic() - answered < bound + A_BUSY_MACHINE


def test_without_the_extra_tracing_is_refused_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, EXPORTER, None)
    monkeypatch.delitem(sys.modules, f"{traces.__package__}.otlp", raising=False)
    settings = settings_of("http://127.0.0.1:4318/v1/traces")
    assert check_traces in settings.start_checks()
    with pytest.raises(StartError, match="uv sync --extra traces"):
        check_traces()


def test_without_the_setting_opentelemetry_is_not_imported() -> None:
    """Ray itself imports a part of it."""
    said = "import sys, {}; print([name for name in sys.modules if name.startswith('opentel')])"
    code = said.format(traces.__name__)
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert loaded.stdout.strip() == b"[]"


def test_the_request_id_carries_its_span_between_processes() -> None:
    named = TracedRequestId("whale-1")
    named.traceparent = above()[2]["traceparent"]
    arrived = pickle.loads(pickle.dumps(named))  # noqa: S301
    assert (arrived, arrived.traceparent) == ("whale-1", named.traceparent)


@pytest.mark.served
@pytest.mark.parametrize("path", ["/gradio_api/call", "/v1/chat/completions"])
async def test_on_ray_an_answer_is_one_trace_across_all_processes(
    path: str, words: str, served_collector: Collector
) -> None:
    trace, _, header = above()
    first = ["first"] if "v1" in path else ["first", "second"]
    handles = {f"handle {name}": {f"chat {name}": ANSWER} for name in first}
    with httpx2.Client(base_url=words.rstrip("/"), timeout=60) as page:
        if "v1" in path:
            complete(page, "first", {**header, "authorization": f"Bearer {KEY}"})
            expected: dict[str, Any] = {f"POST {path}": handles}
        else:
            generate(page, header)
            expected = {f"POST {path}": {"queue": {}, "call generate": handles}}
    sent: Callable[[], bool] = lambda: served_collector.tree(trace) == expected  # noqa: E731
    await until(sent)
    processes = {span.process for span in served_collector.spans if span.trace == trace}
    assert len(processes) == 1 + len(first)
