"""Separates the thoughts of a reasoning model from its answer.

Qwen3, DeepSeek-R1 and others write `<think>`, their thoughts and `</think>` before the answer.
Some chat templates add the opening tag themselves.
"""

from collections.abc import Iterator, Sequence
from enum import Enum, auto

from transformers import PreTrainedTokenizerBase

from ..protocol import Piece

OPEN, CLOSE = "<think>", "</think>"
TOKENS_OF_OPEN = 8
"""Enough for the tag and a line break."""


class Part(Enum):
    START = auto()
    THOUGHTS = auto()
    BETWEEN = auto()
    ANSWER = auto()


class Thoughts:
    """Marks the pieces of one answer that are thoughts, and removes the tags."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._held = ""
        """Text that may be part of a tag, or the space around one."""
        self._tokens = 0
        self._silent = True
        """Whether no thought has been yielded yet."""

    def tell(self, piece: Piece) -> Iterator[Piece]:
        """Reads a piece, and yields the text whose kind is certain."""
        self._held += piece.text
        self._tokens += piece.tokens
        yield from self._split(last=False)

    def rest(self) -> Iterator[Piece]:
        yield from self._split(last=True)

    def _split(self, *, last: bool) -> Iterator[Piece]:
        if self._part is Part.START:
            bare = self._held.lstrip()
            if bare.startswith(OPEN):
                self._part, self._held = Part.THOUGHTS, bare.removeprefix(OPEN)
            elif last or not OPEN.startswith(bare):
                self._part = Part.ANSWER
        if self._part is Part.THOUGHTS:
            if self._silent:
                self._held = self._held.lstrip()
            thought, close, rest = self._held.partition(CLOSE)
            held = 0 if close or last else _partial_tag(thought)
            yield from self._out(thought[: len(thought) - held], thought=True)
            self._held = rest if close else thought[len(thought) - held :]
            if close:
                self._part = Part.BETWEEN
        if self._part is Part.BETWEEN:
            self._held = self._held.lstrip()
            if self._held:
                self._part = Part.ANSWER
        if self._part is Part.ANSWER or last:
            text, self._held = self._held, ""
            thinks = self._part is Part.THOUGHTS
            yield from self._out(text, thought=thinks, always=last)

    def _out(self, text: str, *, thought: bool, always: bool = False) -> Iterator[Piece]:
        if text or (always and self._tokens):
            piece, self._tokens = Piece(text, self._tokens, thought), 0
            self._silent = self._silent and not thought
            yield piece


def first_part(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> Part:
    """Returns the part with which a model starts after this prompt."""
    added = tokenizer.get_added_vocab()
    if CLOSE not in added:
        # It is not a reasoning model, so a tag that it writes is plain text.
        return Part.ANSWER
    end = tokenizer.decode(list(prompt[-TOKENS_OF_OPEN:])).rstrip()
    return Part.THOUGHTS if end.endswith(OPEN) else Part.START


def _partial_tag(text: str) -> int:
    """Returns how many characters at the end may be the start of the closing tag."""
    lengths = range(1, len(CLOSE))
    return max((length for length in lengths if text.endswith(CLOSE[:length])), default=0)
