"""A Prometheus that scrapes a served project."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import yaml

from ..generated.project import Running, answers, free_port

START_SECONDS = 300
STOP_SECONDS = 30
QUERY_SECONDS = 30


@dataclass(frozen=True)
class Series:
    labels: dict[str, str]
    samples: list[tuple[float, float]]
    """Time and value."""


@dataclass(frozen=True)
class Prometheus:
    address: str

    def now(self, expression: str) -> list[Series]:
        return [
            Series(each["metric"], [(each["value"][0], float(each["value"][1]))])
            for each in self._asked("query", {"query": expression})
        ]

    def over(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        parameters: dict[str, str | float] = {
            "query": expression,
            "start": start,
            "end": end,
            "step": step,
        }
        return [
            Series(each["metric"], [(moment, float(value)) for moment, value in each["values"]])
            for each in self._asked("query_range", parameters)
        ]

    def _asked(self, api: str, parameters: dict[str, str | float]) -> list[dict[str, Any]]:
        url = f"{self.address}/api/v1/{api}"
        response = httpx2.get(url, params=parameters, timeout=QUERY_SECONDS)
        found: list[dict[str, Any]] = response.raise_for_status().json()["data"]["result"]
        return found


@contextmanager
def prometheus(
    metrics: str, directory: Path, seconds: int, job: str = "ray"
) -> Iterator[Prometheus]:
    """Starts a Prometheus that scrapes that host and port at this interval in seconds."""
    scrape = {"job_name": job, "static_configs": [{"targets": [metrics]}]}
    every = {"scrape_interval": f"{seconds}s", "scrape_timeout": f"{seconds}s"}
    path = directory / "prometheus.yaml"
    path.write_text(yaml.safe_dump({"global": every, "scrape_configs": [scrape]}))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={directory / 'data'}"]
    with (directory / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address={address}"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        running = Running(process, directory / "prometheus.log")
        running.wait_for(lambda _: answers(f"http://{address}/-/ready"), START_SECONDS)
        yield Prometheus(f"http://{address}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()
