"""Merges the caches of rows of any model: keys and values, states, convolution windows."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import Cache, EncoderDecoderCache

SEQUENCES = {"keys": -2, "values": -2, "indexer_keys": -2}
"""The tensors that grow with the tokens, and along which dimension. All others are states."""


def join(first: Cache, second: Cache, *, width: int, encoded: int) -> None:
    """Adds the rows of the second cache to those of the first.

    Rows are padded with zeros at the start, up to `width` tokens, and the caller masks the
    padding. Rows from an encoder are padded at the end, up to `encoded` tokens.

    Raises:
        TypeError: the caches have values that cannot be merged.
    """
    for own, other, crossed in zip(_layers(first), _layers(second), _crossed(first), strict=True):
        for name, value in vars(own).items():
            added = vars(other)[name]
            if name in SEQUENCES and value is not None and value.numel():
                missing = encoded if crossed else _held(own, width)
                joined = [_padded(each, missing, before=not crossed) for each in (value, added)]
                setattr(own, name, torch.cat(joined))
            elif name == "cumulative_length":
                own.cumulative_length = width
            else:
                setattr(own, name, _joined(name, value, added))


def keep(cache: Cache, rows: torch.Tensor, *, width: int) -> None:
    """Keeps only these rows, and only the last `width` tokens of each."""
    for layer, crossed in zip(_layers(cache), _crossed(cache), strict=True):
        for name, value in vars(layer).items():
            if name in SEQUENCES and value is not None and value.numel():
                kept = value.index_select(0, rows)
                excess = 0 if crossed else max(kept.shape[-2] - _held(layer, width), 0)
                setattr(layer, name, kept[..., excess:, :])
            elif name == "cumulative_length":
                layer.cumulative_length = width
            else:
                setattr(layer, name, _mapped(value, lambda state: state.index_select(0, rows)))


def _layers(cache: Cache) -> list[Any]:
    if isinstance(cache, EncoderDecoderCache):
        return [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    return list(cache.layers)


def _crossed(cache: Cache) -> list[bool]:
    """Whether each layer holds keys and values of the encoder."""
    if isinstance(cache, EncoderDecoderCache):
        own, crossed = cache.self_attention_cache.layers, cache.cross_attention_cache.layers
        return [False] * len(own) + [True] * len(crossed)
    return [False] * len(cache.layers)


def _held(layer: Any, width: int) -> int:
    """How many of `width` tokens a layer holds: one with a sliding window drops the first."""
    window = getattr(layer, "sliding_window", None)
    return width if window is None else min(width, window - 1)


def _padded(states: torch.Tensor, length: int, *, before: bool) -> torch.Tensor:
    missing = max(length - states.shape[-2], 0)
    return pad(states, (0, 0, missing, 0) if before else (0, 0, 0, missing))


def _joined(name: str, own: Any, other: Any) -> Any:
    if isinstance(own, dict):
        return {key: _joined(name, value, other[key]) for key, value in own.items()}
    if isinstance(own, torch.Tensor) and own.ndim:
        return torch.cat([own, other])
    if not isinstance(own, torch.Tensor) and own != other:
        raise TypeError(f"rows differ in {name}")
    return own


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(each, change) for key, each in value.items()}
    return change(value) if isinstance(value, torch.Tensor) and value.ndim else value
