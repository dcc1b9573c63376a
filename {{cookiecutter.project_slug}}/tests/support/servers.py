"""Starts and stops the real application on a free port."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import create_server
from typing import Any

import psutil
import yaml

from {{ cookiecutter.__package }}.app import Settings, build
from {{ cookiecutter.__package }}.serving.config import deployments_in
from {{ cookiecutter.__package }}.serving.deployments.settings import (
    ModelSettings,
)

LOCAL_CONFIG = Path(__file__).parents[2] / "config" / "local.yaml"
# The start itself times out earlier and gives the reason.
START_SECONDS = 900
STOP_SECONDS = 60
UP = "The page is up: "


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def local_models() -> list[ModelSettings]:
    """Returns the models of config/local.yaml, in the order of their panes."""
    [application] = _local_config()["applications"]
    return list(Settings.model_validate(application["args"]).models)


def config_of(source: Path | str, port: int) -> dict[str, Any]:
    """Returns config/local.yaml with one source for every model, sized for any machine.

    It lists every deployment, the page first.
    """
    config = _local_config()
    config["http_options"]["port"] = port
    models = [{"name": model.name, "source": str(source)} for model in local_models()]
    for application in config["applications"]:
        # Tiny models finish too quickly to see.
        application["args"] = {"limits": {"update_seconds": 0}, "models": models}
        graph = build(Settings.model_validate(application["args"]))
        application["deployments"] = [
            {"name": name, "num_replicas": 1, "ray_actor_options": {"num_cpus": 0.1}}
            for name in deployments_in(graph)
        ]
    return config


def _local_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(LOCAL_CONFIG.read_text(encoding="utf-8"))
    return config


@dataclass(frozen=True)
class Served:
    addresses: list[str]
    """URLs of the pages."""
    logs: Path
    metrics: str
    process: subprocess.Popen[bytes]
    terminal: Path
    """What it prints."""


@contextmanager
def served(
    config: dict[str, Any], directory: Path, variables: Mapping[str, str] | None = None
) -> Iterator[Served]:
    """Starts the application and waits for its pages; leaves no process behind."""
    path, log = directory / "config.yaml", directory / "log"
    module, metrics_port = "{{ cookiecutter.__package }}", str(free_port())
    path.write_text(yaml.safe_dump(config))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(path), "--metrics-port", metrics_port],
            env={**os.environ, **(variables or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    started: list[psutil.Process] = []
    try:
        addresses = _addresses(process, log, len(config["applications"]))
        places = re.search(r"Ray's logs are in (.+), its metrics at (\S+)", log.read_text())
        assert places
        assert places[2].endswith(f":{metrics_port}/metrics")
        started = psutil.Process(process.pid).children(recursive=True)
        yield Served(addresses, Path(places[1]), places[2], process, log)
    finally:
        if process.poll() is None:
            started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()
    _, left = psutil.wait_procs(started, timeout=STOP_SECONDS)
    assert started
    assert left == []


def _addresses(process: subprocess.Popen[bytes], log: Path, number: int) -> list[str]:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        lines = log.read_text(encoding="utf-8").splitlines()
        addresses = [line.removeprefix(UP) for line in lines if line.startswith(UP)]
        if len(addresses) == number:
            return addresses
        time.sleep(0.2)
    raise TimeoutError(log.read_text(encoding="utf-8"))
