"""Plots the measurements of users to docs/benchmarks."""

from matplotlib.figure import Figure

from .measures import Load
from .report import DIRECTORY


def plot(loads: list[Load]) -> None:
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
    figure.savefig(DIRECTORY / "tokens.png", dpi=120)
