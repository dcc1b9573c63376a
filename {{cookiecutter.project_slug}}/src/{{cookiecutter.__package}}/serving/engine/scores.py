"""The scores of the next tokens, in a PyTorch tensor or a NumPy array."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ..protocol import MOST_TOP_K

if TYPE_CHECKING:
    # Not at run time, because a process with a saved graph does not import PyTorch.
    import torch

BLOCK = 64
"""The block size for finding the likeliest tokens: first by each block's largest score."""


class Scores(Protocol):
    """The scores of all tokens in the vocabulary, for each row."""

    def tensor(self, row: int) -> "torch.Tensor":
        """Returns the scores of a row, of shape [1, vocabulary], as a view."""

    def forbid(self, tokens: Sequence[int], rows: Sequence[int]) -> None:
        """Excludes the tokens in these rows."""

    def likeliest(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns the best scores of each row, the best first, and their tokens.

        Both have the shape [rows, candidates]. The first score is not finite if any score in its
        row is NaN, or if none is finite.
        """


class TensorScores:
    """The scores of a PyTorch model, of shape [rows, vocabulary], on its device."""

    def __init__(self, scores: "torch.Tensor") -> None:
        self._scores = scores

    def tensor(self, row: int) -> "torch.Tensor":
        return self._scores[row : row + 1]

    def forbid(self, tokens: Sequence[int], rows: Sequence[int]) -> None:
        # A tokenizer may have more tokens than its model has scores.
        scored = [token for token in tokens if token < self._scores.shape[1]]
        for row in rows:
            self._scores[row, scored] = -np.inf

    def likeliest(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        # topk sorts NaN to the front.
        best = self._scores.float().topk(min(MOST_TOP_K, self._scores.shape[1]), dim=-1)
        return best.values.cpu().numpy(), best.indices.cpu().numpy()


class ArrayScores:
    """The scores of a graph, of shape [rows, vocabulary]."""

    def __init__(self, scores: NDArray[np.float32]) -> None:
        self._scores = scores

    def tensor(self, row: int) -> "torch.Tensor":
        import torch

        return torch.from_numpy(self._scores[row : row + 1])

    def forbid(self, tokens: Sequence[int], rows: Sequence[int]) -> None:
        scored = [token for token in tokens if token < self._scores.shape[1]]
        for row in rows:
            self._scores[row, scored] = -np.inf

    def likeliest(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Sorts only scores that reach the 50th largest block maximum. No others can be in the top 50."""
        rows, vocabulary = self._scores.shape
        whole = vocabulary - vocabulary % BLOCK
        largest = self._scores[:, :whole].reshape(rows, -1, BLOCK).max(-1)
        if whole < vocabulary:
            rest = self._scores[:, whole:].max(-1, keepdims=True)
            largest = np.concatenate([largest, rest], 1)
        candidates = min(MOST_TOP_K, vocabulary)
        values = np.full((rows, candidates), -np.inf, np.float32)
        tokens = np.zeros((rows, candidates), np.int64)
        best = largest.max(-1)
        for row in range(rows):
            if not np.isfinite(best[row]):
                values[row] = np.nan
                continue
            scores, least = self._scores[row], -np.inf
            if largest.shape[1] >= candidates:
                least = np.partition(largest[row], -candidates)[-candidates]
            found = np.flatnonzero(scores >= least)
            found = found[np.argsort(-scores[found], kind="stable")][:candidates]
            tokens[row], values[row] = found, scores[found]
        return values, tokens
