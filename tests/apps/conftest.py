"""The two servers: plain Gradio, and Ray."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from playwright.sync_api import Browser, expect

from ..chromium import chromium
from .app import App, all_apps
from .compare import Served
from .files import write_files

START_SECONDS = 300
STOP_SECONDS = 60
TEMPLATE = Path(__file__).parents[2]
APPS = "tests.apps.app:all_apps"
PREFIX = "/behind/a/prefix"
UP = "The page is up: "

# Tests share two cores with a starting Ray.
expect.set_options(timeout=30_000)


@pytest.fixture(scope="session")
def apps() -> dict[str, App]:
    return all_apps()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that are sent to the apps."""
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


class Plain:
    """A process that calls `launch()` on apps."""

    def __init__(self, apps: str, folder: Path) -> None:
        self._uploads = folder / "plain"
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.plain", apps],
            cwd=folder,
            env=environment(self._uploads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._urls: dict[str, str] = {}

    def app(self, name: str) -> Served:
        """
        Raises:
            RuntimeError: the app cannot be launched.
        """
        if name not in self._urls:
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.write(f"{name}\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
            if "error" in answer:
                raise RuntimeError(answer["error"])
            self._urls[name] = answer["url"]
        return Served(self._urls[name], {}, self._uploads)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class OnRay:
    """The application of `on_ray.py`, started the way the project starts."""

    def __init__(self, apps: str, folder: Path) -> None:
        self.folder = folder
        self._uploads = folder / "ray"
        self._log = folder / "ray.log"
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        application = {
            "name": "apps",
            "route_prefix": PREFIX,
            "import_path": "tests.apps.on_ray:build",
            "args": {"apps": apps},
        }
        config = folder / "config.yaml"
        options = {"host": "127.0.0.1", "port": port}
        config.write_text(yaml.safe_dump({"http_options": options, "applications": [application]}))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", os.environ["APPS_PACKAGE"], str(config)],
                cwd=folder,
                env=environment(self._uploads),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._url = self._wait()

    def _wait(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            for line in self._log.read_text("utf-8").splitlines():
                if line.startswith(UP):
                    return line.removeprefix(UP).rstrip("/") + "/"
            time.sleep(0.2)
        self.stop()
        raise TimeoutError(self._log.read_text("utf-8"))

    def app(self, name: str) -> Served:
        return Served(self._url, {"x-app": name}, self._uploads)

    def replicas(self) -> list[psutil.Process]:
        """Returns the replica processes by the names that Ray gives them."""
        started = psutil.Process(self._process.pid).children(recursive=True)
        return [each for each in started if "ServeReplica" in " ".join(each.cmdline())]

    def stop(self) -> None:
        alive = self._process.poll() is None
        started = psutil.Process(self._process.pid).children(recursive=True) if alive else []
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_SECONDS)
        finally:
            self._process.kill()
        _, left = psutil.wait_procs(started, timeout=STOP_SECONDS)
        assert left == []


def environment(uploads: Path) -> dict[str, str]:
    return {
        **os.environ,
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": str(uploads),
        "PYTHONPATH": str(TEMPLATE),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plain]:
    server = Plain(APPS, tmp_path_factory.mktemp("plain"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def on_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnRay]:
    server = OnRay(APPS, tmp_path_factory.mktemp("ray"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser
