"""The parts of a model's configuration that requests need."""

from pydantic import BaseModel


class Facts(BaseModel, frozen=True):
    """What a request needs to know about a model, besides its tokenizer."""

    ends: frozenset[int]
    """The tokens that end a text."""
    top_k: int | None
    positions: int | None
    """The maximum number of tokens that a decoder reads and writes in one text, if known."""
    longest_answer: int | None
    """The maximum number of tokens that an encoder-decoder writes, if known."""
    left_out: tuple[str, ...]
    """A line for each setting in the generation config that has no effect."""
    has_rules: bool
    """Whether the generation config changes scores, which needs PyTorch."""
