"""The text of an answer: whole characters, up to the first stop text."""

from collections.abc import Collection, Sequence

from ..protocol import Piece
from .vocabulary import Vocabulary

HALF_CHARACTER = "�"


class AnswerText:
    """Takes tokens in as they come, and gives out the text that is certain."""

    def __init__(self, vocabulary: Vocabulary, end: Collection[int], stop: Sequence[str]) -> None:
        self._decoder = _Decoder(vocabulary)
        self._end = end
        self._stop = stop
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
                self._add(self._decoder.rest())
                self.complete = True
            else:
                self._add(self._decoder.step(token))
            self._tokens += token not in self._end
        return self.complete

    def take(self, *, last: bool = False) -> Piece | None:
        """Returns what has come since the last time, less what may begin a stop text."""
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


class _Decoder:
    """Gives the text of tokens as they come, without half characters.

    A few tokens are decoded together, because a token's text depends on its neighbours: on
    those before it for its spaces, on those after it for a character's other half.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._decode = vocabulary.decode
        self._settled = vocabulary.settled
        self._tokens: list[int] = []
        self._shown = 0
        """How many of these tokens gave what was shown of their text."""
        self._before = ""
        """What was shown of their text."""
        self._sure = 0
        """How many of them were there when their text last ended in a whole character."""
        self._last = ""
        """That text."""

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
        """Returns what tokens to come might have changed, but for half a character."""
        if self._settled:
            return ""
        rest, self._before = self._last[len(self._before) :], self._last
        return rest

    def _show_all(self, whole: str) -> str:
        if whole.startswith(self._before):
            new = whole[len(self._before) :]
        else:
            # Bytes that are no character spoil those before them, which are shown already.
            new = self._decode(self._tokens[self._shown :])
        if new:
            self._go_on(len(self._tokens))
        return new

    def _go_on(self, shown: int) -> None:
        """Forgets all tokens but those that came last, as what the next ones follow."""
        self._tokens = self._tokens[self._shown :]
        self._shown = shown - self._shown
        self._before = self._decode(self._tokens[: self._shown])
        if not self._settled:
            self._last, self._sure = self._decode(self._tokens), len(self._tokens)


def _common_start(one: str, other: str) -> str:
    pairs = zip(one, other, strict=False)
    return one[: next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))]
