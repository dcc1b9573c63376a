"""Draws a project's dashboard after users have sent requests for 15 minutes: `nox -s dashboard`.

Grafana sends the queries in `deploy/monitoring/grafana-dashboard.json` to Prometheus. So does this
script, to a Prometheus that scrapes a served project, and matplotlib draws the results.
"""

import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.users import Call
from docs.pictures import save, served
from docs.provenance import Provenance
from tests.faults.users import crowd
from tests.monitoring.prometheus import Prometheus, prometheus

PICTURES = Path(__file__).with_name("pictures")
SCRAPE_SECONDS = 5
BEFORE_SECONDS = 300
"""Rates cover the last five minutes, so the picture begins after this time."""
USERS = (2, 8, 24, 8)
"""The number of users in each phase. The first phase starts before the picture begins."""
PHASE_SECONDS = 150
LIMIT = 8
"""How many requests may run, and how many may wait: 24 users are too many."""
KILLED = "smollm2-lively"
SECONDS_BEFORE_IT_IS_KILLED = 60
BYTES_OF_A_GIGABYTE = 1e9
UNITS = {"short": "", "s": "seconds", "reqps": "per second", "bytes": "GB"}
"""The label of the axis, by Grafana's name for the unit."""
QUESTION: list[str | int | float | None] = ["Why is the sky blue?", 16, 64, "1", "0.9"]


@dataclass(frozen=True)
class Colours:
    page: str
    panel: str
    grid: str
    text: str
    lines: tuple[str, ...]


# Grafana's own colors.
COLOURS = {
    "light": Colours(
        page="#f4f5f5",
        panel="#ffffff",
        grid="#e4e7e7",
        text="#24292e",
        lines=("#56a64b", "#e0b400", "#3274d9", "#ff780a", "#e02f44", "#a352cc"),
    ),
    "dark": Colours(
        page="#111217",
        panel="#181b1f",
        grid="#2c3235",
        text="#ccccdc",
        lines=("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9"),
    ),
}


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


Shown = tuple[Panel, list[Line]]


def main() -> None:
    root = Path(sys.argv[1])
    limits = {"running_requests": LIMIT, "waiting_requests": LIMIT}
    with (
        tempfile.TemporaryDirectory() as scratch,
        served(root, limits=limits) as (url, made_of, running),
    ):
        [metrics] = re.findall(r"http://([\d.:]+)/metrics", running.log.read_text())
        with prometheus(metrics, Path(scratch), SCRAPE_SECONDS) as asked:
            start = time.time() + BEFORE_SECONDS
            server = psutil.Process(running.process.pid)
            let_users_ask(Call(url, "generate", QUESTION), server, Path(scratch))
            shown = [shown_by(asked, panel, start, time.time()) for panel in panels_of(root)]
    for scheme, colours in COLOURS.items():
        draw(shown, colours, made_of, PICTURES / f"dashboard-{scheme}.png")


def let_users_ask(call: Call, server: psutil.Process, directory: Path) -> None:
    """Few, then more, then too many; then a model's replica dies. Users leave after each phase."""
    for number, users in enumerate(USERS, 1):
        seconds = PHASE_SECONDS + (BEFORE_SECONDS if number == 1 else 0)
        print(f"Phase {number} of {len(USERS)}: {users} users, {seconds} s", flush=True)
        with crowd(call, users, directory):
            time.sleep(SECONDS_BEFORE_IT_IS_KILLED)
            if number == len(USERS):
                kill(server, KILLED)
            time.sleep(seconds - SECONDS_BEFORE_IT_IS_KILLED)


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


def shown_by(prometheus: Prometheus, panel: Panel, start: float, end: float) -> Shown:
    queries = panel.queries
    return panel, [line for query in queries for line in lines(prometheus, query, start, end)]


def lines(prometheus: Prometheus, query: Query, start: float, end: float) -> Iterator[Line]:
    for each in prometheus.over(query.expression, start, end, SCRAPE_SECONDS):
        minutes = [(moment - start) / 60 for moment, _ in each.samples]
        yield Line(
            name_of(query.legend, each.labels), minutes, [value for _, value in each.samples]
        )


def draw(shown: list[Shown], colours: Colours, made_of: Provenance, path: Path) -> None:
    height = max(panel.rows.stop for panel, _ in shown)
    width = max(panel.columns.stop for panel, _ in shown)
    figure = Figure(figsize=(width / 2, height / 2.7), layout="constrained", facecolor=colours.page)
    grid = figure.add_gridspec(height, width)
    for panel, of_it in shown:
        axes = figure.add_subplot(grid[panel.rows, panel.columns], facecolor=colours.panel)
        draw_panel(axes, panel, of_it, colours)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=90)
    save(picture.getvalue(), path, made_of)


def draw_panel(axes: Axes, panel: Panel, of_it: list[Line], colours: Colours) -> None:
    for line, colour in zip(of_it, cycle(colours.lines), strict=False):
        values = in_unit(line.values, panel.unit)
        axes.plot(line.minutes, values, label=line.name, color=colour, linewidth=1.2)
    minutes = len(USERS) * PHASE_SECONDS / 60
    axes.set(ylabel=UNITS[panel.unit], xlim=(0, minutes), ylim=(0, None))
    axes.set_title(panel.title, loc="left", color=colours.text, fontsize="medium", weight="bold")
    axes.set_xlabel("minutes", color=colours.text)
    axes.yaxis.label.set_color(colours.text)
    axes.tick_params(colors=colours.text, length=0)
    axes.grid(color=colours.grid)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_color(colours.grid)
    if of_it:
        # Below the panel, where it covers no lines.
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(0, -0.22),
            ncols=2,
            fontsize="small",
            frameon=False,
            labelcolor=colours.text,
        )
    else:
        axes.set_yticks([])
        axes.text(
            *(0.5, 0.5, "No data"),
            transform=axes.transAxes,
            horizontalalignment="center",
            color=colours.text,
        )


def name_of(legend: str, labels: Mapping[str, str]) -> str:
    """Fills in the labels as Grafana does: `{{model}} waiting`."""
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), legend)


def in_unit(values: list[float], unit: str) -> list[float]:
    return [value / BYTES_OF_A_GIGABYTE for value in values] if unit == "bytes" else values


if __name__ == "__main__":
    main()
