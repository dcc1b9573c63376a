from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from {{ cookiecutter.__package }}.serving.engine.sampling import (
    UNIFORM_BITS,
    Sampling,
    choose,
    draw,
    keep_top_k,
)
from {{ cookiecutter.__package }}.serving.engine.scores import (
    BLOCK,
    ArrayScores,
    Scores,
    TensorScores,
)
from {{ cookiecutter.__package }}.serving.protocol import MOST_TOP_K

Array = NDArray[np.float32]
ScoresOf = Callable[[Array], Scores]

# Their softmax is 0.5, 0.3, 0.15 and 0.05.
SCORES = np.log(np.array([[0.05, 0.5, 0.15, 0.3]], np.float32))
SORTED = -np.sort(-SCORES)
HIGHEST = 1 - 1 / (1 << UNIFORM_BITS)


def sampling(
    temperature: float = 1,
    top_p: float = 1,
    top_k: int = 50,
    min_new_tokens: int = 0,
    seed: int | None = None,
) -> Sampling:
    return Sampling(temperature, top_p, top_k, min_new_tokens, max_new_tokens=9, seed=seed)


@pytest.fixture(params=["a graph's", "a model's"])
def scores_of(request: pytest.FixtureRequest) -> ScoresOf:
    if request.param == "a graph's":
        return ArrayScores
    return lambda scores: TensorScores(torch.from_numpy(scores))


def chosen(scores: Scores, samplings: Sequence[Sampling], generated: int) -> list[int]:
    return choose(*scores.likeliest(), [each.numbers(generated) for each in samplings])


def repeated(scores: Array, times: int) -> Array:
    return np.repeat(scores, times, 0)


def random_scores(rows: int, vocabulary: int) -> Array:
    return np.random.default_rng(7).standard_normal((rows, vocabulary), np.float32)


def all_of(number: float, rows: int) -> Array:
    return np.full(rows, number, np.float32)


def drawn(top_p: float) -> list[int]:
    """Returns how often each position is drawn by evenly spaced random numbers."""
    uniform = np.array([*np.arange(100) / 100, HIGHEST], np.float32)
    positions = draw(repeated(SORTED, 101), all_of(top_p, 101), uniform)
    counted: list[int] = np.bincount(positions, minlength=4).tolist()
    return counted


def test_top_k_keeps_the_best_of_each_row() -> None:
    kept = keep_top_k(repeated(SORTED, 2), np.array([1, 3], np.float32))
    assert np.isfinite(kept).tolist() == [[True, False, False, False], [True, True, True, False]]


def test_top_p_draws_from_the_smallest_set_with_that_probability() -> None:
    assert drawn(0.1) == [101, 0, 0, 0]
    assert drawn(0.7) == pytest.approx([62.5, 38.5, 0, 0], abs=1.5)
    assert drawn(0.7)[2:] == [0, 0]


def test_tokens_are_drawn_in_proportion_to_their_probability() -> None:
    assert drawn(1) == pytest.approx([50, 30, 15, 6], abs=1.5)


def test_the_highest_random_number_draws_no_excluded_token() -> None:
    scores = keep_top_k(-np.sort(-random_scores(2000, 50)), all_of(20, 2000))
    top_p = np.random.default_rng(8).random(2000, np.float32)
    positions = draw(scores, top_p, all_of(HIGHEST, 2000))
    assert positions.max() < 20
    odds = np.exp(scores - scores[:, :1])
    probabilities = odds / odds.sum(-1, keepdims=True)
    before = (probabilities.cumsum(-1) - probabilities)[np.arange(2000), positions]
    assert ((before < top_p) | (positions == 0)).all()


def test_a_seed_gives_the_same_numbers_and_a_new_one_for_each_token() -> None:
    numbers = [sampling(seed=7).uniform(generated) for generated in range(1000)]
    assert numbers == [sampling(seed=7).uniform(generated) for generated in range(1000)]
    assert len(set(numbers)) > 990
    assert 0 <= min(numbers) < 0.01 < 0.99 < max(numbers) < 1
    assert sum(numbers) / 1000 == pytest.approx(0.5, abs=0.05)
    assert numbers != [sampling(seed=8).uniform(generated) for generated in range(1000)]


def test_without_a_seed_the_numbers_differ_each_time() -> None:
    assert len({sampling().uniform(0) for _ in range(100)}) > 95


def test_rows_with_the_same_seed_draw_the_same_token(scores_of: ScoresOf) -> None:
    scores = scores_of(repeated(random_scores(1, 500), 20))
    same = chosen(scores, [sampling(seed=7)] * 20, 3)
    assert len(set(same)) == 1
    assert len(set(chosen(scores, [sampling()] * 20, 3))) > 5


def test_a_token_is_forbidden_only_in_the_rows_that_forbid_it(scores_of: ScoresOf) -> None:
    array = repeated(SCORES, 3)
    scores = scores_of(array)
    scores.forbid([1, 3, 4], [0, 2])
    allowed, free = [True, False, True, False], [True] * 4
    assert np.isfinite(array).tolist() == [allowed, free, allowed]
    scores.forbid([], [1])
    scores.forbid([1], [])
    assert np.isfinite(array).tolist() == [allowed, free, allowed]
    assert chosen(scores, [sampling(temperature=0)] * 3, 0) == [2, 1, 2]


def test_changes_to_the_scores_of_a_row_take_effect(scores_of: ScoresOf) -> None:
    scores = scores_of(repeated(SCORES, 2))
    scores.tensor(1).mul_(-1)
    assert chosen(scores, [sampling(temperature=0)] * 2, 0) == [1, 0]


def test_each_row_is_sampled_with_its_own_options(scores_of: ScoresOf) -> None:
    rows = [sampling(temperature=0), sampling(temperature=2), sampling(temperature=2, top_k=2)]
    scores = scores_of(repeated(SCORES, 3))
    tokens = [chosen(scores, rows, 3) for _ in range(100)]
    assert [set(row) for row in zip(*tokens, strict=True)] == [{1}, {0, 1, 2, 3}, {1, 3}]


@pytest.mark.parametrize(
    "broken",
    [
        [0.5, np.nan, 0.1, 0.2],
        [np.nan] * 4,
        [-np.inf] * 4,
        [0.5, np.inf, 0.1, 0.2],
    ],
)
def test_only_a_row_with_non_finite_scores_gets_no_token(
    broken: list[float], scores_of: ScoresOf
) -> None:
    scores = scores_of(np.concatenate([SCORES, np.array([broken], np.float32), SCORES]))
    for temperature in (0, 1):
        first, none, last = chosen(scores, [sampling(temperature)] * 3, 3)
        assert none == -1
        assert min(first, last) >= 0


@pytest.mark.parametrize(("temperature", "top_p"), [(1e-40, 1), (0.009, 1), (1, 1e-50)])
def test_options_close_to_0_choose_the_most_likely_token(
    temperature: float, top_p: float, scores_of: ScoresOf
) -> None:
    rows = [sampling(temperature, top_p)] * 20
    assert set(chosen(scores_of(100 * repeated(SCORES, 20)), rows, 3)) == {1}


def test_top_k_larger_than_the_vocabulary_keeps_every_token() -> None:
    assert np.isfinite(keep_top_k(SORTED, all_of(50, 1))).all()


@pytest.mark.parametrize(
    "vocabulary",
    [1, MOST_TOP_K - 1, MOST_TOP_K, BLOCK, MOST_TOP_K * BLOCK - 1, MOST_TOP_K * BLOCK + 1, 49152],
)
def test_the_top_tokens_come_from_the_whole_row(vocabulary: int, scores_of: ScoresOf) -> None:
    array = random_scores(3, vocabulary)
    # The largest next to each other, and in the last, partial block.
    array[1] = np.arange(vocabulary)
    array[2, vocabulary // 2 :] = -np.inf
    array[2, 0] = 0
    values, tokens = scores_of(array).likeliest()
    count = min(MOST_TOP_K, vocabulary)
    assert np.array_equal(values, -np.sort(-array)[:, :count])
    assert np.array_equal(np.take_along_axis(array, tokens, 1), values)
