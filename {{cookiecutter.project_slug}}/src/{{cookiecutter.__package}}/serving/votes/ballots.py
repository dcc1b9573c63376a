"""A vote, and the answers that it is about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple


class Vote(NamedTuple):
    """A vote on one answer, or on two side by side."""

    left: int
    right: int | None
    """Positions of the answers. `right` is None for a vote on a single answer."""
    vote: Literal["good", "bad", "left", "right", "tie", "both bad"]


@dataclass(frozen=True)
class Reply:
    """One model's answer."""

    model: str
    options: Mapping[str, Any]
    conversation: Sequence[Mapping[str, str]]
    """The messages before the prompt, in the same pane."""
    text: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Ballot:
    id: str
    time: datetime
    username: str | None
    blind: bool
    prompt: str
    replies: Sequence[Reply]
    votes: Sequence[Vote]


def choices_of(names: Sequence[str]) -> dict[str, list[Vote]]:
    """Returns the labels of the buttons for answers side by side, and the votes each one casts."""
    if len(names) == 1:
        return {"Good": [Vote(0, None, "good")], "Bad": [Vote(0, None, "bad")]}
    if len(names) == 2:
        left, right = names
        return {
            f"{left} is better": [Vote(0, 1, "left")],
            f"{right} is better": [Vote(0, 1, "right")],
            "Tie": [Vote(0, 1, "tie")],
            "Both are bad": [Vote(0, 1, "both bad")],
        }
    every = range(len(names))
    return {
        f"{name} is best": [Vote(best, other, "left") for other in every if other != best]
        for best, name in enumerate(names)
    }
