import pytest
import torch

from {{ cookiecutter.__package }}.serving.engine.sampling import (
    UNIFORM_BITS,
    Sampling,
    choose,
    draw,
    forbid,
    keep_top_k,
)

# The softmax of these is 0.5, 0.3, 0.15 and 0.05.
SCORES = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
SORTED = SCORES.sort(descending=True).values
HIGHEST = 1 - 1 / (1 << UNIFORM_BITS)


def sampling(
    temperature: float = 1,
    top_p: float = 1,
    top_k: int = 50,
    min_new_tokens: int = 0,
    seed: int | None = None,
) -> Sampling:
    return Sampling(temperature, top_p, top_k, min_new_tokens, max_new_tokens=9, seed=seed)


def chosen(scores: torch.Tensor, samplings: list[Sampling], generated: int) -> list[int]:
    numbers = torch.tensor([each.numbers(generated) for each in samplings]).T
    tokens: list[int] = choose(scores, numbers).tolist()
    return tokens


def drawn(top_p: float) -> list[int]:
    """Returns how often each position is drawn by numbers that are evenly spread."""
    uniform = torch.cat([torch.arange(100) / 100, torch.tensor([HIGHEST])])
    positions = draw(SORTED.repeat(101, 1), torch.full((101,), top_p), uniform)
    counted: list[int] = positions.bincount(minlength=4).tolist()
    return counted


def test_top_k_keeps_the_best_of_each_row() -> None:
    kept = keep_top_k(SORTED.repeat(2, 1), torch.tensor([1.0, 3.0]))
    assert kept.isfinite().tolist() == [[True, False, False, False], [True, True, True, False]]


def test_top_p_draws_from_the_best_that_together_have_the_probability() -> None:
    assert drawn(0.1) == [101, 0, 0, 0]
    assert drawn(0.7) == pytest.approx([62.5, 38.5, 0, 0], abs=1.5)
    assert drawn(0.7)[2:] == [0, 0]


def test_a_token_is_drawn_as_often_as_it_is_likely() -> None:
    assert drawn(1) == pytest.approx([50, 30, 15, 6], abs=1.5)


def test_the_highest_number_draws_no_token_that_is_excluded() -> None:
    scores = torch.randn(2000, 50).sort(descending=True).values
    uniform = torch.full((2000,), HIGHEST)
    top_p = torch.rand(2000)
    positions = draw(keep_top_k(scores, torch.full((2000,), 20.0)), top_p, uniform)
    assert positions.max() < 20
    probabilities = keep_top_k(scores, torch.full((2000,), 20.0)).softmax(dim=-1)
    before = (probabilities.cumsum(-1) - probabilities).gather(1, positions[:, None])[:, 0]
    assert ((before < top_p) | (positions == 0)).all()


def test_a_seed_gives_the_same_numbers_and_each_token_another() -> None:
    numbers = [sampling(seed=7).uniform(generated) for generated in range(1000)]
    assert numbers == [sampling(seed=7).uniform(generated) for generated in range(1000)]
    assert len(set(numbers)) > 990
    assert 0 <= min(numbers) < 0.01 < 0.99 < max(numbers) < 1
    assert sum(numbers) / 1000 == pytest.approx(0.5, abs=0.05)
    assert numbers != [sampling(seed=8).uniform(generated) for generated in range(1000)]


def test_without_a_seed_the_numbers_differ_each_time() -> None:
    assert len({sampling().uniform(0) for _ in range(100)}) > 95


def test_rows_with_the_same_seed_draw_the_same_token() -> None:
    scores = torch.randn(1, 500).repeat(20, 1)
    same = chosen(scores, [sampling(seed=7)] * 20, 3)
    assert len(set(same)) == 1
    assert len(set(chosen(scores, [sampling()] * 20, 3))) > 5


def test_a_forbidden_token_is_forbidden_in_its_rows_alone() -> None:
    scores = SCORES.repeat(3, 1)
    forbid(scores, [1, 3], [0, 2])
    allowed, free = [True, False, True, False], [True] * 4
    assert scores.isfinite().tolist() == [allowed, free, allowed]
    forbid(scores, [], [1])
    forbid(scores, [1], [])
    assert scores.isfinite().tolist() == [allowed, free, allowed]


def test_each_row_is_sampled_with_its_own_options() -> None:
    rows = [sampling(temperature=0), sampling(temperature=2), sampling(temperature=2, top_k=2)]
    tokens = [chosen(SCORES.repeat(3, 1), rows, 3) for _ in range(100)]
    assert [set(row) for row in zip(*tokens, strict=True)] == [{1}, {0, 1, 2, 3}, {1, 3}]


@pytest.mark.parametrize(
    "broken",
    [
        [0.5, torch.nan, 0.1, 0.2],
        [torch.nan] * 4,
        [-torch.inf] * 4,
        [0.5, torch.inf, 0.1, 0.2],
    ],
)
def test_a_row_whose_scores_are_not_finite_gets_no_token_and_the_others_do(
    broken: list[float],
) -> None:
    scores = torch.cat([SCORES, torch.tensor([broken]), SCORES])
    for temperature in (0, 1):
        first, none, last = chosen(scores, [sampling(temperature)] * 3, 3)
        assert none == -1
        assert min(first, last) >= 0


@pytest.mark.parametrize(("temperature", "top_p"), [(1e-40, 1), (0.009, 1), (1, 1e-50)])
def test_options_that_are_almost_0_take_the_likeliest_token(
    temperature: float, top_p: float
) -> None:
    rows = [sampling(temperature, top_p)] * 20
    assert set(chosen(100 * SCORES.repeat(20, 1), rows, 3)) == {1}


def test_a_vocabulary_smaller_than_top_k_is_whole() -> None:
    assert keep_top_k(SORTED, torch.tensor([50.0])).isfinite().all()
