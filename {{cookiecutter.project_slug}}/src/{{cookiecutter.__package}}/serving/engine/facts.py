"""What a model's own configuration says about its texts."""

from pydantic import BaseModel


class Facts(BaseModel, frozen=True):
    """What a request needs to know of a model, beside its tokenizer."""

    ends: frozenset[int]
    """The tokens that end a text."""
    top_k: int | None
    positions: int | None
    """Tokens that a decoder reads and writes in one text at the most; None where none is said."""
    longest_answer: int | None
    """Tokens that an encoder-decoder writes at the most; None where none is said."""
    left_out: tuple[str, ...]
    """Lines about what it asks for and is not done."""
    has_rules: bool
    """Whether it changes scores, which is done by PyTorch."""
