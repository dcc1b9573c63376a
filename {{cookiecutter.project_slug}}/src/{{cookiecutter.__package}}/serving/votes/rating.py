"""A table of the votes, and ratings of the models with their intervals."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MIDDLE = 1000
POINTS = 400 / math.log(10)
"""As in chess: a model with 400 points more wins ten times as often as it loses."""

SIGMAS = 1.96
"""95% of a normal distribution lies within this many standard deviations."""

STEPS = 200
SMALL = 1e-9

Matrix = NDArray[np.float64]


class Count(NamedTuple):
    """How often one vote was cast. `right` is None for votes on a single answer."""

    left: str
    right: str | None
    vote: str
    number: int


@dataclass
class Standing:
    """The votes on one model, compared with others or by itself."""

    won: int = 0
    lost: int = 0
    tie: int = 0
    both_bad: int = 0
    good: int = 0
    bad: int = 0

    @property
    def compared(self) -> int:
        return self.won + self.lost + self.tie + self.both_bad

    @property
    def win_rate(self) -> float:
        """The share of wins. A vote for neither model counts as half a win."""
        return (self.won + (self.tie + self.both_bad) / 2) / self.compared


class Rating(NamedTuple):
    points: float
    low: float
    high: float
    """`low` and `high` are the bounds of the 95% interval."""


def standings(counts: Sequence[Count]) -> dict[str, Standing]:
    found: dict[str, Standing] = {}
    for count in counts:
        left = found.setdefault(count.left, Standing())
        if count.right is None:
            left.good += count.number * (count.vote == "good")
            left.bad += count.number * (count.vote == "bad")
            continue
        right = found.setdefault(count.right, Standing())
        left.won += count.number * (count.vote == "left")
        left.lost += count.number * (count.vote == "right")
        right.won += count.number * (count.vote == "right")
        right.lost += count.number * (count.vote == "left")
        for side in (left, right):
            side.tie += count.number * (count.vote == "tie")
            side.both_bad += count.number * (count.vote == "both bad")
    return found


def ratings(counts: Sequence[Count]) -> dict[str, Rating]:
    """Returns the Bradley-Terry rating of each model that was compared, the best first.

    A vote for neither is half a win for both. Each model also gets half a win and half a loss
    against an average model, so that a model that always wins has a finite rating.
    """
    compared = [count for count in counts if count.right is not None]
    names = sorted({name for each in compared for name in (each.left, each.right) if name})
    if not names:
        return {}
    position = {name: number for number, name in enumerate(names)}
    wins = np.zeros((len(names), len(names)))
    for left, right, vote, number in compared:
        one, other = position[left], position[right or ""]
        share = {"left": 1.0, "right": 0.0}.get(vote, 0.5)
        wins[one, other] += number * share
        wins[other, one] += number * (1 - share)
    strengths, spread = _fit(wins)
    rated = {
        name: Rating(
            MIDDLE + POINTS * strengths[number],
            MIDDLE + POINTS * (strengths[number] - SIGMAS * spread[number]),
            MIDDLE + POINTS * (strengths[number] + SIGMAS * spread[number]),
        )
        for name, number in position.items()
    }
    return dict(sorted(rated.items(), key=lambda each: -each[1].points))


def _fit(wins: Matrix) -> tuple[Matrix, Matrix]:
    """Returns the maximum-likelihood strengths, by Newton's method, and their standard deviations."""
    games = wins + wins.T
    strengths: Matrix = np.zeros(len(wins))
    for _ in range(STEPS):
        slope, curve = _slope_and_curve(wins, games, strengths)
        # A longer step may miss the maximum where one model always wins.
        step = np.clip(np.linalg.solve(curve, slope), -1, 1)
        strengths = strengths + step
        if np.abs(step).max() < SMALL:
            break
    _, curve = _slope_and_curve(wins, games, strengths)
    return strengths, np.sqrt(np.diag(np.linalg.inv(curve)))


def _slope_and_curve(wins: Matrix, games: Matrix, strengths: Matrix) -> tuple[Matrix, Matrix]:
    """Returns the gradient of the log-likelihood, and its negative Hessian."""
    chance = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    against_middle = 1 / (1 + np.exp(-strengths))
    slope = (wins - games * chance).sum(axis=1) + 0.5 - against_middle
    bend = games * chance * (1 - chance)
    curve = np.diag(bend.sum(axis=1) + against_middle * (1 - against_middle)) - bend
    return slope, curve


def table(counts: Sequence[Count]) -> str:
    """Returns the tables as text for a terminal."""
    if not counts:
        return "There are no votes yet."
    return "\n\n".join(["\n".join(_aligned(rows)) for rows in _tables(counts)])


def _tables(counts: Sequence[Count]) -> Iterator[list[list[str]]]:
    found = standings(counts)
    rated = ratings(counts)
    if rated:
        head = ["model", "won", "lost", "tie", "both bad", "win rate", "rating", "95% interval"]
        yield [head] + [
            [
                name,
                *map(str, (each.won, each.lost, each.tie, each.both_bad)),
                f"{each.win_rate:.1%}",
                f"{rating.points:.0f}",
                f"{rating.low:.0f} to {rating.high:.0f}",
            ]
            for name, rating in rated.items()
            for each in [found[name]]
        ]
    alone = {name: each for name, each in found.items() if each.good or each.bad}
    if alone:
        yield [["model", "good", "bad", "good rate"]] + [
            [name, str(each.good), str(each.bad), f"{each.good / (each.good + each.bad):.1%}"]
            for name, each in sorted(alone.items())
        ]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield "  ".join([name.ljust(widths[0]), *numbers])
