"""The protocol of models: messages, options, pieces of an answer, and errors.

It imports neither Ray nor Gradio nor torch.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol, Self, get_args

from pydantic import Field, StringConstraints, model_validator

from .base import StartError, Strict

MOST_TOP_K = 50
"""The largest `top_k`."""

CHARACTERS_PER_TOKEN = 4
"""The rough average in English."""

Role = Literal["system", "user", "assistant"]
EndReason = Literal["stop", "length", "filtered"]
StopText = Annotated[str, StringConstraints(min_length=1)]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Raises:
        PromptError: the role is unknown, or the content is not text.
    """

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            roles = ", ".join(get_args(Role))
            raise PromptError(f"{self.role!r} is not a message role. Use one of: {roles}.")
        if not isinstance(self.content, str):
            raise PromptError(
                "A message may contain only text. Leave out images, files and the like."
            )
        try:
            self.content.encode()
        except UnicodeEncodeError:
            raise PromptError("A message contains an incomplete character. Remove it.") from None


class Piece(NamedTuple):
    """The next piece of an answer's text."""

    text: str
    tokens: int
    """The number of tokens in it."""
    thought: bool = False
    """Whether it is reasoning, before the answer itself."""


class End(NamedTuple):
    """The last item of a stream."""

    reason: EndReason
    """The model was done, the token limit was reached, or a server filtered the rest."""
    prompt_tokens: int | None = None
    """None if a server does not report it."""
    dropped_messages: int = 0
    """How many of the oldest messages did not fit into the context."""


def read_tokens(messages: Sequence[Message], end: End | None) -> int:
    """Returns how many tokens a model read, or an estimate if it does not report them."""
    if end is not None and end.prompt_tokens is not None:
        return end.prompt_tokens
    return -(-sum(len(message.content) for message in messages) // CHARACTERS_PER_TOKEN)


class GenerationOptions(Strict):
    """Options of one answer. If an option is None, each model uses its own settings."""

    min_new_tokens: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=100, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    """With 0, the model always takes the likeliest token."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Samples from the likeliest tokens that together have this probability."""
    top_k: int | None = Field(default=None, ge=1, le=MOST_TOP_K)
    """Samples from this many of the likeliest tokens."""
    stop: tuple[StopText, ...] = Field(default=(), max_length=8)
    """The answer ends before any of these texts."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """The same seed gives the same text, if the model and its number format are the same."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"the minimum of {self.min_new_tokens} tokens is above the maximum of "
                f"{self.max_new_tokens}. Raise the maximum, or lower the minimum"
            )
        return self


class Model(Protocol):
    """A model: an engine in this process, a deployment, another server, or your own class.

    `stream` yields pieces, and one `End` at the end. Closing it stops the generation. If the last
    message is the assistant's, the model continues that message.
    """

    @property
    def name(self) -> str: ...

    def stream(
        self, messages: Sequence[Message], options: GenerationOptions
    ) -> AsyncGenerator[Piece | End, None]: ...


on_model_start: ContextVar[Callable[[], None]] = ContextVar("on_model_start", default=lambda: None)
"""Called when an answer must wait for its model to start. The code that reads the answer sets
it."""


class PromptError(ValueError):
    """A model cannot answer this prompt. The message says what to change."""


class ModelError(StartError):
    """A model cannot be loaded. The message names the model, and says what to do."""


class BusyError(RuntimeError):
    """Too many requests are waiting. The message says to try again later."""


class GenerationError(RuntimeError):
    """A model failed in the middle of an answer. The message says why."""


class InterruptionError(RuntimeError):
    """An answer was interrupted, but not because of the prompt. The message says what to do."""
