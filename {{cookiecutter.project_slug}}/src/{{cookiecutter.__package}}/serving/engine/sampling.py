"""Chooses the next token of every row, each with its own options."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNIFORM_BITS = 24
"""The number of bits that a float32 stores exactly."""
MIN_TEMPERATURE = 0.01
"""Below it, only the likeliest token remains, and divided scores may overflow float32."""


@dataclass(frozen=True)
class Sampling:
    """The sampling options of one request."""

    temperature: float
    """0, or less than `MIN_TEMPERATURE`, always picks the likeliest token."""
    top_p: float
    top_k: int
    min_new_tokens: int
    max_new_tokens: int
    seed: int | None = None

    @property
    def best(self) -> int:
        """From how many of the likeliest tokens to sample."""
        return self.top_k if self.temperature >= MIN_TEMPERATURE else 1

    @property
    def divisor(self) -> float:
        return self.temperature if self.temperature >= MIN_TEMPERATURE else 1.0

    def numbers(self, generated: int) -> tuple[float, float, float, float]:
        """Returns the row's values for `choose`, after this many generated tokens."""
        return self.divisor, self.best, self.top_p, self.uniform(generated)

    def uniform(self, generated: int) -> float:
        """Returns a number from 0 to below 1 that selects the next token.

        With a seed it depends only on the number of generated tokens, so neither other requests
        nor a restart in the middle change the text.
        """
        if self.seed is None:
            bits = random.getrandbits(UNIFORM_BITS)
        else:
            digest = hashlib.sha256(f"{self.seed} {generated}".encode()).digest()
            bits = int.from_bytes(digest[:3], "big")
        return bits / (1 << UNIFORM_BITS)


GREEDY = Sampling(temperature=0, top_p=1, top_k=1, min_new_tokens=0, max_new_tokens=1)


def choose(
    values: NDArray[np.float32],
    tokens: NDArray[np.int64],
    numbers: Sequence[tuple[float, float, float, float]],
) -> list[int]:
    """Returns a token for each row, from its likeliest tokens and their scores, the best first.

    `values` and `tokens` have the shape [rows, candidates], and `numbers` come from each row's
    `Sampling.numbers`. The token is -1 if the best score is not finite.
    """
    divisor, best, top_p, uniform = np.array(numbers, np.float32).T
    finite = np.isfinite(values[:, 0])
    scaled = keep_top_k(np.where(finite[:, None], values, 0) / divisor[:, None], best)
    chosen = tokens[np.arange(len(tokens)), draw(scaled, top_p, uniform)]
    picked: list[int] = np.where(finite, chosen, -1).tolist()
    return picked


def keep_top_k(scores: NDArray[np.float32], top_k: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keeps the first `top_k` scores of each sorted row."""
    return np.where(np.arange(scores.shape[1]) < top_k[:, None], scores, -np.inf)


def draw(
    scores: NDArray[np.float32], top_p: NDArray[np.float32], uniform: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Returns a position in each row, from the first ones that together have probability `top_p`.

    The scores are sorted. `uniform` has a number from 0 to below 1 for each row, which selects
    the position.
    """
    odds = np.exp(scores - scores[:, :1])
    probabilities = odds / odds.sum(-1, keepdims=True)
    kept = probabilities.cumsum(-1) - probabilities < top_p[:, None]
    # The best one always stays, because a small top_p may become 0 as a float32.
    kept[:, 0] = True
    up_to = (probabilities * kept).cumsum(-1)
    positions: NDArray[np.int64] = (up_to <= uniform[:, None] * up_to[:, -1:]).sum(-1)
    return positions
