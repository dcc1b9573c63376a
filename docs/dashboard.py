"""Draws a project's dashboard after users have asked it for a quarter of an hour: `nox -s dashboard`.

Grafana asks Prometheus the queries of `deploy/monitoring/grafana-dashboard.json`. So does this, of
a Prometheus that reads a served project's metrics, and matplotlib draws what it answers.
"""

import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from matplotlib.figure import Figure

from benchmarks.users import Call
from tests.faults.users import crowd
from tests.generated.project import Project, Running, free_port
from tests.monitoring.prometheus import Prometheus, prometheus

PICTURE = Path(__file__).with_name("dashboard.png")
START_SECONDS = 300
SCRAPE_SECONDS = 5
USERS = (2, 8, 24, 8)
"""How many ask, in each of the phases."""
PHASE_SECONDS = 200
LIMIT = 8
"""Requests that run in the page, and as many that wait: 24 users are too many."""
KILLED = "smollm2-lively"
SECONDS_BEFORE_IT_IS_KILLED = 100
BYTES_OF_A_GIGABYTE = 1e9
UNITS = {"short": "", "s": "seconds", "reqps": "per second", "bytes": "GB"}
"""What stands at the axis, by Grafana's name."""


@dataclass(frozen=True)
class Query:
    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    rows: slice
    columns: slice
    queries: list[Query]


@dataclass(frozen=True)
class Line:
    name: str
    minutes: list[float]
    values: list[float]


def main() -> None:
    root = Path(sys.argv[1])
    # A longer one would make the paths of Ray's sockets too long.
    project = Project(root, root / ".venv", {"RAY_TMPDIR": "/tmp"})  # noqa: S108
    with tempfile.TemporaryDirectory() as scratch, served(project) as (call, running):
        [metrics] = re.findall(r"http://([\d.:]+)/metrics", running.log.read_text())
        with prometheus(metrics, Path(scratch), SCRAPE_SECONDS) as asked:
            start = time.time()
            let_users_ask(call, psutil.Process(running.process.pid), Path(scratch))
            draw(asked, panels_of(root), start, time.time())
    print(f"The dashboard is drawn in {PICTURE}")


@contextmanager
def served(project: Project) -> Iterator[tuple[Call, Running]]:
    config = yaml.safe_load((project.root / "config" / "local.yaml").read_text())
    port = config["http_options"]["port"] = free_port()
    limits = {"running_requests": LIMIT, "waiting_requests": LIMIT}
    config["applications"][0]["args"] = {"limits": limits}
    path = project.root / "dashboard.yaml"
    path.write_text(yaml.safe_dump(config))
    with project.started("python", "-m", project.package, str(path)) as running:
        running.wait_for(lambda log: "The page is up: h" in log, START_SECONDS)
        question: list[str | int | float | None] = ["Why is the sky blue?", 16, 64, "1", "0.9"]
        yield Call(f"http://127.0.0.1:{port}", "generate", question), running


def let_users_ask(call: Call, server: psutil.Process, directory: Path) -> None:
    """Few, then more, then too many; then a model's replica dies. At each end, some leave."""
    for number, users in enumerate(USERS, 1):
        print(f"Phase {number} of {len(USERS)}: {users} users, {PHASE_SECONDS} s", flush=True)
        with crowd(call, users, directory):
            time.sleep(SECONDS_BEFORE_IT_IS_KILLED)
            if number == len(USERS):
                kill(server, KILLED)
            time.sleep(PHASE_SECONDS - SECONDS_BEFORE_IT_IS_KILLED)


def kill(server: psutil.Process, deployment: str) -> None:
    [replica] = [
        process
        for process in server.children(recursive=True)
        if process.cmdline() and process.cmdline()[0].endswith(f":{deployment}")
    ]
    replica.kill()


def panels_of(root: Path) -> list[Panel]:
    path = root / "deploy" / "monitoring" / "grafana-dashboard.json"
    return [panel_of(panel) for panel in json.loads(path.read_text("utf-8"))["panels"]]


def panel_of(panel: Mapping[str, Any]) -> Panel:
    place = panel["gridPos"]
    return Panel(
        panel["title"],
        panel["fieldConfig"]["defaults"]["unit"],
        slice(place["y"], place["y"] + place["h"]),
        slice(place["x"], place["x"] + place["w"]),
        [Query(target["expr"], target["legendFormat"]) for target in panel["targets"]],
    )


def draw(prometheus: Prometheus, panels: list[Panel], start: float, end: float) -> None:
    height = max(panel.rows.stop for panel in panels)
    width = max(panel.columns.stop for panel in panels)
    figure = Figure(figsize=(width / 2, height / 3), layout="constrained")
    grid = figure.add_gridspec(height, width)
    for panel in panels:
        axes = figure.add_subplot(grid[panel.rows, panel.columns])
        for query in panel.queries:
            for line in lines(prometheus, query, start, end):
                axes.plot(line.minutes, in_unit(line.values, panel.unit), label=line.name)
        axes.set(title=panel.title, xlabel="minutes", ylabel=UNITS[panel.unit], ylim=(0, None))
        axes.legend(fontsize="small")
    figure.savefig(PICTURE, dpi=80)


def lines(prometheus: Prometheus, query: Query, start: float, end: float) -> Iterator[Line]:
    """Raises RuntimeError when there is no series."""
    series = prometheus.over(query.expression, start, end, SCRAPE_SECONDS)
    if not series:
        raise RuntimeError(f"Prometheus has nothing for {query.expression}")
    for each in series:
        minutes = [(moment - start) / 60 for moment, _ in each.samples]
        yield Line(
            name_of(query.legend, each.labels), minutes, [value for _, value in each.samples]
        )


def name_of(legend: str, labels: Mapping[str, str]) -> str:
    """Fills in the labels as Grafana does: `{{model}} waiting`."""
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), legend)


def in_unit(values: list[float], unit: str) -> list[float]:
    return [value / BYTES_OF_A_GIGABYTE for value in values] if unit == "bytes" else values


if __name__ == "__main__":
    main()
