"""Shortens long conversations, and remembers the tokens of answers."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from ..protocol import Message

STEPS = 4
"""How many steps the limit is divided into. Old messages are dropped by whole steps."""


def fitting(
    messages: Sequence[Message],
    limit: int,
    encode: Callable[[Sequence[Message]], list[int]],
    count: Callable[[str], int],
) -> tuple[list[int], int]:
    """Returns at most `limit` tokens of a conversation, and how many old messages were dropped.

    System messages and the last question always stay. If these alone are too long, their tokens
    are returned.

    A whole step is dropped at once, so that the next turns start with the same tokens and find
    these in the cache.
    """
    tokens, dropped = encode(messages), 0
    if len(tokens) <= limit:
        return tokens, 0
    for cut in reversed(_cuts(messages, max(limit // STEPS, 1), count)):
        kept = [
            message
            for number, message in enumerate(messages)
            if number >= cut or message.role == "system"
        ]
        shorter = encode(kept)
        if dropped and len(shorter) > limit:
            break
        tokens, dropped = shorter, len(messages) - len(kept)
        if len(shorter) > limit:
            break
    return tokens, dropped


def _cuts(messages: Sequence[Message], step: int, count: Callable[[str], int]) -> list[int]:
    """Returns the numbers of the questions at which a shortened conversation may start.

    They depend only on earlier messages, so they are the same in the next turn.
    """
    cuts: list[int] = []
    before, reached, last = 0, 0, None
    for number, message in enumerate(messages):
        if message.role == "user" and before:
            last = number
            if before // step > reached:
                reached = before // step
                cuts.append(number)
        if message.role != "system":
            before += count(message.content)
    if last is not None and last not in cuts:
        cuts.append(last)
    return cuts


class Written:
    """The tokens of a model's answers. Encoding their text may give other tokens.

    With the original tokens, the next turn starts with those in the cache.

    Args:
        most_tokens: how many to keep; the least recently used are removed first.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._tokens: OrderedDict[str, Sequence[int]] = OrderedDict()
        self._kept = 0

    def keep(self, text: str, tokens: Sequence[int]) -> None:
        self._kept += len(tokens) - len(self._tokens.pop(text, ()))
        self._tokens[text] = tokens
        while self._kept > self._most_tokens:
            _, oldest = self._tokens.popitem(last=False)
            self._kept -= len(oldest)

    def tokens_of(self, text: str) -> Sequence[int] | None:
        if text in self._tokens:
            self._tokens.move_to_end(text)
        return self._tokens.get(text)
