"""Chooses the next token of every row, each with options of its own."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

TOP_K = 50
"""The default of transformers' sampling, which the Ray guide's pipelines used."""
LEAST_TEMPERATURE = 0.01
"""Below it only the likeliest token is left, and scores divided by it may leave float32."""


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are chosen."""

    temperature: float
    """0, or less than `LEAST_TEMPERATURE`, always takes the likeliest token."""
    top_p: float
    min_new_tokens: int
    max_new_tokens: int

    @property
    def top_k(self) -> int:
        return TOP_K if self.temperature >= LEAST_TEMPERATURE else 1

    @property
    def divisor(self) -> float:
        return self.temperature if self.temperature >= LEAST_TEMPERATURE else 1.0


def choose(
    scores: torch.Tensor, samplings: Sequence[Sampling], generated: int, end: Sequence[int]
) -> torch.Tensor:
    """Returns a token for each row of scores, which have the shape [rows, vocabulary].

    `generated` is how many tokens each row has, and `end` are the tokens that end a text.
    """

    def each(values: Iterable[float]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.float32, device=scores.device)

    scores = forbid(scores, end, each(s.min_new_tokens > generated for s in samplings))
    scores = scores / each(s.divisor for s in samplings)[:, None]
    scores = keep_top_k(scores, each(s.top_k for s in samplings))
    return draw(scores, each(s.top_p for s in samplings))


def forbid(scores: torch.Tensor, tokens: Sequence[int], rows: torch.Tensor) -> torch.Tensor:
    """Excludes the tokens in the rows whose entry is not 0.

    Scores have the shape [rows, vocabulary], and `rows` has the shape [rows].
    """
    excluded = torch.zeros_like(scores, dtype=torch.bool)
    excluded[:, list(tokens)] = (rows != 0)[:, None]
    return scores.masked_fill(excluded, -torch.inf)


def keep_top_k(scores: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Keeps the `top_k` best tokens of each row, at the most `TOP_K`."""
    best = scores.topk(min(TOP_K, scores.shape[1]), dim=-1).values
    last = top_k.long().clamp(1, best.shape[1]) - 1
    return scores.masked_fill(scores < best.gather(1, last[:, None]), -torch.inf)


def draw(scores: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Returns a token for each row, from the best that together have the probability `top_p`.

    No row may have more than `TOP_K` tokens left: to sort and draw from those is many times
    faster than from the vocabulary.
    """
    best = scores.topk(min(TOP_K, scores.shape[1]), dim=-1)
    probabilities = best.values.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    # The best token stays, however small top_p is: as a float32 it may be 0.
    before[:, 0] = -1
    probabilities = probabilities.masked_fill(before >= top_p[:, None], 0)
    return best.indices.gather(1, torch.multinomial(probabilities, 1))[:, 0]
