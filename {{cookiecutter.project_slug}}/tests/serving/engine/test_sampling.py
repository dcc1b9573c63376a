import pytest
import torch

from {{ cookiecutter.__package }}.serving.engine.sampling import Sampling, choose, draw, forbid, keep_top_k

# The softmax of these is 0.5, 0.3, 0.15 and 0.05.
SCORES = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()


def drawn(scores: torch.Tensor, top_p: float) -> set[int]:
    return {int(draw(scores, torch.tensor([top_p]))) for _ in range(300)}


def test_top_k_keeps_the_best_of_each_row() -> None:
    kept = keep_top_k(SCORES.repeat(2, 1), torch.tensor([1.0, 3.0]))
    assert kept.isfinite().tolist() == [[False, True, False, False], [False, True, True, True]]


def test_top_p_draws_from_the_best_that_together_have_the_probability() -> None:
    assert drawn(SCORES, 0.1) == {1}
    assert drawn(SCORES, 0.7) == {1, 3}
    assert drawn(SCORES, 1.0) == {0, 1, 2, 3}


def test_a_token_is_drawn_as_often_as_it_is_likely() -> None:
    tokens = draw(SCORES.repeat(4000, 1), torch.ones(4000))
    share = (tokens == 1).float().mean().item()
    assert abs(share - 0.5) < 0.05


def test_a_forbidden_token_is_forbidden_in_its_rows_alone() -> None:
    scores = forbid(SCORES.repeat(2, 1), [1, 3], torch.tensor([1.0, 0.0]))
    assert scores.isfinite().tolist() == [[True, False, True, False], [True] * 4]


def test_each_row_is_sampled_with_its_own_options() -> None:
    greedy = Sampling(temperature=0, top_p=1, min_new_tokens=0, max_new_tokens=9)
    longer = Sampling(temperature=0, top_p=1, min_new_tokens=9, max_new_tokens=9)
    wild = Sampling(temperature=2, top_p=1, min_new_tokens=0, max_new_tokens=9)
    rows = [choose(SCORES.repeat(3, 1), [greedy, longer, wild], 3, [1]) for _ in range(100)]
    assert {int(row[0]) for row in rows} == {1}
    assert {int(row[1]) for row in rows} == {3}
    assert len({int(row[2]) for row in rows}) > 1


@pytest.mark.parametrize(("temperature", "top_p"), [(1e-40, 1), (0.009, 1), (1, 1e-50)])
def test_options_that_are_almost_0_take_the_likeliest_token(
    temperature: float, top_p: float
) -> None:
    sampling = Sampling(temperature, top_p, min_new_tokens=0, max_new_tokens=9)
    tokens = choose(100 * SCORES.repeat(20, 1), [sampling] * 20, 3, [])
    assert set(tokens.tolist()) == {1}


def test_a_vocabulary_smaller_than_top_k_is_whole() -> None:
    assert keep_top_k(SCORES, torch.tensor([50.0])).isfinite().all()
