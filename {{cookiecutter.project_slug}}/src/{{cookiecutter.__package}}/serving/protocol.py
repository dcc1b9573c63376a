"""What a model is asked and answers, and how it fails.

Knows neither Ray nor Gradio nor torch.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol, Self, get_args

from pydantic import Field, StringConstraints, model_validator

from .base import StartError, Strict

MOST_TOP_K = 50
"""The most tokens that one is drawn from."""

CHARACTERS_PER_TOKEN = 4
"""About as many, in English."""

Role = Literal["system", "user", "assistant"]
EndReason = Literal["stop", "length", "filtered"]
StopText = Annotated[str, StringConstraints(min_length=1)]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Raises:
        PromptError: the role is unknown, or the content is no text.
    """

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            roles = ", ".join(get_args(Role))
            raise PromptError(f"A message has one of the roles {roles}, not {self.role!r}.")
        if not isinstance(self.content, str):
            raise PromptError("A message holds text alone. Leave out images, files and the like.")
        try:
            self.content.encode()
        except UnicodeEncodeError:
            raise PromptError("A message holds half a character. Leave it out.") from None


class Piece(NamedTuple):
    """Text that follows what came before."""

    text: str
    tokens: int
    """How many it was made of."""
    thought: bool = False
    """Whether a reasoning model thinks this aloud, before its answer."""


class End(NamedTuple):
    """The last of a stream."""

    reason: EndReason
    """The model was done, the most tokens were written, or a server held the rest back."""
    prompt_tokens: int | None = None
    """None where a server does not say."""
    dropped_messages: int = 0
    """Of the oldest ones, for which the context has no room."""


def read_tokens(messages: Sequence[Message], end: End | None) -> int:
    """Returns how many tokens a model read; where it does not say, about as many."""
    if end is not None and end.prompt_tokens is not None:
        return end.prompt_tokens
    return -(-sum(len(message.content) for message in messages) // CHARACTERS_PER_TOKEN)


class GenerationOptions(Strict):
    """How one request is answered. None leaves the choice to each model's settings."""

    min_new_tokens: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=100, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 always takes the likeliest token."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Samples from the likeliest tokens that together have this probability."""
    top_k: int | None = Field(default=None, ge=1, le=MOST_TOP_K)
    """Samples from so many of the likeliest tokens."""
    stop: tuple[StopText, ...] = Field(default=(), max_length=8)
    """Texts before which the answer ends."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """The same seed samples the same text, where model and format of numbers are the same."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"at least {self.min_new_tokens} tokens and at most {self.max_new_tokens} "
                "contradict each other; raise the maximum or lower the minimum"
            )
        return self


class Model(Protocol):
    """Whatever answers: an engine in this process, a deployment, another server, a class of yours.

    `stream` yields pieces and, at the last, one `End`. Leaving it ends the generation. A
    conversation that ends with a message of the assistant asks to continue that message.
    """

    @property
    def name(self) -> str: ...

    def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]: ...


on_model_start: ContextVar[Callable[[], None]] = ContextVar("on_model_start", default=lambda: None)
"""Called when an answer has to wait until its model has started. Whoever reads the answer sets it."""


class PromptError(ValueError):
    """The text cannot be answered as it is; the message says what to change."""


class ModelError(StartError):
    """A model cannot be loaded; the message names it and the way out."""


class BusyError(RuntimeError):
    """More is asked than the limits allow; the message says to come back later."""


class GenerationError(RuntimeError):
    """A model gave a text up half way; the message says why."""


class InterruptionError(RuntimeError):
    """An answer ended early, through no fault of the prompt; the message says what to do."""
