"""The text of an answer: whole characters, up to the first stop text."""

from collections.abc import Collection, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from ..protocol import Piece


class AnswerText:
    """Takes tokens in as they come, and gives out the text that is certain."""

    def __init__(self, tokenizer: Tokenizer, end: Collection[int], stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._end = end
        self._stop = stop
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._text = ""
        self._tokens = 0
        self.complete = False
        """Whether an end token or a stop text has come."""

    def read(self, tokens: Sequence[int]) -> bool:
        """Takes tokens in and returns whether the answer is complete with them."""
        for token in tokens:
            if self.complete:
                break
            if token in self._end:
                self.complete = True
            # None is a character that is not complete yet.
            elif text := self._decoder.step(self._tokenizer, token):
                self._add(text)
            self._tokens += token not in self._end
        return self.complete

    def take(self, *, last: bool = False) -> Piece | None:
        """Returns what has come since the last time, less what may begin a stop text."""
        length = len(self._text)
        if not last and not self.complete:
            length -= self._undecided()
        text, self._text = self._text[:length], self._text[length:]
        if not text and not (last and self._tokens):
            return None
        piece, self._tokens = Piece(text, self._tokens), 0
        return piece

    def _add(self, text: str) -> None:
        self._text += text
        found = [
            (start + len(stop), start)
            for stop in self._stop
            if (start := self._text.find(stop)) >= 0
        ]
        if found:
            # The one that is complete first, whatever pieces the text came in.
            self._text = self._text[: min(found)[1]]
            self.complete = True

    def _undecided(self) -> int:
        """Returns how many characters at the end may begin a stop text."""
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, len(stop))
                if self._text.endswith(stop[:length])
            ),
            default=0,
        )
