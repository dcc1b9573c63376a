"""Decodes an answer into whole characters, up to the first stop sequence."""

from collections.abc import Collection, Sequence

from ..protocol import Piece
from .vocabulary import Vocabulary

HALF_CHARACTER = "�"


class AnswerText:
    """Reads tokens as they arrive, and returns the text that will not change any more."""

    def __init__(self, vocabulary: Vocabulary, end: Collection[int], stop: Sequence[str]) -> None:
        self._decoder = _Decoder(vocabulary)
        self._end = end
        self._stop = stop
        self._text = ""
        self._tokens = 0
        self.complete = False
        """Whether there was an end token or a stop sequence."""

    def read(self, tokens: Sequence[int]) -> bool:
        """Reads tokens, and returns whether the answer is complete."""
        for token in tokens:
            if self.complete:
                break
            if token in self._end:
                self._add(self._decoder.rest())
                self.complete = True
            else:
                self._add(self._decoder.step(token))
            self._tokens += token not in self._end
        return self.complete

    def take(self, *, last: bool = False) -> Piece | None:
        """Returns the new text since the last call, without a possible start of a stop sequence."""
        if last and not self.complete:
            self._add(self._decoder.rest())
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
            # The stop sequence that ends first, however the text was split into pieces.
            self._text = self._text[: min(found)[1]]
            self.complete = True

    def _undecided(self) -> int:
        """Returns how many characters at the end may be the start of a stop sequence."""
        return max(
            (
                length
                for stop in self._stop
                for length in range(1, len(stop))
                if self._text.endswith(stop[:length])
            ),
            default=0,
        )


class _Decoder:
    """Decodes tokens as they arrive, without incomplete characters.

    It decodes a few tokens together, because a token's text depends on its neighbors: its spaces
    depend on the tokens before it, and the rest of a character is in the tokens after it.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._decode = vocabulary.decode
        self._settled = vocabulary.settled
        self._tokens: list[int] = []
        self._shown = 0
        """How many of these tokens have been shown."""
        self._before = ""
        """The text that has been shown."""
        self._sure = 0
        """How many tokens there were when the text last ended in a whole character."""
        self._last = ""
        """The text at that time."""

    def step(self, token: int) -> str:
        self._tokens.append(token)
        whole = self._decode(self._tokens)
        if whole.endswith(HALF_CHARACTER):
            return ""
        if self._settled:
            return self._show_all(whole)
        certain = _common_start(self._last, whole)
        new, unchanged, sure = certain[len(self._before) :], certain == self._last, self._sure
        self._last, self._sure = whole, len(self._tokens)
        if new:
            self._before = certain
            if unchanged:
                self._go_on(sure)
        return new

    def rest(self) -> str:
        """Returns the text that later tokens might have changed, without an incomplete character."""
        if self._settled:
            return ""
        rest, self._before = self._last[len(self._before) :], self._last
        return rest

    def _show_all(self, whole: str) -> str:
        if whole.startswith(self._before):
            new = whole[len(self._before) :]
        else:
            # Invalid bytes changed the text before them, which has already been shown.
            new = self._decode(self._tokens[self._shown :])
        if new:
            self._go_on(len(self._tokens))
        return new

    def _go_on(self, shown: int) -> None:
        """Drops all tokens except the last ones, which the next tokens need as context."""
        self._tokens = self._tokens[self._shown :]
        self._shown = shown - self._shown
        self._before = self._decode(self._tokens[: self._shown])
        if not self._settled:
            self._last, self._sure = self._decode(self._tokens), len(self._tokens)


def _common_start(one: str, other: str) -> str:
    pairs = zip(one, other, strict=False)
    return one[: next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))]
