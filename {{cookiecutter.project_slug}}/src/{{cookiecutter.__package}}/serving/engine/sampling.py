"""Chooses the next token of every row, each with options of its own."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..protocol import MOST_TOP_K

UNIFORM_BITS = 24
"""As many as a float32 holds exactly."""
LEAST_TEMPERATURE = 0.01
"""Below it only the likeliest token is left, and scores divided by it may leave float32."""


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are chosen."""

    temperature: float
    """0, or less than `LEAST_TEMPERATURE`, always takes the likeliest token."""
    top_p: float
    top_k: int
    min_new_tokens: int
    max_new_tokens: int
    seed: int | None = None

    @property
    def best(self) -> int:
        """Of how many tokens, the likeliest ones, one is drawn."""
        return self.top_k if self.temperature >= LEAST_TEMPERATURE else 1

    @property
    def divisor(self) -> float:
        return self.temperature if self.temperature >= LEAST_TEMPERATURE else 1.0

    def numbers(self, generated: int) -> tuple[float, float, float, float]:
        """Returns what `choose` reads for a row that has so many tokens."""
        return self.divisor, self.best, self.top_p, self.uniform(generated)

    def uniform(self, generated: int) -> float:
        """Returns a number from 0 to below 1, by which the next token is drawn.

        With a seed it depends on nothing else than how many tokens there are, so that neither
        other requests nor a new start in the middle change the text.
        """
        if self.seed is None:
            bits = random.getrandbits(UNIFORM_BITS)
        else:
            digest = hashlib.sha256(f"{self.seed} {generated}".encode()).digest()
            bits = int.from_bytes(digest[:3], "big")
        return bits / (1 << UNIFORM_BITS)


GREEDY = Sampling(temperature=0, top_p=1, top_k=1, min_new_tokens=0, max_new_tokens=1)


def choose(scores: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Returns a token for each row of scores, which have the shape [rows, vocabulary].

    It is -1 where no score is the best: among numbers that are none, say.

    `numbers` are those of each row's sampling, of shape [numbers, rows].
    """
    divisor, best, top_p, uniform = numbers
    likeliest = scores.topk(min(MOST_TOP_K, scores.shape[1]), dim=-1)
    scaled = keep_top_k(likeliest.values / divisor[:, None], best)
    chosen = likeliest.indices.gather(1, draw(scaled, top_p, uniform)[:, None])[:, 0]
    # What is no number is sorted to the front.
    return chosen.where(likeliest.values[:, 0].isfinite(), -1)


def forbid(scores: torch.Tensor, tokens: Sequence[int], rows: Sequence[int]) -> None:
    """Excludes the tokens in these rows of scores, which have the shape [rows, vocabulary]."""
    # A tokenizer may have more tokens than its model has scores.
    scored = [token for token in tokens if token < scores.shape[1]]
    if scored and rows:
        scores[torch.tensor(rows)[:, None], torch.tensor(scored)] = -torch.inf


def keep_top_k(scores: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Keeps the first `top_k` scores of each row, which are sorted."""
    positions = torch.arange(scores.shape[1], device=scores.device)
    return scores.masked_fill(positions >= top_k[:, None], -torch.inf)


def draw(scores: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Returns a position of each row, from the first that together have the probability `top_p`.

    The scores are sorted, and `uniform` has a number from 0 to below 1 for each row, which
    decides between the positions.
    """
    probabilities = scores.softmax(dim=-1)
    kept = probabilities.cumsum(dim=-1) - probabilities < top_p[:, None]
    # The best stays, however small top_p is: as a float32 it may be 0.
    kept[:, 0] = True
    up_to = (probabilities * kept).cumsum(dim=-1)
    return (up_to <= uniform[:, None] * up_to[:, -1:]).sum(dim=-1)
