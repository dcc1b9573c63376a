"""How a model is loaded and asked, and what one process of it takes on."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ..base import Strict
from ..protocol import MOST_TOP_K, Message, PromptError

ANSWERS_AT_FULL_PACE = 2
SLOWEST_PACE = 5


class EngineSettings(Strict):
    """A model, and how it is asked when a request does not say otherwise."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of its pane and of its deployment."""
    source: str = Field(min_length=1)
    """A Hugging Face model id, a local directory or a GGUF file; docs/changing.md says what else."""
    revision: str | None = None
    """Branch, tag or commit of a model id; None takes the main branch.

    A deployment keeps the commit that it is when it is deployed.
    """
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Format of the numbers. "auto": on a GPU the one that the weights were saved in, on a CPU
    "int8" where the model runs in it, else bfloat16 where it has instructions for it, else float32.
    "int8" keeps the weights of a Llama, Mistral, Qwen2 or Qwen3 in 8 bits on a CPU: faster and
    smaller, and not quite its text. "float32" writes what `generate` does."""
    system: str = ""
    """What a model with a chat template is told first, where the conversation says nothing."""
    prompt: str = "{prompt}"
    """What the model reads; `{prompt}` stands for the user's last message."""
    template_options: dict[str, Any] = Field(default_factory=dict)
    """What the model's chat template is called with beside the messages: `enable_thinking`."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 always takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Samples from the likeliest tokens that together have this probability."""
    top_k: int = Field(default=MOST_TOP_K, ge=1, le=MOST_TOP_K)
    """Samples from so many of the likeliest tokens; unsaid, what the model's own configuration says."""

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if "{prompt}" not in self.prompt:
            raise ValueError("prompt must contain {prompt}, where the user's text goes")
        return self

    def conversation(self, messages: Sequence[Message]) -> list[Message]:
        """Returns the messages as the model reads them, with `system` and `prompt` in place.

        Raises:
            PromptError: no message is a user's.
        """
        asked = max((n for n, each in enumerate(messages) if each.role == "user"), default=None)
        if asked is None:
            raise PromptError("A conversation needs a message of a user. Add one.")
        turns = list(messages)
        turns[asked] = Message("user", self.prompt.replace("{prompt}", turns[asked].content))
        if self.system and not any(message.role == "system" for message in messages):
            turns.insert(0, Message("system", self.system))
        return turns


class ModelLimits(Strict):
    """What one model's process takes on."""

    new_tokens: int = Field(default=512, ge=1)
    """The most tokens that a request may ask of a model."""
    running_requests: int = Field(default=32, ge=1)
    """Requests that the page, and each model, work on at the same time."""
    waiting_requests: int = Field(default=200, ge=1)
    """Requests that may wait for their turn, on the page and at a model; one more is refused."""
    cache_tokens: int | None = Field(default=None, ge=64)
    """Tokens, of all running requests, whose keys and values a decoder keeps.

    None sizes it from the model and the free memory.
    """
    prompt_tokens: int | None = Field(default=None, ge=64)
    """The longest text that an encoder reads, where its positions have no end (T5).

    None takes what the free memory allows: it takes memory by the square of the length.
    """
    update_seconds: float = Field(default=0.1, ge=0, le=5)
    """Pause between two updates of an answer, while few are running."""

    def pause(self, running: int) -> float:
        """Returns the seconds between two updates of each of that many running answers.

        Text that comes sooner is shown together. Many answers take turns in being updated, so
        that updates do not take the time in which their text is made.
        """
        return self.update_seconds * min(max(running / ANSWERS_AT_FULL_PACE, 1), SLOWEST_PACE)
