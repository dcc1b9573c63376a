"""Stopping the application while it answers."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from gradio_client import Client
from gradio_client.client import Job

from ..support.servers import Served, free_port, served

# Each test starts a page, which takes minutes on a busy machine.
pytestmark = [pytest.mark.served, pytest.mark.timeout(900)]

LONG_ANSWER_SECONDS = 10
"""Serve's own shutdown would cut the answer off, because it stops the HTTP proxies first."""
ENDLESS_SECONDS = 600
SOON_SECONDS = 60
PAGE = """
import time
import gradio as gr
from {{ cookiecutter.__package }}.serving import (
    GradioServer,
    HttpSettings,
)

def build(settings: HttpSettings):
    return GradioServer.bind(settings, page)

def page():
    def count(seconds: float):
        for second in range(int(seconds)):
            yield second
            time.sleep(1)
        yield "whole"

    with gr.Blocks() as blocks:
        seconds, counted = gr.Number(), gr.Textbox()
        seconds.submit(count, seconds, counted, api_name="count")
    return blocks
"""


@pytest.fixture
def stopping(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    """Serves a page that waits this many seconds for running answers when it is stopped."""
    (tmp_path / "slow_page.py").write_text(PAGE)
    page = {
        "name": "GradioServer",
        "graceful_shutdown_timeout_s": request.param,
        "ray_actor_options": {"num_cpus": 0.1},
    }
    application = {"name": "slow", "import_path": "slow_page:build", "deployments": [page]}
    config = {
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "applications": [application],
    }
    with served(config, tmp_path, {"PYTHONPATH": str(tmp_path)}) as pages:
        yield pages


def begun(pages: Served, seconds: int) -> Job:
    """Returns an answer that takes this long, as soon as it has begun."""
    job = Client(pages.addresses[0], verbose=False).submit(seconds, api_name="/count")
    deadline = time.monotonic() + SOON_SECONDS
    while not job.outputs() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert job.outputs()
    return job


def wait_for_output(pages: Served, line: str) -> None:
    deadline = time.monotonic() + SOON_SECONDS
    while line not in pages.terminal.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert line in pages.terminal.read_text()


@pytest.mark.parametrize("stopping", [120], indirect=True)
def test_a_running_answer_is_completed_and_new_calls_are_refused(stopping: Served) -> None:
    [url] = stopping.addresses
    job = begun(stopping, LONG_ANSWER_SECONDS)
    stopping.process.send_signal(signal.SIGTERM)
    wait_for_output(
        stopping, "Waiting up to 120 s for running answers to finish. Press Ctrl-C to stop at once."
    )
    refused = httpx2.post(f"{url}gradio_api/call/count", json={"data": [1]})
    assert refused.status_code == 503
    assert refused.json()["detail"].startswith("The page is shutting down.")
    assert refused.headers["retry-after"] == "60"
    assert job.result(timeout=SOON_SECONDS) == "whole"
    assert stopping.process.wait(SOON_SECONDS) == 128 + signal.SIGTERM


@pytest.mark.parametrize("stopping", [1], indirect=True)
def test_the_wait_for_answers_is_limited_by_the_config(stopping: Served) -> None:
    begun(stopping, ENDLESS_SECONDS)
    stopping.process.send_signal(signal.SIGINT)
    assert stopping.process.wait(SOON_SECONDS) == 0


@pytest.mark.parametrize("stopping", [ENDLESS_SECONDS], indirect=True)
def test_a_second_signal_ends_the_wait(stopping: Served) -> None:
    begun(stopping, ENDLESS_SECONDS)
    stopping.process.send_signal(signal.SIGTERM)
    wait_for_output(stopping, f"Waiting up to {ENDLESS_SECONDS} s")
    stopping.process.send_signal(signal.SIGTERM)
    assert stopping.process.wait(SOON_SECONDS) == 128 + signal.SIGTERM
