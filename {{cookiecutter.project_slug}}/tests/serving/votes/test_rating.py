"""The table of ratings."""

import random

import pytest

from {{ cookiecutter.__package }}.serving.votes.rating import (
    MIDDLE,
    POINTS,
    Count,
    ratings,
    standings,
    table,
)


def test_a_tie_counts_as_half_a_win() -> None:
    counts = [
        Count("a", "b", "left", 5),
        Count("b", "a", "left", 1),
        Count("a", "b", "right", 2),
        Count("a", "b", "tie", 1),
        Count("a", "b", "both bad", 1),
    ]
    a = standings(counts)["a"]
    assert (a.won, a.lost, a.tie, a.both_bad) == (5, 3, 1, 1)
    assert a.win_rate == 0.6
    assert standings(counts)["b"].win_rate == 0.4


def test_equally_good_models_get_the_middle_rating() -> None:
    rated = ratings([Count("a", "b", "left", 10), Count("a", "b", "right", 10)])
    assert [each.points for each in rated.values()] == [MIDDLE, MIDDLE]


def test_a_model_that_always_won_gets_a_wide_interval() -> None:
    few = ratings([Count("a", "b", "left", 3)])["a"]
    many = ratings([Count("a", "b", "left", 2), Count("a", "b", "right", 1)])["a"]
    assert few.points > many.points > MIDDLE
    assert few.high - few.low > 300


@pytest.mark.parametrize("number", [1, 1000, 10**6])
def test_any_number_of_wins_has_a_rating(number: int) -> None:
    rated = ratings([Count("a", "b", "left", number), Count("b", "c", "left", number)])
    assert list(rated) == ["a", "b", "c"]
    assert all(each.low < each.points < each.high < 10_000 for each in rated.values())


def test_the_interval_contains_the_true_difference_in_about_95_percent_of_cases() -> None:
    draw = random.Random(7)  # noqa: S311
    strengths = {"weak": -0.5, "middling": 0.0, "strong": 0.5}
    pairs = [("weak", "middling"), ("middling", "strong"), ("strong", "weak")]
    held = 0
    for _ in range(200):
        counts = []
        for left, right in pairs:
            chance = 1 / (1 + 2.718281828459045 ** (strengths[right] - strengths[left]))
            won = sum(draw.random() < chance for _ in range(60))
            counts += [Count(left, right, "left", won), Count(left, right, "right", 60 - won)]
        rated = ratings(counts)
        held += all(
            rated[name].low <= MIDDLE + POINTS * strength <= rated[name].high
            for name, strength in strengths.items()
        )
    # All three together, so less often than each alone.
    assert held > 170


def test_the_table_has_compared_models_and_single_ones() -> None:
    said = table(
        [
            Count("strong", "weak", "left", 30),
            Count("strong", "weak", "right", 10),
            Count("alone", None, "good", 3),
            Count("alone", None, "bad", 1),
        ]
    )
    lines = said.splitlines()
    assert lines[0].split() == [
        "model",
        "won",
        "lost",
        "tie",
        "both",
        "bad",
        "win",
        "rate",
        "rating",
        "95%",
        "interval",
    ]
    assert lines[1].split()[:6] == ["strong", "30", "10", "0", "0", "75.0%"]
    assert lines[2].startswith("weak ")
    assert [line.split() for line in lines[4:]] == [
        ["model", "good", "bad", "good", "rate"],
        ["alone", "3", "1", "75.0%"],
    ]


def test_the_table_says_if_there_are_no_votes() -> None:
    assert table([]) == "There are no votes yet."
