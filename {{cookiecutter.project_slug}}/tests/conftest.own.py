"""Serves the page for the tests: without Ray, and on Ray with two replicas."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from socket import create_server
from threading import Thread
from typing import Any

import psutil
import pytest
import uvicorn
import yaml

from {{ cookiecutter.__package }}.app import Settings, build
from {{ cookiecutter.__package }}.serving.config import deployments_in
from {{ cookiecutter.__package }}.serving.preview import load_page

PRODUCTION = Path(__file__).parents[1] / "config" / "production.yaml"
# The start itself times out earlier and gives the reason.
START_SECONDS = 900
STOP_SECONDS = 60

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


@pytest.fixture(scope="session")
def page() -> Iterator[str]:
    """URL of the page without Ray, as in the preview."""
    web = load_page(f"{build.__module__}:build", engine=False, version="")
    server = uvicorn.Server(uvicorn.Config(web, log_level="error", timeout_graceful_shutdown=1))
    with create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        thread = Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{port}/"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def served_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the page on Ray, with two replicas."""
    directory = tmp_path_factory.mktemp("served")
    config, log = directory / "config.yaml", directory / "log"
    config.write_text(yaml.safe_dump(for_this_machine(PRODUCTION)))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", str(build.__module__.partition(".")[0]), "serve", str(config)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield address(process, log)
    finally:
        alive = process.poll() is None
        started = psutil.Process(process.pid).children(recursive=True) if alive else []
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()
    assert psutil.wait_procs(started, timeout=STOP_SECONDS)[1] == []


def for_this_machine(path: Path) -> dict[str, Any]:
    """Returns a config with a free loopback port that fits any machine."""
    config: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    with create_server(("127.0.0.1", 0)) as server:
        config["http_options"] = {"host": "127.0.0.1", "port": server.getsockname()[1]}
    [application] = config["applications"]
    application["deployments"] = [
        {
            "name": name,
            "num_replicas": 2 if name == "GradioServer" else 1,
            "ray_actor_options": {"num_cpus": 0.1},
        }
        for name in deployments_in(build(Settings.model_validate(application["args"])))
    ]
    return config


def address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if up := re.search(r"The page is up: (\S+)", log.read_text("utf-8")):
            return up[1]
        time.sleep(0.2)
    raise TimeoutError(log.read_text("utf-8"))
