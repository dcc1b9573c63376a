"""Writes what was measured to docs/benchmarks: JSON, a table and a plot."""

import json
import platform
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import psutil
from matplotlib.figure import Figure

from .contenders import NEW_TOKENS
from .measures import Alone, Cost, Load, Memory, Scale, Start

DIRECTORY = Path(__file__).parents[1] / "docs" / "benchmarks"


@dataclass(frozen=True)
class Ratio:
    measure: str
    value: float
    goal: float
    smaller_is_better: bool = False

    def reached(self) -> bool:
        return self.value <= self.goal if self.smaller_is_better else self.value >= self.goal


@dataclass(frozen=True)
class Results:
    loads: list[Load]
    alone_auto: Alone
    """Two engines at once, in the format that this machine chooses."""
    alone_float32: Alone
    alone_bfloat16: Alone
    scale: list[Scale]
    cost: list[Cost]
    fast_pane: tuple[float, float]
    memory: Memory
    start: Start

    def load(self, contender: str, users: int) -> Load:
        [load] = [x for x in self.loads if (x.contender, x.users) == (contender, users)]
        return load

    def ratios(self) -> list[Ratio]:
        def tokens(contender: str, users: int) -> float:
            return self.load(contender, users).tokens_per_second

        ours, same, guide = "project, auto", "project, float32", "tutorial, float32"
        first = self.load(guide, 8).first_text
        alone, beside = self.fast_pane
        one, eight = self.scale[0], self.scale[-1]
        start = self.start
        return [
            Ratio(
                "tokens/s at 8 users / the guide's pattern", tokens(ours, 8) / tokens(guide, 8), 6
            ),
            Ratio("the same in equal dtype (float32)", tokens(same, 8) / tokens(guide, 8), 6),
            Ratio(
                "tokens/s at 32 users / the guide's pattern",
                tokens(ours, 32) / tokens(guide, 32),
                10,
            ),
            Ratio("the same in equal dtype (float32)", tokens(same, 32) / tokens(guide, 32), 10),
            Ratio(
                "first text at 8 users, the guide's pattern / ours",
                first / self.load(ours, 8).first_text,
                20,
            ),
            Ratio("the same in equal dtype (float32)", first / self.load(same, 8).first_text, 20),
            Ratio(
                "whole answer of one user, the guide's pattern / ours",
                self.load(guide, 1).whole_answer / self.load(ours, 1).whole_answer,
                1,
            ),
            Ratio(
                "the same in equal dtype (float32)",
                self.load(guide, 1).whole_answer / self.load(same, 1).whole_answer,
                1,
            ),
            Ratio(
                "tokens/s at 8 users / the guide's original approach",
                tokens(ours, 8) / tokens("original, float32", 8),
                1,
            ),
            Ratio(
                "tokens/s at 8 users / the engines alone",
                tokens(ours, 8) / self.alone_auto.engine,
                0.9,
            ),
            Ratio(
                "engine alone / generate on a batch of 8, float32",
                _against_generate(self.alone_float32),
                0.95,
            ),
            Ratio(
                "engine alone / generate on a batch of 8, bfloat16",
                _against_generate(self.alone_bfloat16),
                0.95,
            ),
            Ratio(
                "first text of a fast pane beside a slow one / alone",
                beside / alone,
                1.2,
                smaller_is_better=True,
            ),
            Ratio(
                "answers/s of 8 stand-in replicas / 8 times one replica",
                eight.answers_per_second / (eight.replicas * one.answers_per_second),
                0.9,
            ),
            Ratio(
                "second start / its imports and Ray's own start",
                start.page_ready / (start.imports + start.ray),
                1.3,
                smaller_is_better=True,
            ),
            Ratio("memory, GB of all processes", self.memory.after_1000, 4, smaller_is_better=True),
            Ratio(
                "memory after 1,000 requests / after 100",
                self.memory.after_1000 / self.memory.after_100,
                1.05,
                smaller_is_better=True,
            ),
            Ratio(
                "failures of 100 users at once",
                self.memory.failures_of_100_at_once,
                0,
                smaller_is_better=True,
            ),
        ]


def write(results: Results) -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    measured = {"machine": machine(), "date": f"{date.today()}", **asdict(results)}
    (DIRECTORY / "results.json").write_text(json.dumps(measured, indent=2) + "\n")
    text = "\n".join([f"{machine()}; {date.today()}; medians.", "", *tables(results), ""])
    (DIRECTORY / "results.md").write_text(text)
    plot(results.loads, DIRECTORY / "tokens.png")
    print(text)


def machine() -> str:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{cpu}, {psutil.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}"
    )


def tables(results: Results) -> list[str]:
    loads = [
        f"| {x.contender} | {x.users} | {x.tokens_per_second:.0f} | {x.first_text:.2f} "
        f"| {x.whole_answer:.1f} | {x.failures} |"
        for x in results.loads
    ]
    ratios = [
        f"| {x.measure} | {x.value:.2f} | {'at most ' if x.smaller_is_better else ''}{x.goal:g} "
        f"| {'yes' if x.reached() else '**no**'} |"
        for x in results.ratios()
    ]
    scale = [f"| {x.replicas} | {x.answers_per_second:.2f} |" for x in results.scale]
    cost = [f"| {x.users} | {x.delay:.2f} | {x.cpu_seconds:.3f} |" for x in results.cost]
    return [
        *("| measure | ratio | goal | reached |", "|---|---|---|---|", *ratios, ""),
        f"Two panes, {NEW_TOKENS} new tokens in each, all users at once:",
        "",
        "| contender, dtype | users | tokens/s | first text, s | whole answer, s | failures |",
        *("|---|---|---|---|---|---|", *loads, ""),
        "A stand-in model of 4 seconds, 4 requests at a time in each replica:",
        *("", "| replicas | answers/s |", "|---|---|", *scale, ""),
        "What a user costs, with the stand-in model:",
        *("", "| users | delay beyond the model, s | CPU seconds of a user |", "|---|---|---|"),
        *cost,
    ]


def plot(loads: list[Load], path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for contender in dict.fromkeys(load.contender for load in loads):
        own = [load for load in loads if load.contender == contender]
        axes.plot(
            [load.users for load in own],
            [load.tokens_per_second for load in own],
            marker="o",
            label=contender,
        )
    axes.set(xlabel="users at once", ylabel="output tokens per second", ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend()
    figure.savefig(path, dpi=120)


def _against_generate(alone: Alone) -> float:
    return alone.engine / (alone.generate or float("nan"))
