"""Serves monitored_pages.py with a project, and simulates its users."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import yaml
from gradio_client import Client

from ..generated.project import START_SECONDS, Project, Running, free_port

PAGES = Path(__file__).parent / "pages"
MODEL = "stand-in"
PAUSE_SECONDS = 1.0
LEAVE_SECONDS = 60
A_MINUTE = 5
"""Requests that a limit allows."""
REDIS = "MONITORED_REDIS_URL"


@dataclass(frozen=True)
class Application:
    build: str
    """A function in monitored_pages.py."""
    api: str
    deployment: str
    """The deployment whose replicas a scenario kills."""


APPLICATIONS = {
    "compare": Application("build", "/generate", MODEL),
    "own": Application("build_own", "/obey", "GradioServer"),
}
"""By the answer to `page`."""


@dataclass(frozen=True)
class Served:
    url: str
    metrics: str
    """Host and port."""
    api: str
    deployment: str
    hindrance: Path
    """While this file exists, no replica of the deployment starts."""
    running: Running

    def ask(self, prompt: str) -> None:
        """Calls the page, and raises its error."""
        Client(self.url, verbose=False).predict(prompt, api_name=self.api)

    def wait_for(self, replicas: int) -> list[psutil.Process]:
        """Returns the processes of the deployment once there are this many, oldest first."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            started = psutil.Process(self.running.process.pid).children(recursive=True)
            found = [
                process for process in started if name_of(process).endswith(f":{self.deployment}")
            ]
            if len(found) == replicas:
                return sorted(found, key=psutil.Process.create_time)
            time.sleep(0.2)
        raise TimeoutError(f"{self.deployment} does not have {replicas} replicas")


def name_of(process: psutil.Process) -> str:
    """Returns its name in Ray, or an empty text if it has just ended."""
    with suppress(psutil.NoSuchProcess):
        return "".join(process.cmdline()[:1])
    return ""


@contextmanager
def served(
    project: Project,
    page: str,
    directory: Path,
    redis_url: str | None = None,
    *,
    scales_to_zero: bool = False,
) -> Iterator[Served]:
    """Serves a page, with limits that are counted in Redis if there is one.

    The model has two replicas, or as many as its users need.
    """
    application, port, hindrance = APPLICATIONS[page], free_port(), directory / "hindrance"
    import_path = f"monitored_pages:{application.build}"
    arguments: dict[str, object] = {"hindrance": str(hindrance)}
    if page != "own":
        arguments["scales_to_zero"] = scales_to_zero
    if redis_url is not None:
        arguments["rate_limits"] = {"requests_per_minute": A_MINUTE, "redis_url_variable": REDIS}
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [{"name": page, "import_path": import_path, "args": arguments}],
    }
    path = directory / "monitored.yaml"
    path.write_text(yaml.safe_dump(config))
    variables = {
        "MONITORED_PACKAGE": project.package,
        REDIS: redis_url or "",
        "PYTHONPATH": str(PAGES),
        # Ray exports metrics every second instead of every ten.
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_SERVE_STATUS_GAUGE_REPORT_INTERVAL_S": "1",
        "REPORTER_UPDATE_INTERVAL_MS": "1000",
    }
    project = replace(project, variables={**project.variables, **variables})
    command = ("python", "-m", project.package, str(path), "--metrics-port", str(free_port()))
    with project.started(*command) as running:
        log = running.wait_for(lambda log: "The page is up: h" in log, START_SECONDS)
        [metrics] = re.findall(r"http://([\d.:]+)/metrics", log)
        yield Served(
            f"http://127.0.0.1:{port}/",
            metrics,
            application.api,
            application.deployment,
            hindrance,
            running,
        )


class Crowd:
    """Users who repeat the same call, regardless of the answer; without a prompt, they pause."""

    def __init__(self, served: Served) -> None:
        self.prompt = ""
        self._served = served
        self._left = threading.Event()
        self._users: list[threading.Thread] = []

    def ask(self, prompt: str, users: int) -> None:
        self.prompt = prompt
        for _ in range(users - len(self._users)):
            self._users.append(threading.Thread(target=self._ask_again, daemon=True))
            self._users[-1].start()

    def leave(self) -> None:
        self._left.set()
        for user in self._users:
            user.join(LEAVE_SECONDS)

    def _ask_again(self) -> None:
        client: Client | None = None
        while not self._left.wait(PAUSE_SECONDS):
            if not self.prompt:
                continue
            # The effect of faults on users is tested elsewhere.
            with suppress(Exception):
                client = client or Client(self._served.url, verbose=False)
                client.predict(self.prompt, api_name=self._served.api)
