"""The settings of a model in the engine, and the limits of its process."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ..base import Strict
from ..protocol import MOST_TOP_K, Message, PromptError

ANSWERS_AT_FULL_PACE = 2
SLOWEST_PACE = 5


class EngineSettings(Strict):
    """A model, and the defaults for its requests."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the model's pane and deployment."""
    source: str = Field(min_length=1)
    """A Hugging Face model id, a local directory or a GGUF file. See docs/changing.md."""
    revision: str | None = None
    """Branch, tag or commit of a model id. None means the main branch.

    A deployment stays at the commit that it had when it was deployed.
    """
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Format of the weights. "auto" uses the saved format on a GPU. On a CPU it uses "int8" if the
    model supports it, else bfloat16 if the CPU supports it, else float32. "int8" stores the weights
    of a Llama, Mistral, Qwen2 or Qwen3 in 8 bits on a CPU, which is faster and smaller but changes
    the text slightly. "float32" gives the same text as `generate`."""
    system: str = ""
    """System message for a model with a chat template, if the conversation has none."""
    prompt: str = "{prompt}"
    """Template for the user's last message, which replaces `{prompt}`."""
    template_options: dict[str, Any] = Field(default_factory=dict)
    """Extra arguments for the model's chat template, such as `enable_thinking`."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    """0 always picks the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Samples from the likeliest tokens that together have this probability."""
    top_k: int = Field(default=MOST_TOP_K, ge=1, le=MOST_TOP_K)
    """Samples from this many of the likeliest tokens. By default, the model's own value."""

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if "{prompt}" not in self.prompt:
            raise ValueError("prompt must contain {prompt}. The user's text replaces it")
        return self

    def conversation(self, messages: Sequence[Message]) -> list[Message]:
        """Returns the messages with `system` and `prompt` applied.

        Raises:
            PromptError: there is no user message.
        """
        asked = max((n for n, each in enumerate(messages) if each.role == "user"), default=None)
        if asked is None:
            raise PromptError("The conversation has no user message. Add one.")
        turns = list(messages)
        turns[asked] = Message("user", self.prompt.replace("{prompt}", turns[asked].content))
        if self.system and not any(message.role == "system" for message in messages):
            turns.insert(0, Message("system", self.system))
        return turns


class ModelLimits(Strict):
    """The limits of one model's process."""

    new_tokens: int = Field(default=512, ge=1)
    """The maximum number of new tokens that a request may ask for."""
    running_requests: int = Field(default=32, ge=1)
    """How many requests the page and each model handle at the same time."""
    waiting_requests: int = Field(default=200, ge=1)
    """How many requests may wait at the page and at each model. Any more are refused."""
    cache_tokens: int | None = Field(default=None, ge=64)
    """Size of a decoder's cache of keys and values, in tokens of all running requests.

    With None, the size depends on the model and the free memory.
    """
    prompt_tokens: int | None = Field(default=None, ge=64)
    """The longest text, in tokens, for an encoder without its own limit (T5).

    With None, the limit depends on the free memory. Memory use grows with the square of the length.
    """
    update_seconds: float = Field(default=0.1, ge=0, le=5)
    """Pause between two updates of an answer, while few answers are running."""

    def pause(self, running: int) -> float:
        """Returns the pause in seconds between two updates of an answer.

        Text that arrives in the pause is shown together. The pause grows with the number of
        running answers, so that updates do not slow down the generation.
        """
        return self.update_seconds * min(max(running / ANSWERS_AT_FULL_PACE, 1), SLOWEST_PACE)
