"""Hides the models' names and shuffles their sides."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from string import ascii_uppercase

from ..protocol import End, GenerationOptions, Message, Model, Piece


@dataclass(frozen=True)
class AnonymousModel:
    """A model under another name."""

    name: str
    model: Model

    def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]:
        return self.model.stream(messages, options)


def anonymous(models: Sequence[Model]) -> list[Model]:
    """Returns the models as A, B, C."""
    return [AnonymousModel(_letter(number), model) for number, model in enumerate(models)]


def _letter(number: int) -> str:
    rest, letter = divmod(number, len(ascii_uppercase))
    return ascii_uppercase[letter] + (str(rest) if rest else "")


def sides(number: int, seed: str) -> list[int]:
    """Returns the model on each side. The same seed gives the same sides on every replica."""
    return sorted(range(number), key=lambda each: sha256(f"{seed}\0{each}".encode()).digest())
