"""A real Prometheus has every metric of a served project, and data for every panel."""

import json
import math
import re
import time
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from ..conftest import Render
from ..monitoring.prometheus import Series, prometheus
from ..monitoring.record import JOB, LABELS, RECORDINGS, REPLICAS, WELL
from ..monitoring.served import APPLICATIONS, served
from ..redis_server import redis
from .project import COMMAND_SECONDS, Project, ray_directory

DRAWN_SECONDS = 180
"""Ray reports some metrics only every ten seconds."""
DEFINED = re.compile(r'\b(Counter|Gauge|Histogram)\(\s*"(\w+)"')
PLAYED_ELSEWHERE = {
    "compare": "ray_serve_autoscaling_target_replicas{",
    "own": "ray_serve_health_check_failures_total{",
}
"""Recorded from a model that scales, and from a page whose only replica dies."""
SUFFIXES = {"Counter": "_total", "Gauge": "", "Histogram": "_count"}


@pytest.mark.timeout(COMMAND_SECONDS)
@pytest.mark.parametrize("page", APPLICATIONS)
def test_every_metric_and_panel_has_data(
    page: str, render: Render, environment: Path, tmp_path: Path
) -> None:
    with ray_directory(tmp_path / "ray-logs") as ray:
        project = Project(render(page=page, deploy="docker"), environment, {"RAY_TMPDIR": ray})
        project.run("uv", "sync", "--quiet", "--extra", "limits")
        panels, metrics, recorded = panels_of(project), metrics_of(project), recorded_of(page)
        for metric in metrics:
            name = metric.removesuffix("_count")
            assert any(name in each for each in panels), f"no panel draws {metric}"

        wanted = panels | metrics | recorded
        with (
            redis(tmp_path) as counts,
            served(project, page, tmp_path, counts.url) as site,
            prometheus(site.metrics, tmp_path, 1, JOB) as asked,
        ):
            site.ask(WELL)
            counts.stop()
            if page != "own":
                # Makes a health check fail.
                site.wait_for(REPLICAS[site.deployment])[0].kill()
            deadline = time.monotonic() + DRAWN_SECONDS
            while wanted and time.monotonic() < deadline:
                # Some of these calls exceed the limit.
                with suppress(Exception):
                    site.ask(WELL)
                assert httpx2.get(f"{site.url}no/such/page").is_client_error
                wanted = {each for each in wanted if not any(map(is_drawn, asked.now(each)))}
        assert not wanted


def panels_of(project: Project) -> set[str]:
    path = project.root / "deploy" / "monitoring" / "grafana-dashboard.json"
    panels = json.loads(path.read_text("utf-8"))["panels"]
    assert panels
    return {target["expr"] for panel in panels for target in panel["targets"]}


def metrics_of(project: Project) -> set[str]:
    """Returns the project's metrics by their names in Prometheus."""
    defined = [
        found
        for path in (project.root / "src").rglob("*.py")
        for found in DEFINED.findall(path.read_text("utf-8"))
    ]
    assert defined
    return {f"ray_{name}{SUFFIXES[kind]}" for kind, name in defined}


def recorded_of(page: str) -> set[str]:
    """Returns the recorded series that alerts are tested with, as selectors."""
    recordings = json.loads((RECORDINGS / f"{page}.json").read_text("utf-8"))
    return {
        selector(name)
        for recording in recordings.values()
        for name in recording["series"]
        if not name.startswith(PLAYED_ELSEWHERE[page])
    }


def selector(series: str) -> str:
    """Returns a selector for series with the same labels and any values."""
    name, _, labels = series.partition("{")
    has = set(re.findall(r'(\w+)="', labels))
    matchers = [f'{label}{"!=" if label in has else "="}""' for label in sorted(LABELS)]
    return f"{name}{{{', '.join(matchers)}}}"


def is_drawn(series: Series) -> bool:
    return all(math.isfinite(value) for _, value in series.samples)
